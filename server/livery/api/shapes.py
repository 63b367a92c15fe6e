"""What answers have in common, whichever route words them, and the JSON of models. Knows no HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import orjson
from orjson import Fragment

from livery.answer_text import TokenEntry
from livery.api.logprobs_shape import prompt_score
from livery.cards import ModelCard
from livery.generation import ChoiceDelta, EndReason, Usage
from livery.jobs import Options
from livery.reading import CallDelta

Json = dict[str, Any]


@dataclass(slots=True)
class Answer:
    """All of one choice. `calls` by their index, arguments whole.

    `tokens` are those of text whose log-probabilities are told, as `worded`, and `scores` the prompt's apart from it.
    """

    worded: Callable[[TokenEntry], object]
    text: str = ""
    finish_reason: EndReason | None = None
    tokens: list[Any] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)  # of the answer
    scores: list[Fragment | None] = field(default_factory=list)
    logprob: float = 0.0  # of the answer's tokens together
    prompt_token_ids: Sequence[int] = ()
    reasoning: str = ""
    calls: dict[int, CallDelta] = field(default_factory=dict)
    stop_string: str | None = None

    def take(self, delta: ChoiceDelta) -> None:
        """Take in what is new but for its tokens. A call that broke is taken back: its text came as content."""
        self.text += delta.text
        self.finish_reason = delta.finish_reason or self.finish_reason
        self.stop_string = delta.stop_string or self.stop_string
        self.prompt_token_ids = delta.prompt_token_ids or self.prompt_token_ids
        self.reasoning += delta.reasoning
        for call in delta.calls:
            if call.broken:
                self.calls.pop(call.index, None)
            elif call.index in self.calls:
                begun = self.calls[call.index]
                self.calls[call.index] = replace(begun, arguments=begun.arguments + call.arguments)
            else:
                self.calls[call.index] = call

    def take_token(self, entry: TokenEntry) -> None:
        """Take in a token of the answer, or of the prompt that its text begins with."""
        if not entry.of_prompt:
            self.token_ids.append(entry.own.token_id)
            self.logprob += entry.own.logprob or 0.0
        if (told := self.worded(entry)) is not None:
            self.tokens.append(told)

    def take_score(self, entry: TokenEntry) -> None:
        """Take in a token of the prompt apart from the text."""
        self.scores.append(prompt_score(entry))

    @property
    def mean_logprob(self) -> float:
        """Of the answer's tokens; every answer has one."""
        return self.logprob / max(1, len(self.token_ids))


def best(answers: Sequence[Answer], options: Options) -> Sequence[Answer]:
    """Of the answers made for each prompt those with the highest log-probability per token, the best first."""
    made, wanted = options.answers_made, options.n
    if made == wanted:
        return answers
    groups = [answers[start : start + made] for start in range(0, len(answers), made)]
    ranked = [sorted(group, key=lambda answer: -answer.mean_logprob) for group in groups]
    return [answer for group in ranked for answer in group[:wanted]]


class Shape(Protocol):
    """How one route words its answer."""

    def opening(self, choices: int) -> list[Json]:
        """Chunks that come before any text."""
        ...

    def chunks(self, delta: ChoiceDelta) -> list[Json]:
        """Chunks for one piece of text."""
        ...

    def closing(self, usage: Usage) -> list[Json]:
        """Chunks that come after all text, as the usage where the client asked for it."""
        ...

    def token(self, entry: TokenEntry) -> object:
        """What a whole answer tells of one of its tokens; None for nothing."""
        ...

    async def whole(self, answers: Sequence[Answer], usage: Usage) -> Json:
        """The answer that isn't streamed."""
        ...


async def written(choice: Callable[[int, Answer], Json], answers: Sequence[Answer]) -> list[Fragment]:
    """Each answer's choice as JSON; between long ones others have their turn."""
    found: list[Fragment] = []
    for index, answer in enumerate(answers):
        if index:
            await asyncio.sleep(0)
        found.append(Fragment(orjson.dumps(choice(index, answer))))
    return found


def ending(reason: EndReason | None) -> Json:
    """Why a choice ended; beside "abort" the reason of that, which is one only, where vLLM says what stopped one."""
    return {"finish_reason": reason} | ({"stop_reason": "adapter_replaced"} if reason == "abort" else {})


@dataclass(frozen=True, slots=True)
class Envelope:
    """What all chunks of an answer repeat. `created` is a Unix time, `model` the name the client used."""

    id: str
    created: int
    model: str
    fingerprint: str
    include_usage: bool
    options: Options
    service_tier: str | None = None  # said where the client asked for one

    def wrap(self, kind: str, choices: Sequence[Json | Fragment]) -> Json:
        wrapped = {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        }
        return wrapped if self.service_tier is None else {**wrapped, "service_tier": self.service_tier}

    def chunk(self, kind: str, choice: Json) -> Json:
        chunk = self.wrap(kind, [choice])
        if self.include_usage:
            chunk["usage"] = None
        return chunk


def usage_json(usage: Usage) -> Json:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def model_json(card: ModelCard) -> Json:
    """`root` is the name again: where files are is nobody's business."""
    return {
        "id": card.id,
        "object": "model",
        "created": card.created,
        "owned_by": "livery",
        "root": card.id,
        "parent": card.parent,
        "max_model_len": card.max_model_len,
        "permission": [],
        "digest": card.digest,
    } | ({} if card.task is None else {"task": card.task})
