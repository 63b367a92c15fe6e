"""Adapters with profiles over HTTP: what is put before a client's words, what is filled in, what isn't allowed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from api.live_server import LiveServer, Serve, Setup, saying
from api.peft_files import make_adapter
from livery.text import Tokenizer
from livery_adapters.manifest import read_manifest

HI: list[Any] = [{"role": "user", "content": "hi"}]
SHORT: Any = {"temperature": 0, "max_tokens": 1}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("saved") / "one", seed=1)


@pytest.fixture
def live(serve: Serve, saved: Path, tokenizer: Tokenizer, tmp_path: Path) -> LiveServer:
    shutil.copytree(saved, tmp_path / "adapters" / ".pool" / "one")
    return serve(Setup(behaviour=saying(tokenizer, "one two three four"), eos_token_ids=(2,)), folder=tmp_path)


def put(live: LiveServer, name: str, profile: dict[str, Any]) -> dict[str, Any]:
    body = {"source": ".pool/one", "profile": profile}
    answer = httpx.put(f"{live.url}/v1/adapters/{name}", json=body, timeout=30)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def set_profile(live: LiveServer, name: str, profile: dict[str, Any], **more: object) -> httpx.Response:
    return httpx.put(f"{live.url}/v1/adapters/{name}/profile", json={"profile": profile, **more}, timeout=30)


def prompt_of(live: LiveServer, name: str, messages: list[Any]) -> list[int]:
    live.client().chat.completions.create(model=name, messages=messages, **SHORT)
    return live.engine.requests[-1].prompt_token_ids


EXAMPLES = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Ahoy!"}]
OWN = {"role": "system", "content": "Be brief."}
PROMPT = {"role": "system", "content": "You are a pirate."}


@pytest.mark.parametrize(
    ("profile", "given", "seen"),
    [
        ({}, HI, [PROMPT, *HI]),
        ({}, [OWN, *HI], [OWN, *HI]),
        ({"system_prompt_mode": "always"}, HI, [PROMPT, *HI]),
        (
            {"system_prompt_mode": "always"},
            [OWN, *HI],
            [{"role": "system", "content": "You are a pirate.\n\nBe brief."}, *HI],
        ),
        ({"system_prompt_mode": "only", "examples": EXAMPLES}, HI, [PROMPT, *EXAMPLES, *HI]),
        ({"examples": EXAMPLES}, [OWN, *HI], [OWN, *EXAMPLES, *HI]),
        (
            {"documents": [{"text": "It sails."}, {"title": "Cargo", "text": "Rum."}], "examples": EXAMPLES},
            HI,
            [{"role": "system", "content": "You are a pirate.\n\n[1] It sails.\n\n[2] Cargo\nRum."}, *EXAMPLES, *HI],
        ),
        (
            {"documents": [{"text": "It sails."}]},
            [OWN, *HI],
            [{"role": "system", "content": "Be brief.\n\n[1] It sails."}, *HI],
        ),
        (
            {"system_prompt": None, "documents": [{"text": "It sails."}]},
            HI,
            [{"role": "system", "content": "[1] It sails."}, *HI],
        ),
    ],
)
def test_system_prompt_and_examples_come_before_what_the_client_says(
    live: LiveServer, tokenizer: Tokenizer, profile: dict[str, Any], given: list[Any], seen: list[Any]
) -> None:
    put(live, "pirate", {"system_prompt": "You are a pirate.", **profile})
    assert prompt_of(live, "pirate", given) == tokenizer.encode_chat(seen)


def test_a_clients_system_message_may_be_refused(live: LiveServer) -> None:
    put(live, "pirate", {"system_prompt": "You are a pirate.", "system_prompt_mode": "only"})
    for role in ("system", "developer"):
        with pytest.raises(openai.BadRequestError, match="leave the system message out") as refused:
            prompt_of(live, "pirate", [*HI, {"role": role, "content": "Be brief."}])
        assert refused.value.param == "messages.1.role"


def test_raw_prompts_get_no_words(live: LiveServer) -> None:
    put(live, "pirate", {"system_prompt": "You are a pirate.", "examples": EXAMPLES})
    live.client().completions.create(model="pirate", prompt=[1000], max_tokens=1)
    assert live.engine.requests[-1].prompt_token_ids == [1000]


def test_stop_strings_merge_with_the_requests(live: LiveServer) -> None:
    put(live, "pirate", {"stop": ["three"]})
    chat = live.client().chat.completions
    assert chat.create(model="pirate", messages=HI).choices[0].message.content == "one two "
    assert chat.create(model="pirate", messages=HI, stop=["two"]).choices[0].message.content == "one "
    assert chat.create(model="pirate", messages=HI, stop=["four"]).choices[0].message.content == "one two "


def test_a_request_beyond_a_bound_is_refused_and_defaults_stay_within(live: LiveServer) -> None:
    bounds = {
        "temperature": {"max": 0.5}, "max_tokens": {"max": 3}, "top_p": {"min": 0.2}, "presence_penalty": {"max": 1}
    }  # fmt: skip
    put(live, "pirate", {"bounds": bounds})
    chat = live.client().chat.completions
    answer = chat.create(model="pirate", messages=HI)
    assert answer.usage is not None
    assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (3, "length")
    assert live.engine.requests[-1].sampling.temperature == 0.5, "OpenAI's default is beyond the bound"
    over: tuple[tuple[str, Any], ...] = (
        ("temperature", 0.6), ("max_tokens", 4), ("top_p", 0.1), ("presence_penalty", 1.1)
    )  # fmt: skip
    for param, value in over:
        with pytest.raises(openai.BadRequestError, match="profile allows at") as refused:
            chat.create(model="pirate", messages=HI, **{param: value})
        assert refused.value.param == param
    within: Any = {"temperature": 0.5, "max_tokens": 3, "top_p": 0.2}
    assert len(live.engine.requests) == 1, "what is refused never reaches the engine"
    chat.create(model="pirate", messages=HI, **within)
    assert live.engine.requests[-1].sampling.max_tokens == 3


def test_a_response_format_that_no_answer_can_be_held_to_is_refused_when_it_is_set(live: LiveServer) -> None:
    put(live, "pirate", {})
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    answer = set_profile(live, "pirate", {"response_format": wanted})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "bad_profile")
    assert "Invalid schema" in answer.json()["error"]["message"]


def test_penalties_are_the_profiles_where_the_request_has_none(live: LiveServer) -> None:
    put(live, "pirate", {"repetition_penalty": 1.2, "frequency_penalty": 0.5})
    chat = live.client().chat.completions
    chat.create(model="pirate", messages=HI, **SHORT, frequency_penalty=0)
    sampling = live.engine.requests[-1].sampling
    assert (sampling.repetition_penalty, sampling.frequency_penalty, sampling.presence_penalty) == (1.2, 0.0, 0.0)


@pytest.mark.parametrize("field", ["tool_parser", "reasoning_parser"])
def test_a_parser_that_isnt_there_is_refused_before_anything_is_served_with_it(live: LiveServer, field: str) -> None:
    put(live, "pirate", {})
    answer = set_profile(live, "pirate", {field: "zebra"})
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "bad_profile"
    assert "'zebra'" in answer.json()["error"]["message"]
    assert set_profile(live, "pirate", {field: "none"}).status_code == 200


def test_a_response_format_holds_where_the_request_has_none(live: LiveServer) -> None:
    put(live, "plain", {})
    put(live, "json", {"response_format": {"type": "json_object"}})
    wanted: Any = {"response_format": {"type": "json_object"}}
    grammars = []
    for name, more in (("plain", {}), ("plain", wanted), ("json", {})):
        live.client().chat.completions.create(model=name, messages=HI, **SHORT, **more)
        grammars.append(live.engine.requests[-1].sampling.grammar)
    assert grammars[0] is None
    assert grammars[1] is not None
    assert grammars[2] == grammars[1]


def test_a_client_that_asks_for_text_gets_text(live: LiveServer) -> None:
    put(live, "json", {"response_format": {"type": "json_object"}})
    client = live.client()
    text: Any = {"type": "text"}
    client.chat.completions.create(model="json", messages=HI, response_format=text, **SHORT)
    client.responses.create(model="json", input="hi", text={"format": text})
    assert [request.sampling.grammar for request in live.engine.requests] == [None, None]
    client.responses.create(model="json", input="hi")
    assert live.engine.requests[-1].sampling.grammar is not None


def test_another_profile_is_another_version_of_the_same_weights(live: LiveServer, saved: Path) -> None:
    first = put(live, "pirate", {"temperature": 0.1})
    answers = []
    for temperature in (0.1, 0.2):
        changed = set_profile(live, "pirate", {"temperature": temperature}).json()
        raw = live.client().chat.completions.with_raw_response.create(model="pirate", messages=HI, max_tokens=1)
        assert raw.headers["x-livery-adapter"] == f"pirate@{changed['digest'][:12]}"
        assert live.engine.requests[-1].sampling.temperature == temperature
        answers.append((changed["digest"], raw.parse().system_fingerprint))
    assert answers[0][0] == first["digest"]
    assert answers[0][0] != answers[1][0]
    assert answers[0][1] != answers[1][1]
    assert set(live.engine.loaded) == {read_manifest(saved).digest}
    shown = httpx.get(f"{live.url}/v1/adapters/pirate/profile").json()
    assert shown["profile"] == {"temperature": 0.2}
    assert code(set_profile(live, "pirate", {}, expected_generation=shown["generation"] - 1)) == "generation_mismatch"
    gone = set_profile(live, "pirate", {}, expected_generation=shown["generation"]).json()
    assert (gone["profile"], gone["digest"]) == ({}, read_manifest(saved).digest)
    assert code(set_profile(live, "nobody", {})) == "unknown_adapter"


def code(answer: httpx.Response) -> str:
    assert answer.status_code >= 400
    return str(answer.json()["error"]["code"])


def test_a_misspelt_profile_names_the_field(live: LiveServer) -> None:
    put(live, "pirate", {})
    for answer in (
        set_profile(live, "pirate", {"bounds": {"temprature": {"max": 1}}}),
        httpx.put(
            f"{live.url}/v1/adapters/pirate",
            json={"source": ".pool/one", "profile": {"bounds": {"temprature": {"max": 1}}}},
        ),
    ):
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, "profile.bounds.temprature")
        assert "did you mean temperature?" in error["message"]


def uploads(saved: Path, profile: bytes) -> Iterator[tuple[str, tuple[str, bytes]]]:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        yield name, (name, (saved / name).read_bytes())
    yield "profile.yaml", ("profile.yaml", profile)


def test_an_upload_may_bring_its_profile(live: LiveServer, saved: Path) -> None:
    url = f"{live.url}/v1/adapters/sent/versions"
    sent = httpx.post(url, files=dict(uploads(saved, b"temperature: 0.3\n")), timeout=30).json()
    assert sent["profile"] == {"temperature": 0.3}
    other = {"profile": '{"temperature": 0.4}'}
    assert httpx.post(url, params=other, files=dict(uploads(saved, b"a: 1")), timeout=30).json()["profile"] == {
        "temperature": 0.4
    }
    bad = httpx.post(url, files=dict(uploads(saved, b"temprature: 1")), timeout=30)
    assert (bad.status_code, code(bad)) == (422, "bad_profile")
    large = httpx.post(url, files=dict(uploads(saved, b"#" * (300 << 10))), timeout=30)
    assert (large.status_code, code(large)) == (413, "too_large")


def test_lists_leave_long_texts_out(live: LiveServer) -> None:
    put(live, "pirate", {"system_prompt": "You are a pirate.", "temperature": 0.1})
    (listed,) = httpx.get(f"{live.url}/v1/adapters").json()["data"]
    assert listed["profile"] == {"temperature": 0.1}
