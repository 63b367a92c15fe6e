"""Every field that OpenAI or vLLM has is honoured, knowingly ignored or refused; what is unknown is noticed."""

from __future__ import annotations

from typing import Any, get_type_hints

import httpx
import openai
import pytest
from openai.types import completion_create_params
from openai.types.chat import ChatCompletionStreamOptionsParam
from openai.types.chat import completion_create_params as chat_create_params

from api.field_table import HONOURED, IGNORES, PAGE, REFUSED, between_marks, fields, table
from api.live_server import BASE, LiveServer, Serve, Setup
from livery.api.body import MAX_UNKNOWN
from livery.api.schemas import ChatCompletionBody, CompletionBody

CHAT: dict[str, Any] = {"model": BASE, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
TEXT: dict[str, Any] = {"model": BASE, "prompt": "Hi", "max_tokens": 2}
# The fields of vLLM's ChatCompletionRequest and CompletionRequest that OpenAI doesn't have, as of vLLM's main branch
# in 2026-11 (vllm/entrypoints/openai/{chat_completion,completion}/protocol.py at 002032ee).
VLLM_BOTH = {
    "use_beam_search", "top_k", "min_p", "repetition_penalty", "watermarking", "length_penalty", "stop_token_ids",
    "include_stop_str_in_output", "ignore_eos", "min_tokens", "skip_special_tokens",
    "spaces_between_special_tokens", "truncate_prompt_tokens", "truncation_side", "prompt_logprobs",
    "logprob_token_ids", "allowed_token_ids", "bad_words", "echo", "add_special_tokens", "structured_outputs",
    "priority", "request_id", "session_id", "return_tokens_as_token_ids", "return_token_ids",
    "routed_experts_prompt_start", "return_token_offsets", "return_mm_kwargs", "cache_salt", "kv_transfer_params",
    "ec_transfer_params", "vllm_xargs", "repetition_detection", "thinking_token_budget", "stream_interval",
    "response_format", "stream_options.continuous_usage_stats",
}  # fmt: skip
VLLM_CHAT = {
    "include_reasoning", "add_generation_prompt", "continue_final_message", "documents", "chat_template",
    "chat_template_kwargs", "media_io_kwargs", "mm_processor_kwargs", "return_prompt_text",
}  # fmt: skip


def post(server: LiveServer, body: dict[str, Any], path: str = "/v1/chat/completions") -> httpx.Response:
    return httpx.post(server.url + path, json=body, timeout=30)


def test_the_readme_has_the_table_as_it_is() -> None:
    assert between_marks(PAGE.read_text(encoding="utf-8")) == table(), "run: make field-table"


def test_every_field_of_openai_and_vllm_is_one_of_three() -> None:
    chat = fields(ChatCompletionBody)
    text = fields(CompletionBody)
    options = {f"stream_options.{name}" for name in get_type_hints(ChatCompletionStreamOptionsParam)}
    wanted = {"stream", *options, *get_type_hints(chat_create_params.CompletionCreateParamsBase)}
    assert not (wanted | VLLM_BOTH | VLLM_CHAT) - set(chat)
    wanted = {"stream", *options, *get_type_hints(completion_create_params.CompletionCreateParamsBase)}
    assert not (wanted | VLLM_BOTH | {"prompt_embeds"}) - set(text)
    for known in (chat, text):
        assert {entry.status.partition(" ")[0] for entry in known.values()} == {HONOURED, IGNORES, REFUSED}


def test_no_field_is_both_in_a_schema_and_refused() -> None:
    for body in (ChatCompletionBody, CompletionBody):
        assert not {rule.name for rule in body.unsupported} & set(body.model_fields), body


def test_what_is_ignored_is_taken_and_bounded(server: LiveServer) -> None:
    extra = {
        "metadata": {"run": "7"}, "store": True, "safety_identifier": "x", "prompt_cache_key": "k", "verbosity": "low",
        "prompt_cache_retention": "24h", "prompt_cache_options": {"ttl": "1h"}, "priority": -3, "request_id": "mine",
        "prediction": {"type": "content", "content": "Hello"}, "modalities": ["text"], "user": "somebody",
        "stream": True, "stream_options": {"include_obfuscation": True},
    }  # fmt: skip
    assert post(server, {**CHAT, **extra}).status_code == 200
    for field, value in (
        ("metadata", {str(index): "x" for index in range(17)}),
        ("metadata", {"x": "y" * 513}),
        ("safety_identifier", "x" * 513),
        ("user", "x" * 513),
        ("store", "yes"),
    ):
        answer = post(server, {**CHAT, field: value})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"].startswith(field)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("audio", {"voice": "alloy", "format": "wav"}),
        ("modalities", ["text", "audio"]),
        ("web_search_options", {}),
        ("moderation", {"model": "omni"}),
        ("repetition_detection", {"max_pattern_size": 3}),
        ("truncation_side", "left"),
    ],
)
def test_what_is_refused_is_named(server: LiveServer, field: str, value: object) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        server.client().chat.completions.create(**CHAT, extra_body={field: value})
    assert (caught.value.param, caught.value.code) == (field, "unsupported_parameter")


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
        {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
        {"type": "file", "file": {"file_id": "f"}},
    ],
)
def test_parts_that_are_no_text_are_named(server: LiveServer, part: dict[str, Any]) -> None:
    content = [{"type": "text", "text": "See:"}, part]
    answer = post(server, {**CHAT, "messages": [{"role": "user", "content": content}]})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "messages.0.content.1"
    assert answer.json()["error"]["code"] == "unsupported_parameter"


