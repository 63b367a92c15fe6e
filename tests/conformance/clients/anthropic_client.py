"""Anthropic's official client against /v1/messages."""

from __future__ import annotations

from typing import Any

import anthropic
import pytest
from served import ADAPTERS, BASE, URL

QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
client = anthropic.Anthropic(base_url=URL, api_key="none", max_retries=0, timeout=300)


def ask(model: str = BASE, **fields: Any) -> Any:
    return client.messages.create(**{"model": model, "max_tokens": 16, "messages": QUESTION, **fields})


@pytest.mark.parametrize("model", [BASE, *ADAPTERS])
def test_a_message(model: str) -> None:
    message = ask(model)
    assert (message.model, message.role, message.type) == (model, "assistant", "message")
    assert message.content[0].text
    assert message.stop_reason in ("end_turn", "max_tokens")
    assert 0 < message.usage.output_tokens <= 16


GREEDY = {"temperature": 0}  # a field of the API that the client has no argument for


def test_a_stream_is_put_together() -> None:
    with client.messages.stream(model=BASE, max_tokens=16, messages=QUESTION, extra_body=GREEDY) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == final.content[0].text == ask(extra_body=GREEDY).content[0].text  # type: ignore[union-attr]
    assert final.stop_reason and final.usage.output_tokens > 0


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "weather"}])
def test_a_tool_is_called_in_a_stream(choice: Any) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}}, "required": ["city"]}
    asked: Any = {"tools": [{"name": "weather", "input_schema": schema}], "tool_choice": choice}
    with client.messages.stream(model=BASE, max_tokens=120, messages=QUESTION, extra_body=GREEDY, **asked) as stream:
        final = stream.get_final_message()
    (call,) = final.content
    assert (call.type, final.stop_reason) == ("tool_use", "tool_use")
    assert isinstance(call.input["city"], str)


def test_tokens_are_counted() -> None:
    counted = client.messages.count_tokens(model=BASE, messages=QUESTION, system="Be brief.").input_tokens
    usage = ask(system="Be brief.").usage
    assert counted == usage.input_tokens + usage.cache_read_input_tokens


def test_errors_have_the_clients_types() -> None:
    with pytest.raises(anthropic.NotFoundError):
        ask("nobody")
    with pytest.raises(anthropic.BadRequestError) as caught:
        ask(max_tokens=0)
    assert caught.value.request_id
    assert "max_tokens" in str(caught.value)
