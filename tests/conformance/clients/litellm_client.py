"""LiteLLM, by both of its ways to a server like this one."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # read at import: prices would be fetched otherwise

import litellm
import pytest
from served import ADAPTERS, BASE, V1

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}},
            "required": ["city"],
        },
    },
}
WAYS = ["openai", "hosted_vllm"]


def ask(way: str, model: str = BASE, **fields: Any) -> Any:
    fields = {"messages": QUESTION, "temperature": 0, "max_tokens": 24, **fields}
    return litellm.completion(f"{way}/{model}", api_base=V1, api_key="none", timeout=300, num_retries=0, **fields)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", [BASE, *ADAPTERS])
def test_chat(way: str, model: str) -> None:
    answer = ask(way, model)
    assert answer.choices[0].message.content
    assert answer.usage.completion_tokens > 0


@pytest.mark.parametrize("way", WAYS)
def test_a_stream_is_the_answer_in_pieces(way: str) -> None:
    whole = ask(way).choices[0].message.content
    chunks = list(ask(way, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole
    assert litellm.stream_chunk_builder(chunks).choices[0].message.content == whole


@pytest.mark.parametrize("way", WAYS)
def test_the_asynchronous_call(way: str) -> None:
    asked = litellm.acompletion(
        f"{way}/{BASE}", messages=QUESTION, api_base=V1, api_key="none", max_tokens=4, temperature=0
    )
    answer = asyncio.run(asked)
    assert answer.choices[0].finish_reason == "length"


def test_text_completion() -> None:
    answer = litellm.text_completion(
        model=f"text-completion-openai/{BASE}", prompt="The sky is", api_base=V1, api_key="none", max_tokens=4
    )
    assert answer.choices[0].text


@pytest.mark.parametrize("way", WAYS)
def test_a_tool_is_called(way: str) -> None:
    answer = ask(way, tools=[WEATHER], tool_choice="required", max_tokens=80)
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "weather"
    assert set(json.loads(call.function.arguments)) == {"city"}


@pytest.mark.parametrize("way", WAYS)
def test_a_shape_is_kept(way: str) -> None:
    schema = {"type": "object", "properties": {"big": {"type": "boolean"}}, "required": ["big"]}
    shape = {"type": "json_schema", "json_schema": {"name": "size", "schema": schema}}
    answer = ask(way, response_format=shape, max_tokens=60)
    assert isinstance(json.loads(answer.choices[0].message.content)["big"], bool)


def test_embeddings() -> None:
    answer = litellm.embedding(
        f"openai/{BASE}", input=["one", "two"], api_base=V1, api_key="none", encoding_format="float"
    )
    assert len(answer.data) == 2


@pytest.mark.parametrize("way", WAYS)
def test_an_unknown_model(way: str) -> None:
    with pytest.raises(litellm.NotFoundError, match="model_not_found"):
        ask(way, "nobody")


@pytest.mark.parametrize("way", WAYS)
def test_a_bad_value(way: str) -> None:
    with pytest.raises(litellm.BadRequestError, match="temperature"):
        ask(way, temperature=3)


@pytest.mark.parametrize("way", WAYS)
def test_a_prompt_over_the_context(way: str) -> None:
    with pytest.raises(litellm.ContextWindowExceededError):
        ask(way, messages=[{"role": "user", "content": "word " * 20000}])
