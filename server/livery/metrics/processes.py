"""What the system knows of a server's processes, as if they were one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import ProcessCollector
from prometheus_client.core import Metric

EARLIEST = "process_start_time_seconds"


class Processes:
    """Of these processes, or of this one where none are named; those that have ended are passed over."""

    def __init__(self, ids: Iterable[int] = ()) -> None:
        self._ids: tuple[int | None, ...] = tuple(ids) or (None,)

    def collect(self) -> Iterator[Metric]:
        """Added up, but for when they were started, which is when the first one was."""
        found: dict[str, Metric] = {}
        for one in self._ids:
            for family in _of(one):
                known = found.setdefault(family.name, family)
                if known is not family:
                    known.samples = [
                        sample._replace(value=_both(sample.name, sample.value, other.value))
                        for sample, other in zip(known.samples, family.samples, strict=True)
                    ]
        yield from found.values()


def _of(pid: int | None) -> list[Metric]:
    collector = ProcessCollector(registry=None) if pid is None else ProcessCollector(pid=lambda: pid, registry=None)
    return list(collector.collect())


def _both(name: str, one: float, other: float) -> float:
    return min(one, other) if name == EARLIEST else one + other
