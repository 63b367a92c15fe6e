"""Adapters over HTTP: bound by name, loaded and unloaded as vLLM does, never from outside the folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import httpx
import openai
import pytest

from api.live_server import BASE, MODULES, VOCAB, LiveServer, Serve, Setup, saying
from api.peft_files import damage_config, damage_weights, make_adapter
from livery.text import Tokenizer
from service.few_descriptors import only


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two adapters to copy from."""
    folder = tmp_path_factory.mktemp("saved")
    make_adapter(folder / "one", seed=1)
    make_adapter(folder / "two", seed=2, rank=4)
    return folder


@pytest.fixture
def live(serve: Serve, saved: Path, tmp_path: Path) -> LiveServer:
    """A server that found the adapter `one` in its folder."""
    shutil.copytree(saved / "one", tmp_path / "adapters" / "one")
    return serve(folder=tmp_path)


def load(server: LiveServer, name: str, path: str, **more: object) -> httpx.Response:
    body = {"lora_name": name, "lora_path": path, **more}
    return httpx.post(f"{server.url}/v1/load_lora_adapter", json=body, timeout=30)


def unload(server: LiveServer, name: str) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/unload_lora_adapter", json={"lora_name": name}, timeout=30)


def answer_of(server: LiveServer, model: str) -> tuple[str, str]:
    """The text for the prompt [1000] and who answered."""
    raw = server.client().completions.with_raw_response.create(model=model, prompt=[1000], max_tokens=2)
    return raw.parse().choices[0].text, raw.headers["x-livery-adapter"]


def text_with(tokenizer: Tokenizer, digest: str) -> str:
    first = 1000 + int(digest[:2], 16)
    return tokenizer.decode([first % VOCAB, (first + 1) % VOCAB])


def test_an_adapter_in_the_folder_answers_under_its_name(live: LiveServer, tokenizer: Tokenizer) -> None:
    digest = live.client().models.retrieve("one").digest  # type: ignore[attr-defined]
    assert answer_of(live, "one") == (text_with(tokenizer, digest), f"one@{digest[:12]}")
    assert answer_of(live, BASE)[1].startswith(f"{BASE}@")
    assert answer_of(live, f"one@{digest[:8]}")[1] == f"one@{digest[:12]}"
    assert {request.adapter.digest for request in live.engine.requests if request.adapter} == {digest}


def test_where_no_more_files_can_be_opened_a_request_is_told_to_come_later(live: LiveServer) -> None:
    body = {"model": "one", "prompt": [1000], "max_tokens": 2}
    with httpx.Client(base_url=live.url, timeout=30) as client:  # whose connection is there before
        assert client.post("/v1/completions", json=body).is_success
        with only(0):
            full = client.post("/v1/completions", json=body)
            base = client.post("/v1/completions", json={**body, "model": BASE})
        again = client.post("/v1/completions", json=body)
    assert (full.status_code, full.headers["retry-after"]) == (503, "1"), full.text
    assert full.json()["error"]["code"] == "engine_overloaded"
    assert "ulimit -n" in full.json()["error"]["message"]
    assert base.is_success, "it needs no adapter's files"
    assert again.is_success


def test_the_engine_is_told_where_files_are_stored_not_where_they_came_in(live: LiveServer) -> None:
    """Or it could read none of them again after a restart."""
    (ref,) = live.engine.loaded.values()
    (part,) = ref.parts
    assert Path(part.path).is_dir()
    assert answer_of(live, "one")[1].startswith("one@")
    (asked,) = (request.adapter for request in live.engine.requests if request.adapter)
    assert [part.path for part in asked.parts] == [part.path]


def test_models_list_the_base_first_and_show_no_paths(live: LiveServer) -> None:
    models = live.client().models.list().data
    assert [model.id for model in models] == [BASE, "one"]
    assert models[0].parent is None  # type: ignore[attr-defined]
    assert models[1].parent == BASE  # type: ignore[attr-defined]
    assert live.client().models.retrieve("one").id == "one"
    assert str(live.adapter_root.parent) not in httpx.get(f"{live.url}/v1/models").text
    listed = httpx.get(f"{live.url}/v1/adapters")
    assert str(live.adapter_root.parent) not in listed.text
    one = listed.json()["data"][0]
    assert (one["name"], one["state"], one["resident"], one["coverage"]["ranks"]) == ("one", "ready", True, [2])
    shown = httpx.get(f"{live.url}/v1/adapters/one").json()
    assert set(shown["coverage"].pop("modules_by_path")) == {
        path for path in MODULES if path.endswith(("q_proj", "v_proj"))
    }
    assert shown["coverage"].pop("beside") == {}
    assert shown.pop("shared_with") == []
    assert shown == one, "a list leaves out what is told module by module"


