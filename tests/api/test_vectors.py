"""Embeddings, classes and scores over HTTP: shapes, order, the right route, hostile and impatient clients."""

from __future__ import annotations

import base64
import http.client
import json
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import openai
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForSequenceClassification, LlamaModel

from api.live_server import BASE, LiveServer, Serve, Setup
from api.peft_files import make_adapter
from livery.api.answers import Classes
from livery.engine.fake import Behaviour
from livery.text import Tokenizer

WIDTH = 16  # the fake engine's hidden size, and that of the tiny model that adapters here were trained on
CONFIG = {
    "vocab_size": 32,
    "hidden_size": WIDTH,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": WIDTH // 2,
    "pad_token_id": 0,
}


def _saved(folder: Path) -> Path:
    """One adapter for each task: `writes`, `embeds`, `sorts` (2 classes) and `ranks` (1 class)."""
    make_adapter(folder / "writes", seed=1)
    fields = {"r": 2, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
    get_peft_model(
        LlamaModel(LlamaConfig(**CONFIG)), LoraConfig(**fields, task_type="FEATURE_EXTRACTION")
    ).save_pretrained(folder / "embeds")
    for name, labels in (("sorts", 2), ("ranks", 1)):
        torch.manual_seed(labels)
        model = LlamaForSequenceClassification(LlamaConfig(**CONFIG, num_labels=labels))
        get_peft_model(model, LoraConfig(**fields, task_type="SEQ_CLS")).save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _saved(tmp_path_factory.mktemp("saved"))


@pytest.fixture(scope="module")
def live(tokenizer: Tokenizer, saved: Path, tmp_path_factory: pytest.TempPathFactory) -> LiveServer:
    folder = tmp_path_factory.mktemp("server")
    shutil.copytree(saved, folder / "adapters")
    server = LiveServer(Setup(), tokenizer, folder)
    server.start()
    yield server
    server.stop()


def post(server: LiveServer, path: str, **body: object) -> httpx.Response:
    return httpx.post(f"{server.url}{path}", json=body, timeout=30)


def error(answer: httpx.Response) -> tuple[int, str, str]:
    found = answer.json()["error"]
    return answer.status_code, found["code"], found["param"]


def ramp(first: int, count: int = WIDTH) -> list[float]:
    """What the fake engine says of a prompt whose ids add up to `first`."""
    return [float(first + place) for place in range(count)]


def test_openai_gets_every_form_of_input_in_order_and_in_both_encodings(live: LiveServer, tokenizer: Tokenizer) -> None:
    client = live.client().embeddings
    words = ["Ahoy", "matey", "parrots"]
    sums = [sum(tokenizer.encode(word)) for word in words]
    expected = [ramp(first) for first in sums]
    by_default = client.create(model=BASE, input=words)  # the client asks for base64 and decodes it
    assert [item.embedding for item in by_default.data] == expected
    assert [item.index for item in by_default.data] == [0, 1, 2]
    tokens = sum(len(tokenizer.encode(word)) for word in words)
    assert (by_default.usage.prompt_tokens, by_default.usage.total_tokens) == (tokens, tokens)
    as_numbers = client.create(model=BASE, input=words, encoding_format="float")
    assert [item.embedding for item in as_numbers.data] == expected
    assert client.create(model=BASE, input="Ahoy").data[0].embedding == expected[0]
    assert client.create(model=BASE, input=[3, 4]).data[0].embedding == ramp(7)
    several = client.create(model=BASE, input=[[3, 4], [5]], dimensions=3)
    assert [item.embedding for item in several.data] == [ramp(7, 3), ramp(5, 3)]
    raw = post(live, "/v1/embeddings", model=BASE, input="Ahoy", encoding_format="base64").json()
    assert raw["object"] == "list"
    assert raw["model"] == BASE
    assert np.frombuffer(base64.b64decode(raw["data"][0]["embedding"]), dtype="<f4").tolist() == expected[0]


def test_what_is_asked_for_reaches_the_engine(live: LiveServer) -> None:
    usual = live.client().embeddings.with_raw_response.create(model="embeds", input=[3, 4])
    digest = live.client().models.retrieve("embeds").digest  # type: ignore[attr-defined]
    assert usual.headers["x-livery-adapter"] == f"embeds@{digest[:12]}"
    assert usual.parse().data[0].embedding == ramp(7 + int(digest[:2], 16))
    post(live, "/v1/embeddings", model="embeds", input=[3, 4], pooling="mean", normalize=False, cache_salt="mine")
    one, other = live.engine.requests[-2:]
    assert one.pooling is not None and other.pooling is not None
    assert (one.pooling.kind, one.pooling.normalize, one.cache_salt) == ("last", True, "")
    assert (other.pooling.kind, other.pooling.normalize, other.cache_salt) == ("mean", False, "mine")


def test_a_long_list_comes_in_order_and_takes_turns(live: LiveServer) -> None:
    inputs = [[place % 100 + 3] for place in range(2048)]
    data = live.client().embeddings.create(model=BASE, input=inputs).data
    assert [item.embedding[0] for item in data] == [float(ids[0]) for ids in inputs]
    assert error(post(live, "/v1/embeddings", model=BASE, input=[*inputs, [3]])) == (400, "invalid_value", "input")


def test_a_list_of_passages_fits_in_a_body(live: LiveServer) -> None:
    """A thousand of 3 KB each, as LangChain sends them; more bytes than a list may have are told with the remedy."""
    data = live.client().embeddings.create(model=BASE, input=["-" * 3000] * 1000).data
    assert [item.index for item in data] == list(range(1000))
    answer = post(live, "/v1/embeddings", model=BASE, input=["-" * 5000] * 2000)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
    message = answer.json()["error"]["message"]
    assert "8388608 bytes" in message and "fewer inputs" in message and "--max-body" in message


def test_classes_in_vllms_shape(live: LiveServer, saved: Path) -> None:
    answer = post(live, "/classify", model="sorts", input=["Ahoy", "matey"])
    body = answer.json()
    assert answer.status_code == 200, body
    Classes.model_validate_json(answer.content, strict=True)
    assert body["id"].startswith("classify-")
    assert (body["object"], body["model"]) == ("list", "sorts")
    assert [item["index"] for item in body["data"]] == [0, 1]
    item = body["data"][0]
    assert (item["label"], item["num_classes"]) == ("LABEL_1", 2)  # the fake engine's second logit is one more
    assert item["probs"] == pytest.approx([1 / (1 + np.e), np.e / (1 + np.e)])
    raw = post(live, "/classify", model="sorts", input=[3, 4], use_activation=False).json()["data"][0]["probs"]
    assert raw[1] == raw[0] + 1
    assert load_file(saved / "sorts" / "adapter_model.safetensors")["base_model.model.score.weight"].shape == (2, WIDTH)


def test_labels_come_from_the_adapters_profile(live: LiveServer, saved: Path) -> None:
    body = {"source": str(live.adapter_root / "sorts"), "profile": {"labels": ["calm", "angry"]}}
    answer = httpx.put(f"{live.url}/v1/adapters/named", json=body, timeout=30)
    assert answer.status_code in (200, 201), answer.text
    body["profile"] = {"labels": ["calm"]}
    refused = httpx.put(f"{live.url}/v1/adapters/named", json=body, timeout=30)
    assert refused.json()["error"]["code"] == "bad_profile", refused.text
    assert post(live, "/classify", model="named", input="Ahoy").json()["data"][0]["label"] == "angry"


@pytest.mark.parametrize("path", ["/v1/score", "/score"])
def test_scores_of_texts_beside_each_other(live: LiveServer, tokenizer: Tokenizer, path: str) -> None:
    first, second = (np.array(ramp(sum(tokenizer.encode(text)))) for text in ("Ahoy", "matey"))
    body = post(live, path, model=BASE, text_1="Ahoy", text_2=["matey", "Ahoy"]).json()
    assert [(item["index"], item["object"]) for item in body["data"]] == [(0, "score"), (1, "score")]
    assert [item["score"] for item in body["data"]] == pytest.approx([first @ second, first @ first])
    pairs = post(live, path, model=BASE, text_1=["Ahoy", "matey"], text_2=["matey", "matey"]).json()
    assert [item["score"] for item in pairs["data"]] == pytest.approx([first @ second, second @ second])
    assert error(post(live, path, model=BASE, text_1=["a", "b"], text_2=["c", "d", "e"])) == (
        400,
        "invalid_value",
        "text_1",
    )


def test_a_classifier_of_one_class_scores_a_pair_as_one_text(live: LiveServer, tokenizer: Tokenizer) -> None:
    answer = post(live, "/v1/score", model="ranks", text_1="Ahoy", text_2=["matey"])
    assert answer.status_code == 200, answer.text
    request = live.engine.requests[-1]
    assert request.prompt_token_ids == tokenizer.encode_pair("Ahoy", "matey")
    assert request.pooling is not None and request.pooling.head
    assert 0 <= answer.json()["data"][0]["score"] <= 1


@pytest.mark.parametrize(
    ("path", "model", "says"),
    [
        ("/v1/embeddings", "sorts", "ask POST /classify instead of /v1/embeddings"),
        ("/classify", "embeds", "ask POST /v1/embeddings instead of /classify"),
        ("/classify", BASE, "name an adapter that was trained for classification"),
        ("/v1/score", "sorts", "2 classes, where a score takes one: ask POST /classify"),
        ("/v1/completions", "embeds", "ask POST /v1/embeddings instead"),
        ("/v1/completions", "sorts", "ask POST /classify instead"),
        ("/v1/embeddings", "embeds+writes", "different tasks"),
    ],
)
def test_the_wrong_route_names_the_right_one(live: LiveServer, path: str, model: str, says: str) -> None:
    body = {"text_1": "a", "text_2": "b"} if path == "/v1/score" else {"input": "a", "prompt": "a"}
    answer = post(live, path, model=model, **body)
    assert error(answer) == (400, "invalid_value", "model")
    assert says in answer.json()["error"]["message"]


def test_what_an_adapter_is_for_is_told(live: LiveServer) -> None:
    found = {name: live.client().models.retrieve(name).task for name in (BASE, "writes", "embeds", "sorts")}  # type: ignore[attr-defined]
    assert found == {BASE: "generate", "writes": "generate", "embeds": "embed", "sorts": "classify"}
    shown = httpx.get(f"{live.url}/v1/adapters/sorts", timeout=30).json()
    assert (shown["task"], shown["coverage"]["num_labels"]) == ("classify", 2)


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({}, "missing_required_parameter", "input"),
        ({"input": []}, "invalid_value", "input"),
        ({"input": ""}, "invalid_value", "input"),
        ({"input": ["a", ""]}, "invalid_value", "input"),
        ({"input": [3, "a"]}, "invalid_value", "input"),
        ({"input": [49152]}, "invalid_value", "input"),
        ({"input": [[]]}, "invalid_value", "input"),
        ({"input": [3] * 257}, "context_length_exceeded", "input"),
        ({"input": "a " * 100_000}, "context_length_exceeded", "input"),
        ({"input": "a", "dimensions": 0}, "invalid_value", "dimensions"),
        ({"input": "a", "dimensions": 17}, "invalid_value", "dimensions"),
        ({"input": "a", "encoding_format": "hex"}, "invalid_value", "encoding_format"),
        ({"input": "a", "pooling": "max"}, "invalid_value", "pooling"),
        ({"input": "a", "truncate_prompt_tokens": 4}, "unsupported_parameter", "truncate_prompt_tokens"),
    ],
)
def test_bad_requests_name_the_field(live: LiveServer, body: dict[str, object], code: str, param: str) -> None:
    status, found, where = error(post(live, "/v1/embeddings", model=BASE, **body))
    assert (status, found) == (400, code)
    assert where.startswith(param)


