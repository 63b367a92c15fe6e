"""A chat completion told in the words of another API: the same request to the engine, another shape around it.

A body of that API becomes a `ChatCompletionBody`, and what `ChatShape` says, chunk by chunk or as a whole, is taken
apart again into blocks (thoughts, text, calls of functions), which a subclass words its own way.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import ValidationError

from livery.answer_text import TokenEntry
from livery.api.chat_shape import ChatShape
from livery.api.errors import is_field
from livery.api.schemas import ChatCompletionBody
from livery.api.shapes import Answer, Json
from livery.chat_template import InvalidMessages
from livery.generation import ChoiceDelta, Usage
from livery.refusals import AdapterReplaced, ContextLengthExceeded, InvalidParameter

Kind = Literal["reasoning", "text", "call"]


@dataclass(slots=True)
class Block:
    """One stretch of an answer; `text` of a call is its arguments. `logprobs` as a chat tells them.

    `broken`: a call that was cut off or turned out to be none; all its text follows as text.
    """

    kind: Kind
    index: int  # among the blocks of the answer
    text: str = ""
    call_id: str = ""
    name: str = ""
    logprobs: list[Json] = field(default_factory=list)
    broken: bool = False


class Retold(ABC):
    """A `Shape` over a chat's, for one answer. Use for one request."""

    def __init__(self, chat: ChatShape) -> None:
        self.blocks: list[Block] = []
        self.finish_reason = ""
        self.stop_string: str | None = None  # that ended the answer
        self._chat = chat
        self._block: Block | None = None  # the one being told
        self._call = -1  # its index among the calls
        self._told: list[Json] = []

    def opening(self, choices: int) -> list[Json]:
        self.begin()
        for chunk in self._chat.opening(choices):
            self._take_chunk(chunk)
        return self._said()

    def chunks(self, delta: ChoiceDelta) -> list[Json]:
        self.stop_string = delta.stop_string or self.stop_string
        for chunk in self._chat.chunks(delta):
            self._take_chunk(chunk)
        for call in delta.calls:  # which a chat doesn't take back: its clients see text after the call
            if call.broken and call.index == self._call:
                self._break()
        return self._said()

    def closing(self, usage: Usage) -> list[Json]:
        self._end(usage)
        return self._said()

    def token(self, entry: TokenEntry) -> object:
        return self._chat.token(entry)

    async def whole(self, answers: Sequence[Answer], usage: Usage) -> Json:
        choice = self._chat.choice(0, answers[0])
        self.begin()
        self._take(choice["message"], _logprobs(choice))
        self.finish_reason, self.stop_string = choice["finish_reason"], answers[0].stop_string
        self._end(usage)
        return self.answer(usage)

    def say(self, event: Json) -> None:
        """The next event of the stream."""
        self._told.append(event)

    @abstractmethod
    def begin(self) -> None:
        """The answer begins."""

    @abstractmethod
    def open(self, block: Block) -> None:
        """A block begins."""

    @abstractmethod
    def add(self, block: Block, piece: str, logprobs: list[Json]) -> None:
        """A block goes on; it has the piece and its tokens' log-probabilities already."""

    @abstractmethod
    def close(self, block: Block) -> None:
        """A block is complete, or broken."""

    @abstractmethod
    def end(self, usage: Usage) -> None:
        """The answer is complete."""

    @abstractmethod
    def answer(self, usage: Usage) -> Json:
        """All of it, once it is complete."""

    def _said(self) -> list[Json]:
        said, self._told = self._told, []
        return said

    def _take_chunk(self, chunk: Json) -> None:
        for choice in chunk["choices"]:
            self._take(choice["delta"], _logprobs(choice))
            self.finish_reason = choice["finish_reason"] or self.finish_reason

    def _take(self, delta: Mapping[str, Any], logprobs: list[Json]) -> None:
        if thought := delta.get("reasoning_content") or delta.get("reasoning"):
            self._go_on("reasoning", thought)
        text = delta.get("content") or ""
        if text or (logprobs and self._block and self._block.kind == "text"):
            self._go_on("text", text, logprobs)
        for position, call in enumerate(delta.get("tool_calls") or ()):
            self._take_call(call.get("index", position), call)

    def _take_call(self, index: int, call: Mapping[str, Any]) -> None:
        function = call.get("function") or {}
        if index != self._call:
            self._call = index
            self._start(Block("call", len(self.blocks), "", call.get("id") or "", function.get("name") or ""))
        self._go_on("call", function.get("arguments") or "")

    def _go_on(self, kind: Kind, piece: str, logprobs: Sequence[Json] = ()) -> None:
        if self._block is None or self._block.kind != kind:
            self._start(Block(kind, len(self.blocks)))
        assert self._block is not None
        if piece or logprobs:
            self._block.text += piece
            self._block.logprobs += logprobs
            self.add(self._block, piece, list(logprobs))

    def _start(self, block: Block) -> None:
        self._stop()
        self.blocks.append(block)
        self._block = block
        self.open(block)

    def _stop(self) -> None:
        if self._block is not None:
            block, self._block = self._block, None
            self.close(block)

    def _break(self) -> None:
        if self._block is not None:
            self._block.broken = True
            self._stop()

    def _end(self, usage: Usage) -> None:
        if self.finish_reason == "abort":  # which no answer of these APIs can say
            raise AdapterReplaced
        if not self.blocks:  # an answer without a word is still an answer
            self._start(Block("text", 0))
        self._stop()
        self.end(usage)


def _logprobs(choice: Json) -> list[Json]:
    return (choice["logprobs"] or {}).get("content") or []


def chat_body(fields: Mapping[str, object], names: Mapping[str, str]) -> ChatCompletionBody:
    """A chat completion with these fields, those that are None left out.

    Raises InvalidParameter, which says fields by `names`, as in `params_named`.
    """
    try:
        return ChatCompletionBody.model_validate({name: value for name, value in fields.items() if value is not None})
    except ValidationError as error:
        issue = error.errors()[0]
        path = [str(part) for part in issue["loc"] if isinstance(part, int) or is_field(part)]
        param = _renamed(".".join(path), names)
        raise InvalidParameter(f"{param}: {issue['msg']}"[:300], param) from None


@contextmanager
def params_named(names: Mapping[str, str]) -> Iterator[None]:
    """Let refusals name fields as the client called them.

    `names` maps regular expressions for the beginning of a dotted path to what stands there instead; the first that
    fits counts.
    """
    try:
        yield
    except (InvalidParameter, ContextLengthExceeded, InvalidMessages) as error:
        if error.param is not None:
            error.param = _renamed(error.param, names)
        raise


def _renamed(param: str, names: Mapping[str, str]) -> str:
    for ours, theirs in names.items():
        if found := re.match(rf"{ours}(?=\.|$)", param):
            return found.expand(theirs) + found.string[found.end() :]
    return param
