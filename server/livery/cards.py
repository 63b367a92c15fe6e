"""What clients are told of models and prompts: cards of what they may ask for, and the tokens of a prompt."""

from __future__ import annotations

from dataclasses import dataclass

from livery.engine.base import EngineInfo
from livery.lease import task_of
from livery_adapters.layout import Task
from livery_adapters.registry import NamedVersion


@dataclass(frozen=True, slots=True)
class ModelCard:
    """One name that requests may use. `parent` is None for the base. `created` is a Unix time."""

    id: str
    created: int
    digest: str
    parent: str | None
    max_model_len: int
    task: Task | None = None  # None in lists, which don't look at what an adapter holds


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a prompt is computed from; `strings` as the vocabulary spells the ids, where asked for.

    Of an adapter that puts its owner's words or template around the prompt others are told the count alone.
    """

    count: int
    ids: list[int] | None
    strings: list[str] | None


def base_card(name: str, info: EngineInfo, created: int) -> ModelCard:
    """Of the base model, which is served since `created`."""
    return ModelCard(name, created, info.base_digest, None, info.max_model_len, "generate")


def adapter_card(name: str, version: NamedVersion, base: str, info: EngineInfo) -> ModelCard:
    """Of a version of an adapter of the base model, as who asks calls it."""
    facts = version.facts
    return ModelCard(name, int(version.added), facts.digest, base, info.max_model_len, task_of(facts))
