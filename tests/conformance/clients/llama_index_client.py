"""LlamaIndex's OpenAILike, for chat and for completions."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel
from served import ADAPTERS, BASE, V1

QUESTION = [ChatMessage(role="user", content="What is the capital of France?")]


def model(name: str = BASE, *, chat: bool = True, tools: bool = False) -> OpenAILike:
    return OpenAILike(
        model=name,
        api_base=V1,
        api_key="none",
        is_chat_model=chat,
        is_function_calling_model=tools,
        max_tokens=24,
        temperature=0,
        max_retries=0,
        timeout=300,
    )


@pytest.mark.parametrize("name", [BASE, *ADAPTERS])
def test_chat(name: str) -> None:
    assert model(name).chat(QUESTION).message.content


@pytest.mark.parametrize("name", [BASE, *ADAPTERS])
def test_a_stream_is_the_answer_in_pieces(name: str) -> None:
    *_, last = model(name).stream_chat(QUESTION)
    assert last.message.content == model(name).chat(QUESTION).message.content


@pytest.mark.parametrize("chat", [True, False])
def test_complete(chat: bool) -> None:
    whole = model(chat=chat).complete("The sky is").text
    *_, last = model(chat=chat).stream_complete("The sky is")
    assert last.text == whole != ""


def test_the_asynchronous_calls() -> None:
    assert asyncio.run(model().achat(QUESTION)).message.content
    assert asyncio.run(model(chat=False).acomplete("The sky is")).text


@pytest.mark.parametrize("streamed", [False, True])
def test_a_tool_is_called(streamed: bool) -> None:
    def double(number: int) -> int:
        """Twice a number."""
        return 2 * number

    caller = model(tools=True)
    caller.max_tokens = 80
    asked: dict[str, Any] = {"user_msg": "Double 4.", "tool_required": True}
    tools = [FunctionTool.from_defaults(double)]
    if streamed:
        *_, answer = caller.stream_chat_with_tools(tools, **asked)
    else:
        answer = caller.chat_with_tools(tools, **asked)
    (call,) = caller.get_tool_calls_from_response(answer)
    assert call.tool_name == "double"
    assert isinstance(call.tool_kwargs["number"], int)


def test_a_shape_is_kept() -> None:
    class Size(BaseModel):
        big: bool

    caller = model(tools=True)
    caller.max_tokens = 80
    assert isinstance(caller.as_structured_llm(Size).chat(QUESTION).raw, Size)


def test_an_unknown_model() -> None:
    with pytest.raises(openai.NotFoundError):
        model("nobody").chat(QUESTION)
