"""The body of POST /v1/responses, and the chat completion that it asks for.

Stateless: what would have to be kept from one request to the next, or fetched from elsewhere, is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from livery.api.body import Body
from livery.api.chat_tools import MAX_TOOLS, FunctionName
from livery.api.ignored import Metadata, Name, Table, Word, ignored
from livery.api.retold_body import RetoldBody
from livery.api.schemas import ModelName
from livery.api.unsupported import UNSUPPORTED_IN_RESPONSES
from livery.refusals import InvalidParameter, UnsupportedParameter

MAX_ITEMS = 4096
LOGPROBS = "message.output_text.logprobs"
TEXT_PARTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
# What clients that count on stored responses do in a second turn, and what has them send the items themselves.
SEND_ITEMS = (
    "Nothing is stored here: send the items themselves in input. Clients do so with store: false (in the AI SDK "
    "providerOptions.openai.store), or ask /v1/chat/completions."
)
# What a chat completion calls what a client of this route wrote.
NAMES = {
    r"messages.*": "input",
    r"max_(completion_)?tokens": "max_output_tokens",
    r"response_format(\.json_schema)?": "text.format",
    r"reasoning_effort": "reasoning.effort",
    r"logprobs": "include",
    r"tools\.(\d+)\.function": r"tools.\1",
    r"tool_choice\.function": "tool_choice",
}


class ContentPart(Body):
    type: str = Field(max_length=64)
    text: str | None = None
    refusal: str | None = None


class InputItem(Body):
    """A message, a call of a function, what came of it, or what the model thought."""

    type: str | None = Field(None, max_length=64)
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | list[ContentPart] | None = None
    call_id: Name | None = None
    name: Name | None = None
    arguments: str | None = None
    output: str | list[ContentPart] | None = None


class Reasoning(Body):
    effort: Word | None = None
    summary: Word | None = ignored("thoughts are shown as they are")


class TextFormat(Body):
    type: str = Field(max_length=64)


class TextOptions(Body):
    format: TextFormat | None = None
    verbosity: Word | None = ignored("models here take no such hint; say it in the input")


class FunctionTool(Body):
    type: str = Field(max_length=64)
    name: FunctionName | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ResponsesBody(RetoldBody):
    """POST /v1/responses."""

    unsupported = UNSUPPORTED_IN_RESPONSES
    names = NAMES

    input: str | list[InputItem] = Field(max_length=1 << 22)
    model: ModelName | None = None
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1, le=1 << 31)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_logprobs: int | None = Field(None, ge=0, le=20)
    include: list[Word] | None = Field(None, max_length=16)
    stream: bool | None = None
    text: TextOptions | None = None
    tools: list[FunctionTool] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: Word | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    user: Name | None = None
    metadata: Metadata | None = None
    store: bool | None = None
    background: bool | None = None
    truncation: Word | None = None
    previous_response_id: Name | None = None
    conversation: Any = None
    prompt: Any = None
    context_management: Any = None
    moderation: Any = None
    service_tier: Word | None = ignored("there is one tier")
    safety_identifier: Name | None = ignored("nobody is reported to anybody")
    prompt_cache_key: Name | None = ignored("the prefix cache finds prompts by content")
    prompt_cache_options: Table | None = ignored("the prefix cache finds prompts by content")
    prompt_cache_retention: Word | None = ignored("what isn't used for longest goes first")
    max_tool_calls: int | None = ignored("of tools that the server runs, of which there are none")
    access_programs: Table | None = ignored("there are none")
    image: Table | None = ignored("text only")

    def chat_fields(self) -> dict[str, object]:
        logprobs = LOGPROBS in (self.include or ()) or bool(self.top_logprobs)
        return {
            "model": self.model,
            "messages": self._messages(),
            "max_completion_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "logprobs": True if logprobs else None,
            "top_logprobs": self.top_logprobs if logprobs else None,
            "stream": self.stream,
            "tools": [_tool(tool, at) for at, tool in enumerate(self.tools)] if self.tools else None,
            "tool_choice": _tool_choice(self.tool_choice) if self.tools or self.tool_choice != "auto" else None,
            "parallel_tool_calls": self.parallel_tool_calls if self.tools else None,
            "response_format": self._response_format(),
            "reasoning_effort": self.reasoning.effort if self.reasoning else None,
            "user": self.user,
        }

    def _messages(self) -> list[dict[str, Any]]:
        first = [{"role": "system", "content": self.instructions}] if self.instructions is not None else []
        if isinstance(self.input, str):
            return [*first, {"role": "user", "content": self.input}]
        if not self.input or len(self.input) > MAX_ITEMS:
            raise InvalidParameter(f"input has {len(self.input)} items; send 1 to {MAX_ITEMS}.", "input")
        told = _Conversation(first)
        for at, item in enumerate(self.input):
            told.take(item, f"input.{at}")
        return told.messages

    def _response_format(self) -> dict[str, Any] | None:
        """A chat completion has one level more for schemas."""
        if self.text is None or self.text.format is None:
            return None
        fields = self.text.format.model_dump(exclude={"type"})
        kind = self.text.format.type
        return {"type": kind, "json_schema": fields} if kind == "json_schema" else {"type": kind, **fields}


class _Conversation:
    """Items in turn become messages; calls that follow an assistant's words, or each other, belong to one message."""

    def __init__(self, messages: list[dict[str, Any]]) -> None:
        self.messages = messages
        self._thought = ""

    def take(self, item: InputItem, at: str) -> None:
        kind = item.type or "message"
        if kind == "message":
            if item.role is None or item.content is None:
                raise InvalidParameter("A message needs role and content.", at)
            self._add(item.role, {"content": _text(item.content, f"{at}.content")})
        elif kind == "function_call":
            self._call(item, at)
        elif kind == "function_call_output":
            if item.call_id is None or item.output is None:
                raise InvalidParameter("A function_call_output needs call_id and output.", at)
            self._add("tool", {"tool_call_id": item.call_id, "content": _text(item.output, f"{at}.output")})
        elif kind == "reasoning":
            parts = item.content if isinstance(item.content, list) else []
            self._thought += "".join(part.text or "" for part in parts)
        else:
            remedy = SEND_ITEMS if kind == "item_reference" else "Send messages, function calls and their outputs."
            raise UnsupportedParameter(f"Items of type {kind!r} are not supported. {remedy}", f"{at}.type")

    def _add(self, role: str, fields: Mapping[str, Any]) -> None:
        message = {"role": role, **fields}
        thought, self._thought = self._thought, ""  # one that nothing of the assistant's follows belongs to nothing
        if role == "assistant" and thought:
            message["reasoning_content"] = thought
        self.messages.append(message)

    def _call(self, item: InputItem, at: str) -> None:
        if item.call_id is None or item.name is None or item.arguments is None:
            raise InvalidParameter("A function_call needs call_id, name and arguments.", at)
        if not self.messages or self.messages[-1]["role"] != "assistant":
            self._add("assistant", {"content": None})
        elif self._thought:  # it thought again between its words and this call
            own = self.messages[-1]
            own["reasoning_content"], self._thought = own.get("reasoning_content", "") + self._thought, ""
        function = {"name": item.name, "arguments": item.arguments}
        calls = self.messages[-1].setdefault("tool_calls", [])
        calls.append({"id": item.call_id, "type": "function", "function": function})


