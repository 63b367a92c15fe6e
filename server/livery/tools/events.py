"""What is found in an answer's text, piece by piece, and what a format of tool calls has to offer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

# What may be called: a JSON schema of the arguments by the function's name, None for a function without any.
Functions = Mapping[str, Mapping[str, object] | None]
Kind = Literal["content", "reasoning", "call", "arguments", "complete", "broken"]


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of an answer. `index` numbers the calls from 0.

    content, reasoning: `text` is for the reader. call: a call of the function `text` begins. arguments: the next piece
    of its arguments, JSON. complete: it has all of them. broken: what began as this call is none; its whole text
    follows as content.
    """

    kind: Kind
    text: str = ""
    index: int = 0


class TextParser(Protocol):
    """Turns the text of one answer into parts, whatever pieces it comes in. No text is lost but a format's own marks
    and the white space around them.
    """

    def feed(self, text: str) -> list[Part]:
        """What is certain with this piece of text."""
        ...

    def finish(self) -> list[Part]:
        """What is left at the end of the answer."""
        ...


class ToolFormat(Protocol):
    """How a family of models is told of tools and calls them."""

    name: str
    markers: tuple[str, ...]  # may be special tokens, which are hidden from text that nobody parses
    around: tuple[str, str] | None  # what one call stands between wherever one is made; None: it isn't so simple

    def recognises(self, template: str) -> bool:
        """Whether a chat template is of this family."""
        ...

    def parser(self, functions: Functions) -> TextParser:
        """For one answer to a request with these functions."""
        ...

    def call_id(self) -> str:
        """A new id for a call, as the family's templates take it."""
        ...

    def preamble(self, tools: Sequence[Mapping[str, object]]) -> str:
        """What a system message says of the tools where the chat template doesn't."""
        ...

    def call_text(self, calls: Sequence[Mapping[str, object]]) -> str:
        """Calls of an earlier answer as the family writes them, for templates that don't. Arguments are objects."""
        ...


def merged(parts: Sequence[Part]) -> list[Part]:
    """Neighbouring texts of the same kind as one part."""
    found: list[Part] = []
    for part in parts:
        last = found[-1] if found else None
        if (
            last
            and part.kind in ("content", "reasoning", "arguments")
            and (part.kind, part.index) == (last.kind, last.index)
        ):
            found[-1] = Part(part.kind, last.text + part.text, part.index)
        else:
            found.append(part)
    return found
