"""A server loaded in two ways in turn, pair by pair: what a machine does to one of a pair it does to the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from livery_loadtest.measures import Spread, over_rounds

TICK_S = 0.01  # in which processor time is counted


@dataclass(frozen=True, slots=True)
class Loaded:
    """One load on a server, which took `cpu_s` of processor time meanwhile."""

    tokens: int
    seconds: float
    cpu_s: float
    answers: int

    def rate(self) -> float:
        return self.tokens / self.seconds


@dataclass(frozen=True, slots=True)
class Pairs:
    """Loads in the one and the other way, one after the other."""

    rounds: Sequence[tuple[Loaded, Loaded]]

    def rates(self, of: int) -> Spread:
        """Tokens per second of the one (0) or the other (1)."""
        return _spread([pair[of].rate() for pair in self.rounds])

    def ratio(self) -> Spread:
        """The one's tokens per second over the other's, pair by pair."""
        return _spread([one.rate() / other.rate() for one, other in self.rounds])

    def cpu_ratio(self) -> float:
        """The one's processor time per token over the other's, of all pairs together: it counts in ticks."""
        one, other = ([pair[of] for pair in self.rounds] for of in (0, 1))
        return _cost(one) / _cost(other)


def _cost(loads: Sequence[Loaded]) -> float:
    return max(TICK_S, sum(load.cpu_s for load in loads)) / sum(load.tokens for load in loads)


def _spread(values: Sequence[float]) -> Spread:
    found = over_rounds(values)
    assert found is not None
    return found
