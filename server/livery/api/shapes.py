"""What answers have in common, whichever route words them, and the JSON of models. Knows no HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from livery.answer_text import TokenEntry
from livery.cards import ModelCard
from livery.generation import ChoiceDelta, EndReason, Usage
from livery.jobs import Options
from livery.reading import CallDelta

Json = dict[str, Any]


@dataclass(slots=True)
class Answer:
    """All of one choice. `calls` by their index, arguments whole."""

    text: str = ""
    finish_reason: EndReason | None = None
    entries: list[TokenEntry] = field(default_factory=list)
    scores: list[TokenEntry] = field(default_factory=list)
    prompt_token_ids: Sequence[int] = ()
    reasoning: str = ""
    calls: dict[int, CallDelta] = field(default_factory=dict)
    stop_string: str | None = None

    def take(self, delta: ChoiceDelta) -> None:
        """Take in what is new. A call that broke is taken back: its text came as content."""
        self.text += delta.text
        self.finish_reason = delta.finish_reason or self.finish_reason
        self.stop_string = delta.stop_string or self.stop_string
        self.entries += delta.entries
        self.scores += delta.scores
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

    @property
    def mean_logprob(self) -> float:
        """Of the answer's tokens; every answer has one."""
        own = [entry.own.logprob or 0.0 for entry in self.entries if not entry.of_prompt]
        return sum(own) / max(1, len(own))


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

    def whole(self, answers: Sequence[Answer], usage: Usage) -> Json:
        """The answer that isn't streamed."""
        ...


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

    def wrap(self, kind: str, choices: list[Json]) -> Json:
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
