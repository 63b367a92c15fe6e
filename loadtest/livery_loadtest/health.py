"""Whether the client kept up: its CPU time, its event loop's lag, how late requests left. Knows no requests."""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from livery_loadtest.record import Health, Record

MOST_CPU_SHARE = 0.9
MOST_LAG_MS = 10.0
MOST_SEND_DELAY_MS = 5.0
MATTERS = 0.05  # of what is measured: a client that is late by less hardly changes it
TICK_S = 0.05
BUSY = "the client was busy itself: give it more cores and --processes, or less to do"
WAITED = "the client waited for a core, not for the server: give it one of its own, or a machine of its own"
LEAST_S = 1.0  # in less than this a process is busy with beginning and ending, whatever it measures


@dataclass(slots=True)
class Vitals:
    """Of one process: CPU seconds of its event loop's thread in `wall_s` seconds, lags and delays in seconds.

    `reasons` are what makes the run invalid besides those.
    """

    cpu_s: float = 0.0
    wall_s: float = 0.0
    lags: array[float] = field(default_factory=lambda: array("d"))
    delays: array[float] = field(default_factory=lambda: array("d"))
    reasons: tuple[str, ...] = ()


class Pulse:
    """Ticks on the running event loop and notes into `lags` how late each one is.

    A loop that stood still for long missed many ticks; each of them counts with the time it was late, or one long
    standstill would look like one late tick among many good ones.
    """

    def __init__(self, lags: array[float]) -> None:
        self._lags = lags
        self._loop = asyncio.get_running_loop()
        self._due = self._loop.time() + TICK_S
        self._timer = self._loop.call_at(self._due, self._tick)

    def stop(self) -> None:
        """Tick no more; what is late by now counts."""
        self._timer.cancel()
        self._note()

    def _tick(self) -> None:
        self._note()
        self._timer = self._loop.call_at(self._due, self._tick)

    def _note(self) -> None:
        now = self._loop.time()
        while self._due <= now:
            self._lags.append(now - self._due)
            self._due += TICK_S


class Stopwatch:
    """CPU time of this thread and wall time, from its making on."""

    def __init__(self) -> None:
        self._cpu, self._wall = time.thread_time(), time.perf_counter()

    def read_into(self, vitals: Vitals) -> None:
        vitals.cpu_s, vitals.wall_s = time.thread_time() - self._cpu, time.perf_counter() - self._wall


def judge(processes: Sequence[Vitals], records: Sequence[Record]) -> Health:
    """What all processes of a client together say about it, and about the answers that they had.

    In a closed loop only a chat's later turns can be late: a stream sends as soon as it is free. Of no process nothing
    is known: whoever lost them says so.
    """
    busiest = max(processes, key=_share, default=Vitals())
    share = _share(busiest)
    lag = _shown([one.lags for one in processes])
    delay = _shown([one.delays for one in processes])
    first_ms, gap_ms = _first_ms(records), _gap_ms(records)
    # Who sends late changes the time to the first token alone. Who looks late at what came changes that and the times
    # between tokens, which may be a hundred times shorter.
    most_lag = max(MOST_LAG_MS, MATTERS * min(first_ms, gap_ms))
    most_delay = max(MOST_SEND_DELAY_MS, MATTERS * first_ms)
    busy = share > MOST_CPU_SHARE and busiest.wall_s >= LEAST_S
    reasons = []
    if busy:
        reasons.append(f"a client process used {share:.0%} of a core (at most {MOST_CPU_SHARE:.0%})")
    if lag[1] > most_lag:
        reasons.append(f"the client's event loop lagged {lag[1]:.1f} ms at p99 (at most {most_lag:.1f} ms)")
    if delay[1] > most_delay:
        reasons.append(f"requests left {delay[1]:.1f} ms late at p99 (at most {most_delay:.1f} ms)")
    if reasons:
        reasons.append(BUSY if busy else WAITED)
    for one in processes:
        reasons += [reason for reason in one.reasons if reason not in reasons]
    return Health(len(processes), share, lag, delay, tuple(reasons))


def _share(one: Vitals) -> float:
    """CPU time by wall time."""
    return one.cpu_s / (one.wall_s or 1.0)


def _first_ms(records: Sequence[Record]) -> float:
    """The median time from sending to the first token, in milliseconds; 0 where nothing came."""
    waits = [record.events[0] - record.sent for record in records if record.events]
    return 1e3 * float(np.median(waits)) if waits else 0.0


def _gap_ms(records: Sequence[Record]) -> float:
    """The median answer's mean time between its tokens, in milliseconds; infinite where none had two events.

    Of a long run a record has its first and its last event alone: then by the tokens there were, or were asked for.
    """
    gaps = []
    for record in records:
        if len(record.events) > 1:
            told = record.output_tokens or (record.planned.max_tokens if len(record.events) == 2 else 0)
            gaps.append((record.events[-1] - record.events[0]) / (max(len(record.events), told) - 1))
    return 1e3 * float(np.median(gaps)) if gaps else float("inf")


def _shown(parts: Sequence[array[float]]) -> tuple[float, float, float]:
    """p50, p99 and maximum in milliseconds; zeros for nothing."""
    every = np.concatenate([np.asarray(part) for part in parts]) if parts else np.zeros(0)
    if not every.size:
        return (0.0, 0.0, 0.0)
    p50, p99 = np.percentile(every, [50, 99])
    return (1e3 * float(p50), 1e3 * float(p99), 1e3 * float(every.max()))
