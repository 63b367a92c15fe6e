"""Renders a conversation with the base model's own chat template. Knows no tokens and no HTTP.

The template comes from the model directory only, never from a request or an adapter, and runs in Jinja's
sandbox. Messages reach it as plain data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

Message = Mapping[str, object]


class InvalidMessages(Exception):
    """The conversation can't be rendered; the message says why, `param` is the field at fault."""

    def __init__(self, message: str, param: str = "messages") -> None:
        super().__init__(message)
        self.param = param


class ChatTemplate:
    """One compiled template and the special tokens it refers to by name."""

    def __init__(self, source: str, named_tokens: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        self._template = environment.from_string(source)
        self._named_tokens = dict(named_tokens)
        self._knows_developer = "developer" in source

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt text up to where the assistant is to speak. Raises InvalidMessages."""
        try:
            return self._template.render(
                messages=[self._known_role(message) for message in messages],
                add_generation_prompt=True,
                tools=None,
                documents=None,
                **self._named_tokens,
            )
        except TemplateError as error:
            raise InvalidMessages(f"the model's chat template refuses these messages: {error}") from error
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            # Templates index and concatenate without checking, as with a message that has no content.
            raise InvalidMessages("the model's chat template can't render these messages") from error

    def _known_role(self, message: Message) -> Message:
        if message["role"] == "developer" and not self._knows_developer:
            return {**message, "role": "system"}
        return message


class _GenerationTag(Extension):
    """`{% generation %}` marks the assistant's words for training; when serving its body is just rendered."""

    tags = {"generation"}  # noqa: RUF012  (Jinja reads this attribute from the class)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML, which models have never seen in training.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
