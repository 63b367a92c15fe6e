"""What the step loop measures, in plain numbers: some additions a step, nothing per token."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import nlargest

from livery.engine.figures import (
    LOAD_SECONDS,
    PHASES,
    SIZES,
    STEP_SECONDS,
    AdapterUse,
    EngineFigures,
    Spread,
    TenantStanding,
)

REMEMBERED = 1024  # versions; what happened to others is only in the totals
TOLD_TENANTS = 256


class Tally:
    """Observations by bounds."""

    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    @property
    def spread(self) -> Spread:
        return Spread(tuple(self._counts), self._total)


@dataclass(slots=True)
class _Use:
    loads: int = 0
    load_seconds: float = 0.0
    failures: int = 0
    evictions: int = 0
    hits: int = 0
    misses: int = 0


class AdapterLog:
    """What became of adapter versions: bounded, those that nothing happened to for longest are forgotten."""

    def __init__(self) -> None:
        self.reads = Tally(LOAD_SECONDS)
        self.copies = Tally(LOAD_SECONDS)
        self.failures = 0
        self._uses: OrderedDict[str, _Use] = OrderedDict()

    def asked(self, digest: str, *, resident: bool) -> None:
        """A request asks for a version."""
        use = self._of(digest)
        use.hits += resident
        use.misses += not resident

    def read(self, digest: str, seconds: float) -> None:
        self.reads.add(seconds)
        self._of(digest).load_seconds += seconds

    def failed(self, digest: str) -> None:
        self.failures += 1
        self._of(digest).failures += 1

    def placed(self, digest: str, seconds: float | None) -> None:
        """It is in device memory; None where nothing had to be copied."""
        use = self._of(digest)
        use.loads += 1
        if seconds is not None:
            self.copies.add(seconds)
            use.load_seconds += seconds

    def evicted(self, digest: str) -> None:
        self._of(digest).evictions += 1

    def told(self) -> tuple[AdapterUse, ...]:
        return tuple(
            AdapterUse(digest, use.loads, use.load_seconds, use.failures, use.evictions, use.hits, use.misses)
            for digest, use in self._uses.items()
        )

    def _of(self, digest: str) -> _Use:
        use = self._uses.get(digest)
        if use is None:
            use = self._uses[digest] = _Use()
            if len(self._uses) > REMEMBERED:
                self._uses.popitem(last=False)
        else:
            self._uses.move_to_end(digest)
        return use


class StepClock:
    """Where a step's time goes. `begin`, then `lap(phase)` at the end of each, then `end` once it was one."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.steps = Tally(STEP_SECONDS)
        self.sequences = Tally(SIZES)
        self.tokens = Tally(SIZES)
        self._begun = self._at = time.perf_counter()

    def begin(self) -> None:
        self._begun = self._at = time.perf_counter()

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[phase] += now - self._at
        self._at = now

    def end(self, sequences: int, tokens: int) -> None:
        self.steps.add(self._at - self._begun)
        self.sequences.add(sequences)
        self.tokens.add(tokens)


def figures(clock: StepClock, adapters: AdapterLog, tenants: tuple[TenantStanding, ...]) -> EngineFigures:
    """Everything measured so far."""
    return EngineFigures(
        phase_seconds=tuple(clock.seconds.values()),
        step_seconds=clock.steps.spread,
        step_sequences=clock.sequences.spread,
        step_tokens=clock.tokens.spread,
        reads=adapters.reads.spread,
        copies=adapters.copies.spread,
        load_failures=adapters.failures,
        adapters=adapters.told(),
        tenants=tenants,
    )


def standings(waiting: Iterable[str], running: Iterable[str], ahead: Mapping[str, float]) -> tuple[TenantStanding, ...]:
    """How tenants stand whose sequences wait and run, by tenant each; `ahead`: their counters above the lowest."""
    waits, runs = Counter(waiting), Counter(running)
    told = nlargest(TOLD_TENANTS, {*waits, *runs}, key=lambda tenant: (waits[tenant] + runs[tenant], tenant))
    return tuple(TenantStanding(name, waits[name], runs[name], ahead.get(name, 0.0)) for name in told)
