"""A profile over the base: a name with prompt, examples and documents of its own, for which no weight is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from api.live_server import BASE, LiveServer, Serve, Setup, saying
from api.peft_files import make_adapter
from api.tenants import OPERATOR, People, call, code_of, people
from livery.text import Tokenizer
from livery_adapters.weightless import CONFIG

HI: list[Any] = [{"role": "user", "content": "hi"}]
SYSTEM = {"role": "system", "content": "You are a clerk.\n\n[1] Rates\nA crate costs 3."}
EXAMPLES = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Next!"}]
PROFILE: dict[str, Any] = {
    "system_prompt": "You are a clerk.",
    "documents": [{"title": "Rates", "text": "A crate costs 3."}],
    "examples": EXAMPLES,
}


@pytest.fixture
def live(serve: Serve, tokenizer: Tokenizer, tmp_path: Path) -> LiveServer:
    return serve(Setup(behaviour=saying(tokenizer, "one two"), eos_token_ids=(2,)), folder=tmp_path)


def put(live: LiveServer, name: str = "clerk", profile: dict[str, Any] = PROFILE) -> dict[str, Any]:
    answer = httpx.put(f"{live.url}/v1/adapters/{name}", json={"source": "base", "profile": profile}, timeout=30)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def ask(live: LiveServer, model: str) -> Any:
    return live.client().chat.completions.with_raw_response.create(model=model, messages=HI, max_tokens=1)


def test_it_is_asked_for_by_name_and_runs_on_the_base(live: LiveServer, tokenizer: Tokenizer) -> None:
    added = put(live)
    assert (added["state"], added["peft_type"], added["proven"]) == ("ready", "NONE", True)
    answer = ask(live, "clerk")
    asked = live.engine.requests[-1]
    assert asked.adapter is None, "nothing is loaded, and the base's cached keys and values are shared"
    assert asked.prompt_token_ids == tokenizer.encode_chat([SYSTEM, *EXAMPLES, *HI])
    assert answer.headers["x-livery-adapter"] == f"clerk@{added['digest'][:12]}"
    assert "clerk" in [model.id for model in live.client().models.list()]
    ask(live, BASE)
    assert live.engine.requests[-1].prompt_token_ids == tokenizer.encode_chat(HI)


def test_its_profile_has_versions(live: LiveServer, tokenizer: Tokenizer) -> None:
    first = put(live)
    url = f"{live.url}/v1/adapters/clerk"
    second = httpx.put(f"{url}/profile", json={"profile": {"examples": EXAMPLES}}, timeout=30).json()
    assert second["digest"] != first["digest"]
    ask(live, "clerk")
    assert live.engine.requests[-1].prompt_token_ids == tokenizer.encode_chat([*EXAMPLES, *HI])
    ask(live, f"clerk@{first['digest'][:8]}")
    assert live.engine.requests[-1].prompt_token_ids == tokenizer.encode_chat([SYSTEM, *EXAMPLES, *HI])
    assert httpx.post(f"{url}/rollback", timeout=30).json()["digest"] == first["digest"]


def test_weights_may_come_later(live: LiveServer, tmp_path: Path) -> None:
    put(live)
    make_adapter(live.adapter_root / ".pool" / "one", seed=1)
    body = {"source": ".pool/one"}
    assert httpx.put(f"{live.url}/v1/adapters/clerk", json=body, timeout=30).json()["peft_type"] == "LORA"
    ask(live, "clerk")
    assert live.engine.requests[-1].adapter is not None
    assert httpx.post(f"{live.url}/v1/adapters/clerk/rollback", timeout=30).json()["peft_type"] == "NONE"


def test_what_is_done_with_adapters_in_memory_is_nothing_to_it(live: LiveServer) -> None:
    put(live)
    for verb in ("prefetch", "pin", "unpin"):
        answer = httpx.post(f"{live.url}/v1/adapters/clerk/{verb}", timeout=30)
        assert answer.status_code == 200, answer.text
    live.call(live.service.adapters.settle())
    ask(live, "clerk")
    rows = httpx.get(f"{live.url}/v1/status", timeout=30).json()["adapters"]
    row = next(row for row in rows["data"] if row["name"] == "clerk")
    assert (row["tier"], row["requests"], row["bytes"] < 200) == ("device", 1, True)
    assert httpx.delete(f"{live.url}/v1/adapters/clerk", timeout=30).status_code == 200
    with pytest.raises(openai.NotFoundError):
        ask(live, "clerk")


def test_it_has_nothing_to_be_added_to_others(live: LiveServer) -> None:
    put(live)
    make_adapter(live.adapter_root / ".pool" / "one", seed=1)
    httpx.put(f"{live.url}/v1/adapters/one", json={"source": ".pool/one"}, timeout=30)
    with pytest.raises(openai.BadRequestError, match="clerk is a profile over the base and has no weights") as refused:
        ask(live, "one+clerk")
    assert refused.value.param == "model"


def test_its_configuration_is_uploaded_alone(live: LiveServer) -> None:
    url = f"{live.url}/v1/adapters/clerk/versions"
    files = {"adapter_config.json": CONFIG, "profile.yaml": b"system_prompt: You are a clerk.\n"}
    added = httpx.post(url, files=files, timeout=30).json()
    assert (added["peft_type"], added["profile"]) == ("NONE", {"system_prompt": "You are a clerk."})
    with_settings = {"adapter_config.json": b'{"peft_type": "NONE", "r": 8}'}
    refused = httpx.post(url, files=with_settings, timeout=30).json()["error"]
    assert (refused["code"], "without weights has no settings" in refused["message"]) == ("bad_field", True)
    lora = httpx.post(url, files={"adapter_config.json": b'{"peft_type": "LORA"}'}, timeout=30).json()["error"]
    assert lora["code"] == "missing_weights"


def test_a_key_that_may_not_ask_the_base_cant_under_another_name(serve: Serve, tokenizer: Tokenizer) -> None:
    who = people(serve(Setup(behaviour=saying(tokenizer, "one two"), eos_token_ids=(2,))))
    who = People(who.server, {**who.keys, "shut-out": who.server.make_key("acme", role="owner", allow=("own",))})
    body = {"source": "base", "profile": PROFILE}
    refused = call(who, "shut-out", "PUT", "/v1/adapters/clerk", json=body)
    assert code_of(refused) == (403, "source_not_allowed")
    assert call(who, "acme-owner", "PUT", "/v1/adapters/clerk", json=body).status_code == 200
    asked = {"model": "clerk", "messages": HI, "max_tokens": 1}
    assert call(who, "acme-user", "POST", "/v1/chat/completions", json=asked).status_code == 200
    assert call(who, OPERATOR, "GET", "/v1/adapters/acme/clerk").json()["owner"] == "acme"