def test_a_pin_means_the_same_to_models_and_to_requests(live: LiveServer) -> None:
    digest = live.client().models.retrieve("one").digest  # type: ignore[attr-defined]
    for name in (f"one@{digest[:8]}", f"one@{digest}"):
        assert live.client().models.retrieve(name).digest == digest  # type: ignore[attr-defined]
    base = live.client().models.retrieve(BASE).digest  # type: ignore[attr-defined]
    pinned = answer_of(live, BASE)[1]  # NAME@DIGEST as answers say it
    assert live.client().models.retrieve(pinned).digest == base  # type: ignore[attr-defined]
    assert answer_of(live, pinned)[1] == pinned
    assert live.service.adapters.under_way.of("one") == 0


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("one@00000000", "no version 00000000 is kept; the active one is "),
        ("one@12x", "at least 8 digits"),
        (f"{BASE}@00000000", f"the base model served here is {BASE}@"),
        (f"{BASE}@fa", f"the base model served here is {BASE}@"),
    ],
)
def test_a_pin_that_can_not_be_met_says_why(live: LiveServer, model: str, reason: str) -> None:
    with pytest.raises(openai.NotFoundError) as asked:
        answer_of(live, model)
    with pytest.raises(openai.NotFoundError) as looked_up:
        live.client().models.retrieve(model)
    assert reason in str(asked.value)
    assert asked.value.body == looked_up.value.body
    assert asked.value.code == "model_not_found"


def test_loading_and_unloading_as_vllm_does(live: LiveServer, saved: Path) -> None:
    shutil.copytree(saved / "two", live.adapter_root / "nested" / "two")
    answer = load(live, "org/two", str(live.adapter_root / "nested" / "two"))
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.text == "Success: LoRA adapter 'org/two' added successfully."
    assert live.client().models.retrieve("org/two").id == "org/two"
    assert answer_of(live, "org/two")[1].startswith("org/two@")

    again = load(live, "org/two", "nested/two")
    assert again.status_code == 400
    assert again.json()["error"]["type"] == "InvalidUserInput"
    assert "has already been loaded" in again.json()["error"]["message"]
    assert load(live, "org/two", "nested/two", load_inplace=True).status_code == 200

    gone = unload(live, "org/two")
    assert (gone.status_code, gone.text) == (200, "Success: LoRA adapter 'org/two' removed successfully.")
    again = unload(live, "org/two")
    assert again.status_code == 404
    error = again.json()["error"]
    assert error["message"] == "The lora adapter 'org/two' cannot be found."
    assert (error["type"], error["code"]) == ("NotFoundError", "model_not_found")
    with pytest.raises(openai.NotFoundError):
        answer_of(live, "org/two")
    live.call(live.service.adapters.settle())
    assert len(live.engine.loaded) == 1  # only `one` is left in the engine


def test_a_replacement_leaves_running_requests_on_their_version(
    serve: Serve, tokenizer: Tokenizer, saved: Path, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        shutil.copytree(saved / name, tmp_path / "adapters" / "store" / name)
    server = serve(Setup(behaviour=saying(tokenizer, "one two three", stepped=True)), folder=tmp_path)
    assert load(server, "mine", "store/one").status_code == 200
    body = {"model": "mine", "prompt": [1000], "max_tokens": 3, "stream": True}
    server.step()  # headers come with the first token
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=30) as answer:
        lines = answer.iter_lines()
        next(lines)
        before = server.client().models.retrieve("mine").digest  # type: ignore[attr-defined]
        assert load(server, "mine", "store/two", load_inplace=True).status_code == 200
        after = server.client().models.retrieve("mine").digest  # type: ignore[attr-defined]
        assert before != after
        assert set(server.engine.loaded) == {before, after}
        server.step(2)
        assert [line for line in lines if line][-1] == "data: [DONE]"
        assert answer.headers["x-livery-adapter"] == f"mine@{before[:12]}"
    # The stream's end is told before its version is let go.
    server.call(server.engine.wait_until(lambda engine: set(engine.loaded) == {after}))


def test_paths_outside_the_folder_are_refused(live: LiveServer, saved: Path, tmp_path: Path) -> None:
    outside = shutil.copytree(saved / "two", tmp_path / "outside")
    (live.adapter_root / "link").symlink_to(outside)
    (live.adapter_root / "loop").symlink_to(live.adapter_root / "loop")
    attempts = [
        str(outside), "../outside", "one/../../outside", "link", str(live.adapter_root / "link"), "/etc", ".", "",
        "one/..", "x\0y", "loop", "a" * 5000,
    ]  # fmt: skip
    for attempt in attempts:
        answer = load(live, "evil", attempt)
        assert answer.status_code == 400, attempt
        assert answer.json()["error"]["param"] == "lora_path"
    assert [model.id for model in live.client().models.list().data] == [BASE, "one"]


