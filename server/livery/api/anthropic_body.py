"""The body of POST /v1/messages, Anthropic's way to ask, and the chat completion that it asks for."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import Field

from livery.api.body import Body
from livery.api.chat_tools import MAX_TOOLS, FunctionName
from livery.api.ignored import Name, Table, Word, ignored
from livery.api.retold_body import RetoldBody
from livery.api.schemas import ModelName, Text
from livery.api.unsupported import UNSUPPORTED_IN_ANTHROPICS
from livery.refusals import InvalidParameter, UnsupportedParameter

# What a chat completion calls what a client of this route wrote.
NAMES = {
    r"messages.*": "messages",
    r"max_completion_tokens": "max_tokens",
    r"stop": "stop_sequences",
    r"response_format(\.json_schema)?": "output_config.format",
    r"reasoning_effort": "output_config.effort",
    r"user": "metadata.user_id",
    r"tools\.(\d+)\.function\.parameters": r"tools.\1.input_schema",
    r"tools\.(\d+)\.function": r"tools.\1",
    r"tool_choice\.function": "tool_choice",
}
CHOICES = {"auto": "auto", "any": "required", "none": "none"}  # of tools: Anthropic's words and OpenAI's


class ContentBlock(Body):
    """A stretch of a message: text, a call of a tool, what came of it, or a thought."""

    type: str = Field(max_length=64)
    text: str | None = None
    thinking: str | None = None
    id: Name | None = None
    name: Name | None = None
    input: dict[str, Any] | None = None
    tool_use_id: Name | None = None
    content: str | list[ContentBlock] | None = None


class InputMessage(Body):
    role: Literal["user", "assistant", "system"]
    content: str | list[ContentBlock]


class MessagesTool(Body):
    name: FunctionName
    type: Word | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None


class MessagesToolChoice(Body):
    type: Word
    name: FunctionName | None = None
    disable_parallel_tool_use: bool | None = None


class MessagesMetadata(Body):
    user_id: Name | None = None


class OutputFormat(Body):
    type: Word
    schema_: dict[str, Any] | None = Field(None, alias="schema")


class OutputConfig(Body):
    format: OutputFormat | None = None
    effort: Word | None = None


class CountTokensBody(RetoldBody):
    """POST /v1/messages/count_tokens: what a message would read."""

    unsupported = UNSUPPORTED_IN_ANTHROPICS
    names = NAMES

    messages: list[InputMessage] = Field(min_length=1, max_length=4096)
    model: ModelName | None = None
    system: str | list[ContentBlock] | None = None
    tools: list[MessagesTool] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: MessagesToolChoice | None = None
    output_config: OutputConfig | None = None
    thinking: Table | None = ignored("models think or don't, as their template says")
    cache_control: Table | None = ignored("the prefix cache finds prompts by content")

    def chat_fields(self) -> dict[str, object]:
        system = [] if self.system is None else [{"role": "system", "content": _text(self.system, "system")}]
        told = [message for at, one in enumerate(self.messages) for message in _messages(one, f"messages.{at}")]
        config = self.output_config
        return {
            "model": self.model,
            "messages": [*system, *told],
            **self._continued(),
            "tools": [_tool(tool, at) for at, tool in enumerate(self.tools)] if self.tools else None,
            **_tool_choice(self.tool_choice),
            "response_format": _response_format(config.format) if config and config.format else None,
            "reasoning_effort": config.effort if config else None,
        }

    def _continued(self) -> dict[str, object]:
        """What the assistant has begun to say, it goes on with, unless a chat completion's field says otherwise."""
        said = (self.model_extra or {}).get("continue_final_message") is not None
        return {"continue_final_message": True} if self.messages[-1].role == "assistant" and not said else {}