def test_special_tokens_are_added_by_default_to_prompts_and_by_the_template_to_chats(server: LiveServer) -> None:
    assert post(server, {**CHAT, "add_special_tokens": False}).status_code == 200
    assert post(server, {**CHAT, "add_special_tokens": True}).json()["error"]["param"] == "add_special_tokens"
    for asked in (True, False):
        assert post(server, {**TEXT, "add_special_tokens": asked}, "/v1/completions").status_code == 200


def test_unknown_fields_are_ignored_counted_and_logged_once(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    server = serve()
    caplog.set_level("INFO", logger="livery.api")
    for _ in range(2):
        assert post(server, {**CHAT, "temprature": 0, "x" * 10_000: 1}).status_code == 200
    assert "livery_unknown_fields_total 4.0" in httpx.get(f"{server.url}/metrics").text
    said = [record.getMessage() for record in caplog.records if record.name == "livery.api"]
    assert len(said) == 2
    assert "'temprature'" in said[0]
    assert len(said[1]) < 200


def test_fields_inside_objects_are_unknown_too(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    server = serve(Setup(eos_token_ids=(2,)))
    caplog.set_level("INFO", logger="livery.api")
    said = {"role": "assistant", "content": "Hi", "mood": 1, "refusal": None, "annotations": [], "function_call": None}
    parts = [{"type": "text", "text": "Hi", "colour": "red"}]
    tool = {"type": "function", "function": {"name": "f", "seen": "by the template"}}
    body = {
        **CHAT,
        "messages": [said, said, {"role": "user", "content": parts}],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": {"type": "object"}, "strikt": True},
        },
        "tools": [tool],
        "tool_choice": "none",
        "temprature": None,
    }
    answer = post(server, body)
    assert answer.status_code == 200, answer.text
    assert "livery_unknown_fields_total 4.0" in httpx.get(f"{server.url}/metrics").text
    told = " ".join(record.getMessage() for record in caplog.records if record.name == "livery.api")
    for name in ("messages.N.mood", "messages.N.content.N.colour", "response_format.json_schema.strikt"):
        assert told.count(f"'{name}'") == 1, told


def test_unknown_fields_of_one_request_are_bounded() -> None:
    messages = [{"role": "user", "content": "Hi", "a": 1, "b": 2}] * (MAX_UNKNOWN // 2 + 1)
    body = ChatCompletionBody.model_validate({"messages": messages})
    assert len(body.unknown_fields) == MAX_UNKNOWN


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"structured_outputs": {"regex": "a", "whitespace_pattern": " "}}, "structured_outputs.whitespace_pattern"),
        (
            {"structured_outputs": {"json": {}, "disable_any_whitespace": True}},
            "structured_outputs.disable_any_whitespace",
        ),
        (
            {"structured_outputs": {"json": {}, "disable_additional_properties": True}},
            "structured_outputs.disable_additional_properties",
        ),
        (
            {"messages": [*CHAT["messages"], {"role": "assistant", "function_call": {"name": "f", "arguments": ""}}]},
            "messages.1.function_call",
        ),
    ],
)
def test_what_is_refused_inside_objects_is_named(server: LiveServer, fields: dict[str, Any], param: str) -> None:
    error = post(server, {**CHAT, **fields}).json()["error"]
    assert (error["param"], error["code"]) == (param, "unsupported_parameter")
    assert error["message"].startswith(f"{param} is not supported.")


def test_strict_servers_refuse_unknown_fields_inside_objects_and_take_harmless_ones(serve: Serve) -> None:
    server = serve(Setup(strict_params=True, eos_token_ids=(2,)))
    fields = {"regex": "a", "disable_any_whitespace": False, "disable_fallback": True, "whitespace_pattern": None}
    answer = post(server, {**CHAT, "structured_outputs": fields})
    assert answer.status_code == 200, answer.text
    error = post(server, {**CHAT, "messages": [{**CHAT["messages"][0], "mood": 1}]}).json()["error"]
    assert (error["param"], error["code"]) == ("messages.0.mood", "unrecognized_request_argument")


def test_strict_servers_refuse_unknown_fields(serve: Serve) -> None:
    server = serve(Setup(strict_params=True))
    with pytest.raises(openai.BadRequestError) as caught:
        server.client().chat.completions.create(**CHAT, extra_body={"temprature": 0})
    assert (caught.value.param, caught.value.code) == ("temprature", "unrecognized_request_argument")
    everything = {name: None for name in fields(ChatCompletionBody) if "." not in name and name not in CHAT}
    assert post(server, {**CHAT, **everything}).status_code == 200


def test_the_service_tier_is_said_where_it_was_asked_for(server: LiveServer) -> None:
    client = server.client()
    assert client.chat.completions.create(**CHAT, service_tier="auto").service_tier == "default"
    assert "service_tier" not in client.chat.completions.create(**CHAT).model_fields_set
    with client.chat.completions.create(**CHAT, service_tier="flex", stream=True) as stream:
        assert {chunk.service_tier for chunk in stream} == {"default"}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_usage_can_come_with_every_chunk(server: LiveServer, path: str) -> None:
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    client = server.client()
    if path.endswith("chat/completions"):
        chunks: list[Any] = list(client.chat.completions.create(**CHAT, stream=True, stream_options=options))
    else:
        chunks = list(client.completions.create(**TEXT, stream=True, stream_options=options))
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[0] == 1 and counts[-1] == 2
    assert chunks[-1].choices == []
    assert {chunk.usage.prompt_tokens for chunk in chunks} == {chunks[-1].usage.prompt_tokens}
    assert all(chunk.usage.prompt_tokens_details is not None for chunk in chunks)


def test_continuous_usage_needs_usage(server: LiveServer) -> None:
    body = {**CHAT, "stream": True, "stream_options": {"continuous_usage_stats": True}}
    assert '"usage"' not in post(server, body).text
