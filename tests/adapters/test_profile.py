"""Profiles as people write them: what is taken, and what is said of what isn't."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livery_adapters.identity import version_digest
from livery_adapters.profile import (
    MAX_PROFILE_BYTES,
    ProfileInvalid,
    parse_profile,
    read_profile,
    recorded_profile,
    write_profile,
)

WHOLE: dict[str, Any] = {
    "system_prompt": "You are a pirate.",
    "system_prompt_mode": "always",
    "examples": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Ahoy: matey! é"}],
    "stop": ["<END>", "\n\n"],
    "temperature": 0.2,
    "top_p": 0.9,
    "top_k": 40,
    "min_p": 0.05,
    "max_tokens": 64,
    "bounds": {"temperature": {"max": 1}, "max_tokens": {"max": 256}},
    "chat_template": "{{ messages[0].content }}",
    "tokenizer": "adapter",
    "added_tokens": [{"id": 49152, "content": "<END>", "special": True}],
    "eos_token": "<END>",
    "tool_parser": "hermes",
    "reasoning_parser": "qwen3",
    "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}},
}


def schema_of(text: str) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": {"description": text}}}


def test_a_profile_is_the_same_however_it_is_written() -> None:
    profile = read_profile(WHOLE)
    assert profile.to_json() == WHOLE
    assert parse_profile(write_profile(profile).encode()) == profile
    assert recorded_profile(profile.to_json()) == profile


def test_what_says_nothing_is_no_profile() -> None:
    for nothing in (b"", b"{}", b"# a comment", b"stop: []", b"bounds: {temperature: {}}", b"temperature:"):
        assert parse_profile(nothing).to_json() == {}
    assert version_digest("a" * 64, 0, parse_profile(b"").to_json()) == "a" * 64


@pytest.mark.parametrize(
    ("given", "at", "words"),
    [
        ({"temprature": 1}, "temprature", "did you mean temperature?"),
        ({"zebra": 1}, "zebra", "it may give system_prompt, "),
        ({"bounds": {"temperature": {"maxx": 1}}}, "bounds.temperature.maxx", "did you mean max?"),
        ({"bounds": {"speed": {"max": 1}}}, "bounds.speed", "it may give temperature, "),
        ({"examples": [{"role": "user", "text": "a"}]}, "examples.0.text", "it may give role, content"),
        ({"temperature": 9}, "temperature", "<= 2.0"),
        ({"temperature": "0.5"}, "temperature", "got `str`"),
        ({"max_tokens": 0}, "max_tokens", ">= 1"),
        ({"max_tokens": True}, "max_tokens", "got `bool`"),
        ({"stop": "x"}, "stop", "expected `array"),
        ({"stop": ["x"] * 17}, "stop", "length <= 16"),
        ({"stop": ["x" * 257]}, "stop.0", "length <= 256"),
        ({"chat_template": "x" * 65537}, "chat_template", "length <= 65536"),
        ({"temperature": 1.5, "bounds": {"temperature": {"max": 1}}}, "temperature", "outside the profile's own"),
        ({"bounds": {"top_p": {"min": 1, "max": 0.5}}}, "bounds.top_p", "min 1 is above max 0.5"),
        ({"bounds": {"max_tokens": {"max": 0}}}, "bounds.max_tokens", "no token at all"),
        ({"examples": [{"role": "user", "content": "a"}]}, "examples", "end with the assistant's answer"),
        ({"documents": [{"title": "a"}]}, "documents.0", "text"),
        ({"documents": [{"body": "a"}]}, "documents.0.body", "it may give text, title"),
        ({"documents": [{"text": "a" * 30000}] * 5}, "documents", "150000 characters"),
        ({"examples": [{"role": "system", "content": "a"}]}, "examples.0.role", "system"),
        ({"examples": [{"role": "assistant", "content": "a" * 30000}] * 3}, "examples", "90000 characters"),
        ({"system_prompt_mode": "only"}, "system_prompt_mode", "give one"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "json_object"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "give name and schema"),
        ({"response_format": {"type": "text", "x": 1}}, "response_format.x", "unknown key"),
        ({"system_prompt": "\ud800"}, "", "JSON can't"),
        ({"response_format": schema_of("b" * MAX_PROFILE_BYTES)}, "", "at most"),
        (["temperature"], "", "got `array`"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_the_remedy(given: object, at: str, words: str) -> None:
    with pytest.raises(ProfileInvalid) as refused:
        read_profile(given)
    assert refused.value.at == at
    assert words in refused.value.reason


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"a: &x [1, 2]\nb: *x", "aliases"),
        (b"temperature: 0.1\ntemperature: 0.2", "twice"),
        (b"response_format: " + b"[" * 100, "nested deeper than 32"),
        (b"!!python/object/apply:os.system [ls]", "not YAML"),
        (b"a: [", "not YAML"),
        (b"\xff", "UTF-8"),
        (b"a" * (MAX_PROFILE_BYTES + 1), "at most"),
        (b"response_format: {type: json_schema, json_schema: {schema: {a: .inf}}}", "JSON can't"),
    ],
)
def test_hostile_yaml_is_refused_and_the_file_named(text: bytes, words: str) -> None:
    with pytest.raises(ProfileInvalid, match=r"\(in my\.yaml\)$") as refused:
        parse_profile(text, "my.yaml")
    assert words in refused.value.reason


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_a_profile_or_refused(data: bytes) -> None:
    try:
        profile = parse_profile(data)
    except ProfileInvalid:
        return
    assert read_profile(profile.to_json()) == profile
