"""Calls of the demo model, which was hardly trained to make any: required and named ones are valid all the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from server.running import SMALL, RunningServer, livery_serve

MODEL = "smollm2-135m-instruct"
ASK: list[Any] = [{"role": "user", "content": "What is the weather in Paris in celsius?"}]
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 12},
                "unit": {"$ref": "#/$defs/unit"},
            },
            "required": ["city", "unit"],
            "$defs": {"unit": {"enum": ["celsius", "fahrenheit"]}},
        },
    },
}
NOW: dict[str, Any] = {"type": "function", "function": {"name": "now"}}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("served")
    (folder / "adapters").mkdir()
    with livery_serve(MODEL, folder / "adapters", folder, "--tool-parser", "hermes", *SMALL) as running:
        yield running


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_calls_that_must_be_made_are_valid(served: RunningServer, choice: Any, temperature: float) -> None:
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", timeout=60)
    answer = client.chat.completions.create(
        model=MODEL,
        messages=ASK,
        tools=[WEATHER, NOW],  # type: ignore[list-item]
        tool_choice=choice,
        parallel_tool_calls=False,
        temperature=temperature,
        seed=3,
        max_tokens=80,
    ).choices[0]
    assert answer.finish_reason == "tool_calls"
    assert answer.message.content is None
    (call,) = answer.message.tool_calls or []
    assert call.type == "function"
    arguments = json.loads(call.function.arguments)
    if call.function.name == "now":
        assert choice == "required"
        assert arguments == {}
    else:
        assert call.function.name == "weather"
        assert arguments.keys() == {"city", "unit"}
        assert arguments["unit"] in ("celsius", "fahrenheit")
        assert len(arguments["city"]) <= 12
