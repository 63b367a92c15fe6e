"""Renders a conversation with a model's chat template, given what transformers' `apply_chat_template` gives it.

The template comes from the model directory only, never from a request, and runs in Jinja's sandbox. What it is given
is plain data. Knows no tokens and no HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from jinja2 import TemplateError, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

Message = Mapping[str, object]
# What a template is given under names of their own, which no keyword of a client may take.
TAKEN = frozenset({"messages", "tools", "documents", "add_generation_prompt", "continue_final_message"})
# Whose messages come first and say how to answer.
SYSTEM_ROLES = ("system", "developer")
# Stands after the final message while it is rendered, to find where that ends. transformers' words: its space tells a
# template that trims messages from one that doesn't.
FINAL_MARK = "CONTINUE_FINAL_MESSAGE_TAG "
# Names under which messages carry reasoning; templates read the first one or, gpt-oss's, the second.
REASONING = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a chat template is given: messages, and what else it may read.

    `tools` are functions as OpenAI describes them, `documents` objects with texts to answer from; None where there are
    none. `template_kwargs` are variables of the template's own. `continue_final_message`: the prompt ends inside the
    last message, for the model to go on with; it excludes `add_generation_prompt`.
    """

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, object]] | None = None
    documents: Sequence[Mapping[str, object]] | None = None
    template_kwargs: Mapping[str, object] = field(default_factory=dict)
    add_generation_prompt: bool = True
    continue_final_message: bool = False


class InvalidMessages(Exception):
    """The conversation can't be rendered; the message says why, `param` is the field at fault."""

    def __init__(self, message: str, param: str = "messages") -> None:
        super().__init__(message)
        self.param = param


class ChatTemplate:
    """One compiled template and the special tokens it refers to by name."""

    def __init__(
        self, source: str, named_tokens: Mapping[str, str], clock: Callable[[], datetime] = datetime.now
    ) -> None:
        """`clock` is what `strftime_now` tells the time by."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: clock().strftime(form)
        self._template = environment.from_string(source)
        self._named_tokens = dict(named_tokens)
        self.source = source
        tree = environment.parse(source)
        self._reads = meta.find_undeclared_variables(tree)
        self.tells_time = any(name.name == "strftime_now" for name in tree.find_all(nodes.Name))
        self._knows_developer = "developer" in source

    def reads(self, variable: str) -> bool:
        """Whether the template looks at a variable that it is given."""
        return variable in self._reads

    def render(self, chat: Conversation) -> str:
        """The prompt text up to where the assistant is to speak, or to go on. Raises InvalidMessages."""
        self._check(chat)
        messages = [_with_reasoning(self._known_role(message)) for message in chat.messages]
        if chat.continue_final_message:
            messages[-1] = {**messages[-1], "content": f"{messages[-1]['content']}{FINAL_MARK}"}
        given = {
            **self._named_tokens,
            **chat.template_kwargs,
            "messages": messages,
            "tools": chat.tools,
            "documents": chat.documents,
            "add_generation_prompt": chat.add_generation_prompt,
        }
        try:
            rendered = self._template.render(given)
        except TemplateError as error:
            raise InvalidMessages(f"the model's chat template refuses these messages: {error}") from error
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
            # Templates index and concatenate without checking, as with a message that has no content.
            raise InvalidMessages("the model's chat template can't render these messages") from error
        return self._within_final(rendered, chat) if chat.continue_final_message else rendered

    def _check(self, chat: Conversation) -> None:
        """What the template would pass over in silence is refused."""
        if chat.tools and not self.reads("tools"):
            raise InvalidMessages(
                "the model's chat template doesn't take tools; describe them in the system message instead", "tools"
            )
        if chat.documents and not self.reads("documents"):
            raise InvalidMessages(
                "the model's chat template doesn't take documents; put their text into a message instead", "documents"
            )
        if taken := TAKEN & chat.template_kwargs.keys():
            name = min(taken)
            raise InvalidMessages(
                f"{name} can't be set among the template's variables; it is a field of the request",
                f"chat_template_kwargs.{name}",
            )
        if chat.continue_final_message and chat.add_generation_prompt:
            raise InvalidMessages(
                "continue_final_message and add_generation_prompt exclude each other: a prompt ends inside the last "
                "message or where the next one begins; leave one out",
                "continue_final_message",
            )

    def _within_final(self, rendered: str, chat: Conversation) -> str:
        """The rendered text up to the end of the final message, as transformers cuts it. Raises InvalidMessages."""
        content = str(chat.messages[-1]["content"]).strip()
        at = rendered.rfind(FINAL_MARK.strip())
        if at < 0 or content not in rendered:
            raise InvalidMessages(
                "the model's chat template doesn't show the final message as it is, so that it can't be continued",
                "continue_final_message",
            )
        kept = rendered[:at]
        return kept if rendered.startswith(FINAL_MARK, at) else kept.rstrip()

    def _known_role(self, message: Message) -> Message:
        if message["role"] == "developer" and not self._knows_developer:
            return {**message, "role": "system"}
        return message


def _with_reasoning(message: Message) -> Message:
    """The message with its reasoning under the names that templates read it by, as transformers gives it."""
    reasoning = next((message[name] for name in REASONING if message.get(name) is not None), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


class _GenerationTag(Extension):
    """`{% generation %}` marks the assistant's words for training; when serving its body is just rendered."""

    tags = {"generation"}  # noqa: RUF012  (Jinja reads this attribute from the class)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML, which models have never seen in training.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
