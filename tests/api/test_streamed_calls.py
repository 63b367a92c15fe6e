"""Streams of tool calls as clients put them together: an entry in a chunk, whatever comes together from the engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from api.live_server import BASE
from api.scripted import ASK, CITY, TOOLS, Scripted
from livery.reading import ParserNames
from text.template_styles import HERMES

WEATHER = f'<tool_call>{{"name": "weather", "arguments": {CITY}}}</tool_call>'
NOW = '<tool_call>{"name": "now"}</tool_call>'
NAMED: Any = {"type": "function", "function": {"name": "weather"}}
ASKED: dict[str, tuple[str, dict[str, Any], list[tuple[str, str]]]] = {
    "named": (CITY, {"tool_choice": NAMED}, [("weather", CITY)]),
    "without arguments": (NOW, {}, [("now", "{}")]),
    "parallel": (WEATHER + NOW + WEATHER, {}, [("weather", CITY), ("now", "{}"), ("weather", CITY)]),
    "required": (
        f'[{{"name": "now", "arguments": {{}}}}, {{"name": "weather", "arguments": {CITY}}}]',
        {"tool_choice": "required"},
        [("now", "{}"), ("weather", CITY)],
    ),
}


@pytest.fixture(scope="module")
def hermes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scripted]:
    scripted = Scripted(HERMES, tmp_path_factory.mktemp("hermes"), ParserNames())
    yield scripted
    scripted.server.stop()


@pytest.mark.parametrize("together", [1, 7, 100])
@pytest.mark.parametrize("asked", ASKED)
def test_a_chunk_has_one_entry_of_a_call_at_most(hermes: Scripted, asked: str, together: int) -> None:
    says, fields, expected = ASKED[asked]
    hermes.behaviour.together = together
    found: dict[int, list[str]] = {}
    for choice in hermes.streamed(says, tools=TOOLS, **fields):
        calls = choice.delta.tool_calls or []
        assert len(calls) <= 1
        for call in calls:
            if call.id:
                assert call.index not in found
                found[call.index] = [call.function.name, ""]
            found[call.index][1] += call.function.arguments
    assert [(name, arguments) for name, arguments in found.values()] == expected


@pytest.mark.parametrize("asked", ASKED)
def test_the_clients_own_helper_finds_the_same_calls(hermes: Scripted, asked: str) -> None:
    says, fields, expected = ASKED[asked]
    hermes.behaviour.together, hermes.says = 7, says
    create = hermes.server.client().chat.completions.stream
    with create(model=BASE, messages=ASK, tools=TOOLS, **fields) as stream:
        message = stream.get_final_completion().choices[0].message
    calls = [(call.function.name, call.function.arguments) for call in message.tool_calls or []]
    assert [(name, json.loads(arguments)) for name, arguments in calls] == [
        (name, json.loads(arguments)) for name, arguments in expected
    ]
