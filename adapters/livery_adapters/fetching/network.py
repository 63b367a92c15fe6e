"""What fetching from any network has in common: how long it may take, what it reports, what is said when it fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from livery_adapters.fetching.spec import Source
from livery_adapters.refusal import AdapterRefused

Progress = Callable[[int, int], None]
"""Called with the bytes fetched so far and the bytes there are in all, from the thread that fetches."""


@dataclass(frozen=True, slots=True)
class NetworkLimits:
    """Times in seconds: `stall_s` bounds one silence, `total_s` the whole; `retries` are new tries of a request."""

    connect_s: float = 10.0
    stall_s: float = 30.0
    total_s: float = 1800.0
    retries: int = 3
    backoff_s: float = 0.5


DEFAULT_NETWORK = NetworkLimits()


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an adapter came from, in words for people, and what pins its state: a commit, or a tag of each file."""

    text: str
    pinned: Mapping[str, str] = field(default_factory=dict)


class Transfer:
    """Counts what has come of one source and stops when it takes too long."""

    def __init__(self, source: Source, total: int, progress: Progress, limits: NetworkLimits) -> None:
        """`total`: the bytes there are in all."""
        self._source = source
        self._total = total
        self._progress = progress
        self._deadline = time.monotonic() + limits.total_s
        self._limit_s = limits.total_s
        self._done = 0

    def came(self, count: int) -> None:
        """So many bytes more. Raises AdapterRefused (source_unreachable) past the time for the whole."""
        self._done += count
        self._progress(self._done, self._total)
        if time.monotonic() > self._deadline:
            raise unreachable(self._source, f"fetching took over {self._limit_s:g} s")


def unreachable(source: Source, reason: str) -> AdapterRefused:
    """The network or the other side failed; it may pass."""
    return AdapterRefused("source_unreachable", f"{source} can't be fetched: {reason}; try again later")


def not_found(source: Source, remedy: str) -> AdapterRefused:
    """There is no such repository, revision, bucket or prefix."""
    return AdapterRefused("source_not_found", f"{source} is not there; {remedy}")


def forbidden(source: Source, remedy: str) -> AdapterRefused:
    """The other side wants credentials, or other ones."""
    return AdapterRefused("source_forbidden", f"{source} refuses access; {remedy}")


def changed(source: Source) -> AdapterRefused:
    """Its two files are of two states."""
    return AdapterRefused("incomplete", f"the files of {source} changed while they were fetched; try again")
