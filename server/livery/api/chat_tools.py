"""The tools of a chat as clients send them, and what a request asks for with them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from livery.api.body import Body
from livery.refusals import InvalidParameter, UnsupportedParameter
from livery.tools.use import Function, ToolUse

MAX_TOOLS = 128  # OpenAI's bound, whichever route they come by
MAX_NAME = 128  # Anthropic's bound; OpenAI's is 64
MAX_TOOLS_CHARACTERS = 256 * 1024  # of all tools as JSON

FunctionName = Annotated[str, Field(min_length=1, max_length=MAX_NAME, pattern=r"^[a-zA-Z0-9_.-]+$")]
Schema = dict[str, Any]


class FunctionBody(Body):
    handed_on = True

    name: FunctionName
    description: str | None = None
    parameters: Schema | None = None
    strict: bool | None = None


class ToolBody(Body):
    handed_on = True  # to the chat template

    type: Annotated[str, Field(max_length=64)]
    function: FunctionBody | None = None


class NamedFunction(Body):
    name: FunctionName


class ToolChoiceBody(Body):
    type: Annotated[str, Field(max_length=64)]
    function: NamedFunction | None = None


Tools = Annotated[list[ToolBody], Field(min_length=1, max_length=MAX_TOOLS)]
ToolChoice = Literal["none", "auto", "required"] | ToolChoiceBody


def template_tools(tools: Sequence[ToolBody] | None) -> list[dict[str, Any]] | None:
    """The tools as chat templates know them: as they were sent, without what wasn't. Raises InvalidParameter."""
    if tools is None:
        return None
    plain = [_sent(tool) | ({"function": _sent(tool.function)} if tool.function else {}) for tool in tools]
    size = len(json.dumps(plain, ensure_ascii=False))
    if size > MAX_TOOLS_CHARACTERS:
        raise InvalidParameter(
            f"tools are {size} characters of JSON and may have {MAX_TOOLS_CHARACTERS}; send fewer or describe them "
            "in fewer words.",
            "tools",
        )
    return plain


def _sent(body: Body) -> dict[str, Any]:
    """The fields that were given; explicit nulls mean absent, but those inside a schema are part of it."""
    return {name: value for name, value in body.model_dump(exclude_unset=True).items() if value is not None}


def tool_use(tools: Sequence[ToolBody] | None, choice: ToolChoice | None, parallel: bool | None) -> ToolUse | None:
    """What is asked for; None where nothing is to be called. Raises InvalidParameter or UnsupportedParameter."""
    if tools is None:
        if choice is not None and choice != "none":
            raise InvalidParameter("tool_choice is only allowed when tools are given.", "tool_choice")
        return None
    functions = tuple(_function(tool, at) for at, tool in enumerate(tools))
    twice = {one.name for one in functions if sum(other.name == one.name for other in functions) > 1}
    if twice:
        raise InvalidParameter(f"Two tools have the name {min(twice)!r}; give each its own.", "tools")
    if choice == "none":
        return None
    several = parallel is not False
    if isinstance(choice, ToolChoiceBody):
        return ToolUse(functions, "named", _chosen(choice, functions), several)
    return ToolUse(functions, choice or "auto", parallel=several)


def _function(tool: ToolBody, at: int) -> Function:
    if tool.type != "function":
        raise UnsupportedParameter(
            f"Tools of type {tool.type!r} are not supported; send functions.", f"tools.{at}.type"
        )
    if tool.function is None:
        raise InvalidParameter("A tool of type 'function' needs function.", f"tools.{at}.function")
    parameters = tool.function.parameters
    if parameters is not None and parameters.get("type", "object") != "object":
        raise InvalidParameter(
            f"Invalid schema for function {tool.function.name!r}: its parameters must be of type 'object'.",
            f"tools.{at}.function.parameters",
        )
    return Function(tool.function.name, parameters, bool(tool.function.strict))


def _chosen(choice: ToolChoiceBody, functions: Sequence[Function]) -> str:
    if choice.type != "function":
        raise UnsupportedParameter(f"A tool_choice of type {choice.type!r} is not supported.", "tool_choice.type")
    if choice.function is None:
        raise InvalidParameter("tool_choice names no function.", "tool_choice.function")
    name = choice.function.name
    if all(function.name != name for function in functions):
        raise InvalidParameter(f"tool_choice names {name!r}, which is not among the tools.", "tool_choice")
    return name
