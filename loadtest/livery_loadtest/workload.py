"""What is asked: prompts, the model each request names, and how often each adapter is named.

Everything here is a pure function of a seed, so that every target of a run gets the same requests. Knows no
HTTP and no clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum, StrEnum

import numpy as np

from livery_loadtest.prompts import WORDS


class Scenario(StrEnum):
    """One kind of traffic: to the base model, spread over the adapters, or to the base from one stream alone."""

    BASE = "base"
    MIXED = "mixed"
    SINGLE = "one stream"


class Popularity(StrEnum):
    """How requests are spread over adapters; under `zipf` the k-th adapter weighs 1 / k**exponent."""

    ROUND_ROBIN = "round-robin"
    UNIFORM = "uniform"
    ZIPF = "zipf"


class Phase(IntEnum):
    """Part of a run; it seeds the prompts, so that no two phases share one."""

    WARM_UP = 0
    MEASURED = 1
    CHECK = 2


@dataclass(frozen=True, slots=True)
class Request:
    """One request to send; `model` is the name of the base or of an adapter."""

    model: str
    prompt: str
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Workload:
    """The load of one round: `requests` requests over `streams` streams, each stream one at a time."""

    streams: int = 16
    requests: int = 32
    prompt_words: int = 64
    max_tokens: int = 32
    popularity: Popularity = Popularity.ROUND_ROBIN
    zipf_exponent: float = 1.0
    seed: int = 0

    def under(self, scenario: Scenario) -> Workload:
        """The load of one round of a scenario: one stream alone takes a quarter of the requests."""
        if scenario is Scenario.SINGLE:
            return replace(self, streams=1, requests=-(-self.requests // 4))
        return self


def prompts(count: int, words: int, seed: Sequence[int]) -> list[str]:
    """`count` different prompts of `words` pseudo-random words, the same for the same seed.

    Raises ValueError when that many different prompts of that length don't exist.
    """
    if len(WORDS) ** words < count:
        raise ValueError(f"there are fewer than {count} different prompts of {words} words; use longer prompts")
    rng = np.random.default_rng(list(seed))
    found: dict[str, None] = {}
    while len(found) < count:
        found.setdefault(" ".join(WORDS[index] for index in rng.integers(len(WORDS), size=words)))
    return list(found)


def spread(
    adapters: Sequence[str], count: int, popularity: Popularity, exponent: float, seed: Sequence[int]
) -> list[str]:
    """The adapter of each of `count` requests."""
    if popularity is Popularity.ROUND_ROBIN:
        return [adapters[index % len(adapters)] for index in range(count)]
    weights = np.ones(len(adapters))
    if popularity is Popularity.ZIPF:
        weights = np.arange(1, len(adapters) + 1, dtype=float) ** -exponent
    rng = np.random.default_rng(list(seed))
    return [adapters[index] for index in rng.choice(len(adapters), size=count, p=weights / weights.sum())]


def round_requests(
    workload: Workload, scenario: Scenario, base: str, adapters: Sequence[str], phase: Phase, index: int
) -> list[Request]:
    """The requests of round `index`: equal for every target, and no prompt is used twice on one target."""
    seed = [workload.seed, phase, list(Scenario).index(scenario), index]
    texts = prompts(workload.requests, workload.prompt_words, seed)
    if scenario is not Scenario.MIXED:
        models = [base] * len(texts)
    else:
        models = spread(adapters, len(texts), workload.popularity, workload.zipf_exponent, [*seed, 1])
    return [Request(model, text, workload.max_tokens) for model, text in zip(models, texts, strict=True)]
