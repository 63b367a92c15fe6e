"""Text to tokens and back over HTTP, with transformers as the judge of every id."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from api.live_server import BASE, LiveServer, Serve, Setup
from api.peft_files import make_adapter
from livery.engine.fake import Behaviour
from livery.models import resolve_model
from livery.text import Tokenizer
from livery.tokenizer_files import TokenizerFiles

TEXTS = ("Hello, wörld! 🙂", "", "<|im_start|>user", " a  b\n\n", "x" * 9000)
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say <|im_end|> and 🙂."}]


@pytest.fixture(scope="module")
def reference() -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(resolve_model("smollm2-135m-instruct").path)
    return tokenizer


@pytest.fixture(scope="module")
def roomy(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    server = LiveServer(Setup(max_model_len=16384), tokenizer, tmp_path_factory.mktemp("roomy"))
    make_adapter(server.adapter_root / "pirate")
    server.start()
    yield server
    server.stop()


def tokenize(server: LiveServer, **body: Any) -> dict[str, Any]:
    answer = httpx.post(f"{server.url}/tokenize", json=body, timeout=30)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def error(server: LiveServer, path: str, body: object) -> tuple[int, str | None, str]:
    answer = httpx.post(server.url + path, json=body, timeout=30)
    facts = answer.json()["error"]
    return answer.status_code, facts["param"], facts["code"]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("special", [True, False])
def test_text_becomes_the_tokens_that_transformers_makes_of_it(
    roomy: LiveServer, reference: PreTrainedTokenizerBase, text: str, special: bool
) -> None:
    answer = tokenize(roomy, prompt=text, add_special_tokens=special, return_token_strs=True)
    ids: list[int] = reference.encode(text, add_special_tokens=special)
    assert answer == {
        "count": len(ids),
        "max_model_len": 16384,
        "tokens": ids,
        "token_strs": reference.convert_ids_to_tokens(ids),
    }
    back = httpx.post(f"{roomy.url}/detokenize", json={"tokens": ids}).json()
    assert back == {"prompt": reference.decode(ids)}


def test_special_tokens_are_added_unless_told_otherwise(tmp_path: Path) -> None:
    """The demo base adds none around a prompt, so this one is told to begin prompts with BOS."""
    directory = resolve_model("smollm2-135m-instruct").path
    fast = FastTokenizer.from_file(str(directory / "tokenizer.json"))
    fast.post_processor = TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
    server = LiveServer(Setup(), Tokenizer(TokenizerFiles(fast.to_str().encode(), None, {})), tmp_path)
    server.start()
    try:
        plain: list[int] = fast.encode("Hi there", add_special_tokens=False).ids
        for asked, expected in ((None, [1, *plain]), (True, [1, *plain]), (False, plain)):
            assert tokenize(server, prompt="Hi there", add_special_tokens=asked)["tokens"] == expected
            body = {"prompt": "Hi there", "add_special_tokens": asked, "max_tokens": 1}
            assert httpx.post(f"{server.url}/v1/completions", json=body).status_code == 200
            assert server.engine.requests[-1].prompt_token_ids == expected
    finally:
        server.stop()


def test_messages_become_what_a_chat_completion_reads(roomy: LiveServer, reference: PreTrainedTokenizerBase) -> None:
    answer = tokenize(roomy, model=BASE, messages=CHAT)
    assert answer["token_strs"] is None
    done = roomy.client().chat.completions.create(model=BASE, messages=CHAT, max_tokens=1)  # type: ignore[arg-type]
    assert done.usage and done.usage.prompt_tokens == answer["count"]
    assert roomy.engine.requests[-1].prompt_token_ids == answer["tokens"]
    plain = [{"role": "user", "content": "Hi"}]
    assert tokenize(roomy, messages=plain)["tokens"] == reference.apply_chat_template(
        plain, add_generation_prompt=True, tokenize=True, return_dict=False
    )


def test_an_adapters_profile_counts(roomy: LiveServer) -> None:
    source = {"source": "pirate", "profile": {"system_prompt": "You are a pirate."}}
    assert httpx.put(f"{roomy.url}/v1/adapters/captain", json=source, timeout=30).status_code == 200
    hi = [{"role": "user", "content": "Hi"}]
    answer = tokenize(roomy, model="captain", messages=hi)
    roomy.client().chat.completions.create(model="captain", messages=hi, max_tokens=1)  # type: ignore[arg-type]
    assert roomy.engine.requests[-1].prompt_token_ids == answer["tokens"]
    assert answer["tokens"] != tokenize(roomy, model="pirate", messages=hi)["tokens"]


def test_the_model_must_be_served_and_is_let_go_again(roomy: LiveServer) -> None:
    assert tokenize(roomy, model="pirate", prompt="Hi")["count"] == 1
    assert roomy.service.adapters.under_way.of("pirate") == 0
    for path, body in (("/tokenize", {"prompt": "Hi"}), ("/detokenize", {"tokens": [1]})):
        assert error(roomy, path, {**body, "model": "nobody"}) == (404, None, "model_not_found")
    assert httpx.get(f"{roomy.url}/tokenizer_info?model=nobody").status_code == 404


def test_the_tokenizer_says_what_a_client_needs_to_write_prompts(
    roomy: LiveServer, reference: PreTrainedTokenizerBase
) -> None:
    info = httpx.get(f"{roomy.url}/tokenizer_info").json()
    assert (info["eos_token"], info["bos_token"]) == (reference.eos_token, reference.bos_token)
    assert info["chat_template"] == reference.chat_template
    assert info["model_max_length"] == 16384
    assert isinstance(info["tokenizer_class"], str)


@pytest.mark.parametrize(
    ("path", "body", "param", "code"),
    [
        ("/tokenize", {}, "prompt", "missing_required_parameter"),
        ("/tokenize", {"prompt": 3}, "prompt", "invalid_value"),
        ("/tokenize", {"messages": []}, "messages", "invalid_value"),
        ("/tokenize", {"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "invalid_value"),
        ("/tokenize", {"messages": CHAT, "audio": {}}, "audio", "unsupported_parameter"),
        ("/tokenize", {"prompt": "a" * 2_000_000}, "prompt", "context_length_exceeded"),
        ("/detokenize", {"tokens": [49152]}, "tokens", "invalid_value"),
        ("/detokenize", {"tokens": [-1]}, "tokens.0", "invalid_value"),
        ("/detokenize", {"tokens": [1 << 80]}, "tokens", "invalid_value"),
        ("/detokenize", {"tokens": "1"}, "tokens", "invalid_value"),
    ],
)
def test_what_is_wrong_is_named(roomy: LiveServer, path: str, body: object, param: str | None, code: str) -> None:
    assert error(roomy, path, body) == (400, param, code)


def test_load_counts_what_is_open(serve: Serve) -> None:
    server = serve(Setup(Behaviour(stepped=True), keep_alive_s=0.01))  # answers begin with that, before any token
    assert httpx.get(f"{server.url}/load").json() == {"server_load": 0}
    with server.client().completions.create(model=BASE, prompt=[1], max_tokens=2, n=2, stream=True):
        server.wait_until(lambda engine: engine.open_requests == 2)
        assert httpx.get(f"{server.url}/load").json() == {"server_load": 2}


def test_sagemaker_may_ping_either_way(server: LiveServer) -> None:
    for method in ("GET", "POST"):
        assert httpx.request(method, f"{server.url}/ping").status_code == 200