class MessagesBody(CountTokensBody):
    """POST /v1/messages."""

    max_tokens: int = Field(ge=1, le=1 << 31)
    stop_sequences: list[Text] | None = Field(None, max_length=16)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=0, le=1 << 31)
    stream: bool | None = None
    metadata: MessagesMetadata | None = None
    container: Any = None
    mcp_servers: Any = None
    service_tier: Word | None = ignored("there is one tier")
    inference_geo: Word | None = ignored("it is computed where this server is")
    speed: Word | None = ignored("there is one speed")
    diagnostics: Table | None = ignored("none are kept")
    user_profile_id: Name | None = ignored("nothing is stored")
    workspace_id: Name | None = ignored("nothing is stored")

    def chat_fields(self) -> dict[str, object]:
        return {
            **super().chat_fields(),
            "max_completion_tokens": self.max_tokens,
            "stop": self.stop_sequences or None,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "stream": self.stream,
            "user": self.metadata.user_id if self.metadata else None,
        }


def _messages(message: InputMessage, at: str) -> list[dict[str, Any]]:
    """One message of theirs: results of tools are messages of their own in a chat, calls belong to the assistant's."""
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    found: list[dict[str, Any]] = []
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for index, block in enumerate(message.content):
        place = f"{at}.content.{index}"
        if block.type == "tool_use" and message.role == "assistant":
            calls.append(_call(block, place))
        elif block.type == "tool_result" and message.role == "user":
            if block.tool_use_id is None:
                raise InvalidParameter("A tool_result needs tool_use_id.", f"{place}.tool_use_id")
            content = _text(block.content or "", f"{place}.content")
            found.append({"role": "tool", "tool_call_id": block.tool_use_id, "content": content})
        elif block.type == "thinking" and message.role == "assistant":
            thoughts.append(block.thinking or "")
        elif block.type != "redacted_thinking":
            texts.append(_block_text(block, place))
    if texts or calls or thoughts or not found:
        own: dict[str, Any] = {"role": message.role, "content": "\n".join(texts)}
        own |= {"tool_calls": calls} if calls else {}
        own |= {"reasoning_content": "".join(thoughts)} if thoughts else {}
        found.append(own)
    return found


def _call(block: ContentBlock, at: str) -> dict[str, Any]:
    if block.id is None or block.name is None:
        raise InvalidParameter("A tool_use needs id, name and input.", at)
    function = {"name": block.name, "arguments": json.dumps(block.input or {}, ensure_ascii=False)}
    return {"id": block.id, "type": "function", "function": function}


def _text(content: str | list[ContentBlock], at: str) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(_block_text(block, f"{at}.{index}") for index, block in enumerate(content))


def _block_text(block: ContentBlock, at: str) -> str:
    if block.type != "text":
        raise UnsupportedParameter(f"Blocks of type {block.type!r} are not supported here; send text.", at)
    if block.text is None:
        raise InvalidParameter("A text block needs text.", f"{at}.text")
    return block.text


def _tool(tool: MessagesTool, at: int) -> dict[str, Any]:
    if tool.type not in (None, "custom"):
        raise UnsupportedParameter(
            f"Tools of type {tool.type!r} are not supported; describe tools and run them yourself.", f"tools.{at}.type"
        )
    fields = tool.model_dump(include={"name", "description", "strict"}, exclude_none=True)
    parameters = {} if tool.input_schema is None else {"parameters": tool.input_schema}
    return {"type": "function", "function": fields | parameters}


def _tool_choice(choice: MessagesToolChoice | None) -> dict[str, object]:
    if choice is None:
        return {}
    parallel = {"parallel_tool_calls": False} if choice.disable_parallel_tool_use else {}
    if choice.type == "tool":
        if not choice.name:
            raise InvalidParameter("tool_choice of type tool needs a name.", "tool_choice.name")
        return {"tool_choice": {"type": "function", "function": {"name": choice.name}}, **parallel}
    if choice.type not in CHOICES:
        raise InvalidParameter(f"tool_choice takes {', '.join(CHOICES)} or tool.", "tool_choice.type")
    return {"tool_choice": CHOICES[choice.type], **parallel}


def _response_format(form: OutputFormat) -> dict[str, Any]:
    if form.type != "json_schema" or form.schema_ is None:
        raise InvalidParameter("format takes type json_schema with a schema.", "output_config.format")
    return {"type": "json_schema", "json_schema": {"name": "output", "schema": form.schema_, "strict": True}}
