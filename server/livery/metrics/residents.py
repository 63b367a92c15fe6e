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

    def count(self, uses: Iterable[AdapterUse]) -> None:
        """Add what happened since the last time. An engine that was started anew counts from zero."""
        with self._lock:
            counted, self._counted = self._counted, {use.digest: use for use in uses}
            for digest, use in self._counted.items():
                if use != (before := counted.get(digest)):
                    self._adapters.record(self._names.get(digest), _growth(use, before or AdapterUse(digest)))

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
    """What came since; where any count fell, the engine was started anew and all of them count from zero."""
    growth = [now - then for now, then in zip(_counts(use), _counts(before), strict=True)]
    anew = any(grown < 0 for grown in growth)
    loads, failures, evictions, hits, misses = _counts(use) if anew else growth
    return AdapterCounts(
        loads=loads,
        load_seconds=use.load_seconds if anew else max(0.0, use.load_seconds - before.load_seconds),
        load_failures=failures,
        evictions=evictions,
        hits=hits,
        misses=misses,
    )


def _counts(use: AdapterUse) -> tuple[int, ...]:
    return use.loads, use.failures, use.evictions, use.hits, use.misses
