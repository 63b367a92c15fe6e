"""What the system knows of a server's processes, as if they were one."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from prometheus_client import ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.samples import Sample

EARLIEST = "process_start_time_seconds"
CPU = "process_cpu_seconds_total"
PROC = Path("/proc")


class Processes:
    """Of these processes, or of this one where none are named; those that have ended are passed over."""

    def __init__(self, ids: Iterable[int] = (), cpu_s: float | None = None) -> None:
        """`cpu_s` is told for their processor time, where it is given."""
        self._cpu_s = cpu_s
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
        for family in found.values():
            if self._cpu_s is not None:
                family.samples = [_with(sample, self._cpu_s) for sample in family.samples]
            yield family


class ProcessorTime:
    """Of processes that come and go. It never falls: of one that has ended it is what it was when last looked at."""

    def __init__(self) -> None:
        self._ended = 0.0
        self._living: dict[int, float] = {}

    def look(self, ids: Collection[int]) -> float | None:
        """Seconds of all that there were, of which these live. None where the system doesn't say."""
        for gone in self._living.keys() - set(ids):
            self._ended += self._living.pop(gone)
        for one in ids:
            self._living[one] = max(self._living.get(one, 0.0), _cpu_s(one))
        return self._ended + sum(self._living.values()) if PROC.is_dir() else None


def _of(pid: int | None) -> list[Metric]:
    collector = ProcessCollector(registry=None) if pid is None else ProcessCollector(pid=lambda: pid, registry=None)
    return list(collector.collect())


def _with(sample: Sample, cpu_s: float) -> Sample:
    return sample._replace(value=cpu_s) if sample.name == CPU else sample


def _cpu_s(pid: int) -> float:
    try:
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended just now
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _both(name: str, one: float, other: float) -> float:
    return min(one, other) if name == EARLIEST else one + other
