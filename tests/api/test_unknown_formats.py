"""Tools over chat templates whose calls nobody here can read: nothing is passed over in silence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from api.scripted import CITY, NOW, STRICT, TOOLS, Scripted, calls_of
from livery.chat_template import ChatTemplate
from livery.reading import ParserNames, untold_calls
from text.template_styles import GLM, HERMES, UNKNOWN

CALL = "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Zürich</arg_value>\n</tool_call>"
LISTED = f'[{{"name": "weather", "arguments": {CITY}}}]'


@pytest.fixture(scope="module", params=[GLM, UNKNOWN], ids=["glm", "unknown"])
def unread(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scripted]:
    scripted = Scripted(request.param, tmp_path_factory.mktemp("unread"), ParserNames())
    yield scripted
    scripted.server.stop()


@pytest.mark.parametrize("tools", [TOOLS, [NOW, STRICT]], ids=["loose", "strict"])
@pytest.mark.parametrize("ask", [Scripted.whole, Scripted.streamed])
def test_calls_that_could_not_be_told_from_text_are_refused_with_what_helps(
    unread: Scripted, tools: list[Any], ask: Any
) -> None:
    with pytest.raises(openai.BadRequestError, match=r"tool_choice 'required'.*--tool-parser.*profile") as refused:
        ask(unread, CALL, tools=tools)
    assert (refused.value.param, refused.value.code) == ("tools", "unsupported_parameter")


def test_what_must_be_called_and_what_is_no_call_go_on(unread: Scripted) -> None:
    choice = unread.whole(LISTED, tools=TOOLS, tool_choice="required")
    assert calls_of(choice.message) == [("weather", {"city": "Zürich"})]
    named: Any = {"type": "function", "function": {"name": "weather"}}
    assert calls_of(unread.whole(CITY, tools=TOOLS, tool_choice=named).message) == [("weather", {"city": "Zürich"})]
    assert unread.whole("x", tools=TOOLS, tool_choice="none").message.content == "x"
    own: Any = {"type": "json_object"}
    assert unread.whole("{}", tools=TOOLS, response_format=own).message.content == "{}"


def test_a_start_tells_of_a_template_whose_calls_nobody_can_read() -> None:
    unknown = ChatTemplate(GLM, {})
    assert "--tool-parser" in untold_calls(ParserNames(), unknown)
    for names, template in (
        (ParserNames(tools="none"), unknown),
        (ParserNames(tools="hermes"), unknown),
        (ParserNames(), ChatTemplate(HERMES, {})),
        (ParserNames(), ChatTemplate("{{ messages }}", {})),  # which is asked to tell no tools
        (ParserNames(), None),
    ):
        assert untold_calls(names, template) == ""


def test_an_operator_may_have_calls_come_as_text(tmp_path: Path) -> None:
    scripted = Scripted(GLM, tmp_path, ParserNames(tools="none"))
    try:
        choice = scripted.whole(CALL, tools=TOOLS)
        assert (choice.message.content, choice.finish_reason) == (CALL, "stop")
        with pytest.raises(openai.BadRequestError, match="tool_choice 'required'") as refused:
            scripted.whole(CALL, tools=[NOW, STRICT])
        assert refused.value.param == "tools.1.function.strict"
    finally:
        scripted.server.stop()