def test_a_prompt_as_long_as_the_context_is_taken(live: LiveServer) -> None:
    assert post(live, "/v1/embeddings", model=BASE, input=[3] * 256).status_code == 200


def test_nulls_are_as_good_as_nothing_and_an_unknown_model_is_a_404(live: LiveServer) -> None:
    nothing = dict.fromkeys(("encoding_format", "dimensions", "user", "pooling", "normalize", "metadata"))
    assert post(live, "/v1/embeddings", model=BASE, input=[3, 4], **nothing).json()["data"][0]["embedding"] == ramp(7)
    with pytest.raises(openai.NotFoundError):
        live.client().embeddings.create(model="nobody", input="a")


def test_keys_are_asked_for_and_requests_counted(serve: Serve) -> None:
    server = serve(Setup(api_key="secret"))
    with pytest.raises(openai.AuthenticationError):
        server.client("wrong").embeddings.create(model=BASE, input="a")
    for path in ("/classify", "/score", "/v1/score"):
        assert post(server, path).status_code == 401
    server.client("secret").embeddings.create(model=BASE, input=[[3, 4], [5]])
    metrics = httpx.get(f"{server.url}/metrics", headers={"authorization": "Bearer secret"}, timeout=30).text
    assert f'vllm:request_success_total{{engine="0",finished_reason="stop",model_name="{BASE}"}} 2.0' in metrics
    assert f'vllm:prompt_tokens_total{{engine="0",model_name="{BASE}"}} 3.0' in metrics


def test_a_failure_is_one_error_and_gives_everything_back(serve: Serve) -> None:
    server = serve(Setup(behaviour=Behaviour(fail_after=0)))
    answer = post(server, "/v1/embeddings", model=BASE, input=[[3], [4]])
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "generation_failed")
    server.wait_until(lambda engine: engine.open_requests == 0)


def test_a_client_that_leaves_takes_its_prompts_along(serve: Serve) -> None:
    server = serve(Setup(behaviour=Behaviour(stepped=True), max_open=64))
    where = urlsplit(server.url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=30)
    body = json.dumps({"model": BASE, "input": [[place + 3] for place in range(100)]})
    connection.request("POST", "/v1/embeddings", body, {"content-type": "application/json"})
    server.wait_until(lambda engine: engine.open_requests == 32)
    connection.close()
    server.wait_until(lambda engine: engine.open_requests == 0)
    assert len(server.engine.requests) == 32, "the others never reached the engine"