def test_a_path_that_is_not_there_is_a_404_of_its_own(live: LiveServer) -> None:
    answer = load(live, "ghost", "no/such/folder")
    assert answer.status_code == 404
    assert answer.json()["error"]["type"] == "NotFoundError"


def test_a_load_without_name_or_path_is_told_so_in_vllms_words(live: LiveServer) -> None:
    for name, path, param in (("", "one", "lora_name"), ("x", "", "lora_path"), ("", "", "lora_name")):
        answer = load(live, name, path)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["message"] == "Both 'lora_name' and 'lora_path' must be provided."
        assert (error["type"], error["param"]) == ("InvalidUserInput", param)
    answer = unload(live, "")
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "InvalidUserInput")


@pytest.mark.parametrize("name", [BASE, "a,b", "../x", "a b", "x" * 129, "x/load", "-x"])
def test_names_that_no_adapter_may_have(live: LiveServer, name: str) -> None:
    answer = load(live, name, "one")
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_name"


def test_bad_adapters_are_refused_with_the_reason_and_the_server_goes_on(live: LiveServer, saved: Path) -> None:
    root = live.adapter_root / "bad"
    make_adapter(root / "wide", hidden=32)
    make_adapter(root / "high", rank=16)
    damage_config(shutil.copytree(saved / "two", root / "unknown"), peft_type="PROMPT_TUNING")
    damage_weights(shutil.copytree(saved / "two", root / "nan"))
    shutil.copytree(saved / "two", root / "empty").joinpath("adapter_model.safetensors").unlink()
    for name, (code, words) in {
        "wide": ("wrong_base", "32"),
        "high": ("rank_over_limit", "the limit is 8"),
        "unknown": ("unsupported_peft_type", "PROMPT_TUNING"),
        "nan": ("nonfinite_weights", "NaN"),
        "empty": ("missing_weights", "adapter_model.safetensors"),
    }.items():
        answer = load(live, name, f"bad/{name}")
        assert answer.status_code == 422, name
        assert answer.json()["error"]["code"] == code
        assert words in answer.json()["error"]["message"]
        assert str(live.adapter_root) not in answer.text
    assert answer_of(live, "one")[1].startswith("one@")


def test_an_adapter_the_engine_refuses_leaves_nothing(live: LiveServer, saved: Path) -> None:
    shutil.copytree(saved / "two", live.adapter_root / "deep" / "two")
    known = set(live.engine.loaded)
    assert load(live, "probe", "deep/two").status_code == 200
    (digest,) = set(live.engine.loaded) - known
    unload(live, "probe")
    live.call(live.service.adapters.settle())
    live.engine.behaviour.refuse_adapters[digest] = "this engine can't apply it"
    answer = load(live, "probe", "deep/two")
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "activation_failed"
    assert "can't apply it" in answer.json()["error"]["message"]
    live.call(live.service.adapters.settle())
    assert set(live.engine.loaded) == known


def test_a_bad_folder_is_known_by_name_with_its_reason(serve: Serve, saved: Path, tmp_path: Path) -> None:
    damage_config(shutil.copytree(saved / "one", tmp_path / "adapters" / "broken"), peft_type="PROMPT_TUNING")
    server = serve(folder=tmp_path)
    with pytest.raises(openai.BadRequestError, match="PROMPT_TUNING") as caught:
        server.client().completions.create(model="broken", prompt="x")
    assert caught.value.code == "adapter_load_failed"
    assert [model.id for model in server.client().models.list().data] == [BASE]
    assert httpx.get(f"{server.url}/v1/adapters/broken").json()["state"] == "failed"


def test_what_was_loaded_survives_a_restart(serve: Serve, saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved / "one", tmp_path / "adapters" / "one")
    first = serve(folder=tmp_path)
    shutil.copytree(saved / "two", first.adapter_root / "deep" / "two")
    assert load(first, "extra", "deep/two").status_code == 200
    before = [answer_of(first, name) for name in ("one", "extra")]
    first.stop()
    second = serve(folder=tmp_path)
    assert second.engine.loaded == {}, "nothing is read before somebody asks"
    assert [answer_of(second, name) for name in ("one", "extra")] == before
    assert len(list((tmp_path / "data" / "adapters" / "sha256").glob("*/*"))) == 2
