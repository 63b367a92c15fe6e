"""POST /v1/messages by its wire, as Anthropic's documentation has it; the official client runs in tests/conformance."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from api.live_server import BASE, LiveServer, Serve, Setup, saying
from livery.api.anthropic_body import MessagesBody
from livery.engine.fake import Behaviour
from livery.text import Tokenizer

TEXT = "Ahoy, wörld 🙂!"
EOS = 2
BODY: dict[str, Any] = {"model": BASE, "max_tokens": 64, "messages": [{"role": "user", "content": "Hi"}]}


def ending(tokenizer: Tokenizer) -> Setup:
    """An engine that says the text and then, of itself, no more."""
    ids = [*tokenizer.encode(TEXT), EOS]
    return Setup(Behaviour(script=lambda _: ids), max_model_len=4096, eos_token_ids=(EOS,))


@pytest.fixture(scope="module")
def speaking(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    server = LiveServer(ending(tokenizer), tokenizer, tmp_path_factory.mktemp("says"))
    server.start()
    yield server
    server.stop()


def post(server: LiveServer, body: dict[str, Any], path: str = "/v1/messages", **headers: str) -> httpx.Response:
    return httpx.post(server.url + path, json=body, headers=headers, timeout=30)


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    found = []
    for block in answer.text.strip().split("\n\n"):
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def test_a_message_is_answered(speaking: LiveServer, tokenizer: Tokenizer) -> None:
    system = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    extra = {"system": system, "temperature": 0.5, "top_k": 7, "stop_sequences": ["xyz"], "metadata": {"user_id": "me"}}
    answer = post(speaking, {**BODY, **extra})
    message = answer.json()
    assert answer.status_code == 200
    assert answer.headers["request-id"] == answer.headers["x-request-id"]
    assert (message["type"], message["role"], message["model"]) == ("message", "assistant", BASE)
    assert message["content"] == [{"type": "text", "text": TEXT, "citations": None}]
    assert (message["stop_reason"], message["stop_sequence"]) == ("end_turn", None)
    request = speaking.engine.requests[-1]
    usage = message["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == len(request.prompt_token_ids)
    assert (request.sampling.temperature, request.sampling.top_k, request.sampling.max_tokens) == (0.5, 7, 64)
    assert "system\nBe brief." in tokenizer.decode_all(request.prompt_token_ids)


def test_an_answer_that_is_cut_says_so(speaking: LiveServer) -> None:
    message = post(speaking, {**BODY, "max_tokens": 2}).json()
    assert (message["stop_reason"], message["usage"]["output_tokens"]) == ("max_tokens", 2)


@pytest.mark.parametrize(
    ("sequences", "met", "text"),
    [(["xyz", "wörld"], "wörld", "Ahoy, "), (["xyz"], None, TEXT), (["xyz", "<|im_end|>"], "<|im_end|>", TEXT)],
)
def test_the_stop_sequence_that_ended_it_is_said(
    speaking: LiveServer, sequences: list[str], met: str | None, text: str
) -> None:
    body = {**BODY, "stop_sequences": sequences}
    wanted = {"stop_reason": "stop_sequence" if met else "end_turn", "stop_sequence": met}
    message = post(speaking, body).json()
    assert {name: message[name] for name in wanted} == wanted
    assert [block["text"] for block in message["content"]] == [text]
    told = events(post(speaking, {**body, "stream": True}))
    assert {name: told[-2]["delta"][name] for name in wanted} == wanted


def test_a_stream_has_every_event_in_order(speaking: LiveServer) -> None:
    told = events(post(speaking, {**BODY, "stream": True}))
    kinds = [event["type"] for event in told]
    deltas = kinds.count("content_block_delta")
    assert deltas > 1
    assert kinds == [
        "message_start",
        "ping",
        "content_block_start",
        *["content_block_delta"] * deltas,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert "".join(event["delta"]["text"] for event in told if event["type"] == "content_block_delta") == TEXT
    assert told[0]["message"]["content"] == [] and told[0]["message"]["stop_reason"] is None
    whole = post(speaking, BODY).json()
    assert told[-2]["delta"]["stop_reason"] == whole["stop_reason"]
    assert told[-2]["usage"]["output_tokens"] == whole["usage"]["output_tokens"] > 0


def test_tokens_are_counted_as_they_would_be_read(speaking: LiveServer) -> None:
    counted = post(speaking, {"model": BASE, "messages": BODY["messages"]}, "/v1/messages/count_tokens").json()
    post(speaking, BODY)
    assert counted == {"input_tokens": len(speaking.engine.requests[-1].prompt_token_ids)}


def test_calls_results_and_thoughts_find_their_messages() -> None:
    body = MessagesBody.model_validate(
        {
            "max_tokens": 5,
            "messages": [
                {"role": "user", "content": "Weather?"},
                {"role": "assistant", "content": [
                    {"type": "thinking", "thinking": "Look.", "signature": "x"}, {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "t1", "name": "look", "input": {"at": "Köln"}},
                ]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "sun"}]},
                    {"type": "text", "text": "And now?"},
                ]},
            ],
        }
    )  # fmt: skip
    messages = body.to_chat().messages
    assert [(message.role, message.content) for message in messages] == [
        ("user", "Weather?"), ("assistant", "I look."), ("tool", "sun"), ("user", "And now?"),
    ]  # fmt: skip
    assert messages[1].tool_calls == [
        {"id": "t1", "type": "function", "function": {"name": "look", "arguments": '{"at": "Köln"}'}}
    ]
    assert messages[2].tool_call_id == "t1"
    assert [message.reasoning_content for message in messages] == [None, "Look.", None, None]


def test_what_the_assistant_began_it_goes_on_with(speaking: LiveServer, tokenizer: Tokenizer) -> None:
    post(speaking, {**BODY, "messages": [*BODY["messages"], {"role": "assistant", "content": "Once upon"}]})
    prompt = tokenizer.decode_all(speaking.engine.requests[-1].prompt_token_ids)
    assert prompt.endswith("Once upon")


@pytest.mark.parametrize(
    ("body", "status", "kind", "said"),
    [
        ({"max_tokens": None}, 400, "invalid_request_error", "max_tokens"),
        ({"messages": []}, 400, "invalid_request_error", "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, 400, "invalid_request_error",
         "messages.0.content.0"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, 400, "invalid_request_error",
         "tool_use_id"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, 400, "invalid_request_error", "tools.0.type"),
        ({"tool_choice": {"type": "sometimes"}}, 400, "invalid_request_error", "tool_choice.type"),
        ({"container": "c"}, 400, "invalid_request_error", "container"),
        ({"stop_sequences": [""]}, 400, "invalid_request_error", "stop_sequences"),
        ({"max_tokens": 5000}, 400, "invalid_request_error", "maximum context length"),
        ({"model": "nobody"}, 404, "not_found_error", "nobody"),
    ],
)  # fmt: skip
def test_errors_have_anthropics_shape(
    speaking: LiveServer, body: dict[str, Any], status: int, kind: str, said: str
) -> None:
    answer = post(speaking, {**BODY, **body})
    assert answer.status_code == status
    assert answer.json()["type"] == "error"
    assert answer.json()["error"]["type"] == kind
    assert said in answer.json()["error"]["message"]


def test_the_key_may_come_in_anthropics_header(serve: Serve) -> None:
    server = serve(Setup(api_key="secret"))
    refused = post(server, BODY, **{"x-api-key": "wrong"})
    assert (refused.status_code, refused.json()["error"]["type"]) == (401, "authentication_error")
    assert post(server, BODY).status_code == 401
    assert post(server, BODY, **{"x-api-key": "secret"}).status_code == 200
    assert post(server, BODY, authorization="Bearer secret").status_code == 200
    assert post(server, BODY, authorization="Bearer wrong", **{"x-api-key": "secret"}).status_code == 401


def test_a_failure_in_the_middle_is_the_last_event(serve: Serve, tokenizer: Tokenizer) -> None:
    behaviour = saying(tokenizer, TEXT)
    behaviour.fail_after = 3
    server = serve(Setup(behaviour))
    last = events(post(server, {**BODY, "stream": True}))[-1]
    assert last["type"] == "error" and last["error"]["type"] == "api_error"