def _text(content: str | list[ContentPart], at: str) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for index, part in enumerate(content):
        field = TEXT_PARTS.get(part.type)
        if field is None:
            raise UnsupportedParameter(
                f"Content parts of type {part.type!r} are not supported; send text.", f"{at}.{index}"
            )
        text = part.text if field == "text" else part.refusal
        if text is None:
            raise InvalidParameter(f"A part of type {part.type} needs {field}.", f"{at}.{index}.{field}")
        texts.append(text)
    return "\n".join(texts)


def _tool(tool: FunctionTool, at: int) -> dict[str, Any]:
    if tool.type != "function":
        raise UnsupportedParameter(
            f"Tools of type {tool.type!r} are not supported; describe functions and call them yourself.",
            f"tools.{at}.type",
        )
    if not tool.name:
        raise InvalidParameter("A function needs a name.", f"tools.{at}.name")
    function = {
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters,
        "strict": tool.strict,
    }
    return {"type": "function", "function": {name: value for name, value in function.items() if value is not None}}


def _tool_choice(choice: str | dict[str, Any] | None) -> object:
    if isinstance(choice, dict):
        if choice.get("type") != "function" or not isinstance(choice.get("name"), str):
            raise UnsupportedParameter(
                "tool_choice takes none, auto, required or {type: function, name}.", "tool_choice"
            )
        return {"type": "function", "function": {"name": choice["name"]}}
    return choice
