"""What the engine says of versions, turned into what is counted of adapters by name."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable

from livery.engine.base import EngineStats
from livery.engine.figures import AdapterUse
from livery.metrics.adapters import AdapterCounts
from livery.metrics.top import Top

REMEMBERED = 20_000  # digests


class Residents:
    """Which adapter a version's digest is of, as far as requests told, and what is already counted of it."""

    def __init__(self, adapters: Top[AdapterCounts]) -> None:
        self._adapters = adapters
        self._names: OrderedDict[str, str] = OrderedDict()  # digest -> adapter
        self._newest: dict[str, str] = {}  # adapter -> digest
        self._counted: dict[str, AdapterUse] = {}
        self._last = EngineStats()  # of what is counted
        self._lock = threading.Lock()

    def asked(self, adapter: str, digest: str) -> None:
        """A request runs on a version of an adapter."""
        if self._newest.get(adapter) != digest:
            with self._lock:
                self._newest[adapter] = digest
                self._names[digest] = adapter
                if len(self._names) > REMEMBERED:
                    gone, name = self._names.popitem(last=False)
                    if self._newest.get(name) == gone:
                        del self._newest[name]

    def newest(self, adapters: Iterable[str]) -> list[tuple[str, str]]:
        """The newest version's digest of each of these adapters that one is known of."""
        with self._lock:
            return [(adapter, self._newest[adapter]) for adapter in adapters if adapter in self._newest]

    def drop(self, adapters: Collection[str]) -> None:
        """These are no longer served."""
        with self._lock:
            for adapter in adapters:
                self._newest.pop(adapter, None)

    def count(self, stats: EngineStats) -> None:
        """Add what happened since the last time. An engine that was started anew counts from zero.

        Several ask at once, and who was told first may come here last: what is older than what is counted adds nothing.
        """
        with self._lock:
            last, uses = self._last, {use.digest: use for use in stats.figures.adapters}
            anew = stats.restarts > last.restarts
            counted = {} if anew else self._counted
            forgotten = {digest for digest, use in uses.items() if _fell(use, counted.get(digest))}
            if not anew and (_is_older(stats, last) or (forgotten and _marks(stats) == _marks(last))):
                return
            self._last, self._counted = stats, uses
            for digest, use in uses.items():
                # A version that the engine had forgotten, for want of use, counts from zero as well.
                before = AdapterUse(digest) if digest in forgotten else counted.get(digest, AdapterUse(digest))
                if use != before:
                    self._adapters.record(self._names.get(digest), _growth(use, before))

    def tiers(self, stats: EngineStats) -> dict[str, str]:
        """Where adapters' newest versions are: "device" or "host"; those in the store alone are left out."""
        resident, hosted = frozenset(stats.resident_adapters), frozenset(stats.host_adapters)
        with self._lock:
            return {
                adapter: "device" if digest in resident else "host"
                for adapter, digest in self._newest.items()
                if digest in resident or digest in hosted
            }


def _growth(use: AdapterUse, before: AdapterUse) -> AdapterCounts:
    """What came since."""
    growth = [now - then for now, then in zip(_counts(use), _counts(before), strict=True)]
    loads, failures, evictions, hits, misses = growth
    return AdapterCounts(
        loads=loads,
        load_seconds=max(0.0, use.load_seconds - before.load_seconds),
        load_failures=failures,
        evictions=evictions,
        hits=hits,
        misses=misses,
    )


def _fell(use: AdapterUse, before: AdapterUse | None) -> bool:
    return before is not None and any(now < then for now, then in zip(_counts(use), _counts(before), strict=True))


def _is_older(stats: EngineStats, last: EngineStats) -> bool:
    """Whether the engine said it before, or one that ran before it did."""
    if stats.restarts != last.restarts:
        return stats.restarts < last.restarts
    return any(now < then for now, then in zip(_marks(stats), _marks(last), strict=True))


def _marks(stats: EngineStats) -> tuple[int, ...]:
    """What only grows while an engine runs, whichever versions it forgets."""
    figures = stats.figures
    return stats.steps, sum(figures.reads.counts), sum(figures.copies.counts), figures.load_failures


def _counts(use: AdapterUse) -> tuple[int, ...]:
    return use.loads, use.failures, use.evictions, use.hits, use.misses
