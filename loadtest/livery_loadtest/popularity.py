"""Which adapter each request names, as indices into the list of adapters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from livery_loadtest.spec import (
    Distinct,
    Drifting,
    Identical,
    Popularity,
    Power,
    SpecInvalid,
    Uniform,
    Weights,
    Zipf,
)
from livery_loadtest.traces import Floats, Ints


def choose(popularity: Popularity, adapters: Sequence[str], count: int, rng: np.random.Generator) -> Ints:
    """The adapters of `count` requests in the order in which they come; there is at least one. Raises SpecInvalid."""
    known = len(adapters)
    match popularity:
        case Identical():
            return np.zeros(count, dtype=np.int64)
        case Uniform():
            return rng.integers(known, size=count)
        case Distinct():
            return np.arange(count) % known
        case Zipf():
            return _weighted(np.arange(1, known + 1, dtype=float) ** -popularity.exponent, count, rng)
        case Power():
            # A draw of 1.0 is possible by rounding.
            return np.minimum((known * rng.power(popularity.alpha, count)).astype(np.int64), known - 1)
        case Drifting():
            return _drifting(popularity, known, count, rng)
        case Weights():
            return _weighted(_by_hand(popularity, adapters), count, rng)


def _weighted(weights: Floats, count: int, rng: np.random.Generator) -> Ints:
    return rng.choice(len(weights), size=count, p=weights / weights.sum())


def _drifting(popularity: Drifting, known: int, count: int, rng: np.random.Generator) -> Ints:
    """Places in a ring that turns: the first `hot` of it take the hot share."""
    hot = popularity.hot
    if hot > known:
        raise SpecInvalid(f"popularity.hot is {hot}, but {known} adapters take requests; lower it or load more")
    is_hot = (rng.random(count) < popularity.hot_share) | (hot == known)
    among_hot = rng.integers(hot, size=count)
    among_others = rng.integers(hot, max(known, hot + 1), size=count)
    return (np.where(is_hot, among_hot, among_others) + np.arange(count) // popularity.every) % known


def _by_hand(popularity: Weights, adapters: Sequence[str]) -> Floats:
    unknown = sorted(set(popularity.weights) - set(adapters))
    if unknown:
        raise SpecInvalid(
            f"popularity.weights names {', '.join(unknown[:5])}{', …' if len(unknown) > 5 else ''}, but the adapters "
            f"that take requests are {', '.join(adapters[:5])}{', …' if len(adapters) > 5 else ''}; name those"
        )
    return np.array([popularity.weights.get(name, 0.0) for name in adapters])
