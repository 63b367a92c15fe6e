"""One request as OpenTelemetry spans: what it waited for and what was computed.

Spans carry ids, names, versions and counts of tokens; never text. Times are the engine's own: no span is open while a
request runs, all of a request's are made when it is over, beside the event loop (livery.otlp).
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from livery.engine.figures import RequestTimes

MOST_SEQUENCES = 16  # of a request that have spans of their own

Value = str | int


class Stretch(Protocol):
    """One sequence of a request: when the engine was asked for it, and when its first and newest token came, or its
    vector; 0 where nothing has. Moments are those of time.perf_counter, in seconds.
    """

    asked: float
    first: float
    last: float
    times: RequestTimes | None


@dataclass(slots=True)
class Timeline:
    """What is known of a request when it ends. `traceparent` and `tracestate` are the headers it came with."""

    name: str
    started: float
    ended: float
    failed: bool
    attributes: dict[str, Value]
    tokenised: tuple[float, float] | None = None
    sequences: Sequence[Stretch] = ()
    traceparent: str = ""
    tracestate: str = ""


class TraceSink(Protocol):
    """Where traces go (livery.otlp, which an extra brings)."""

    def tell(self, line: Timeline) -> None:
        """A request is over."""
        ...

    def close(self) -> None:
        """Send what is left; blocks."""
        ...


@dataclass(frozen=True, slots=True)
class Part:
    """A span within a request's: name, begin, end, and of which sequence where there are several."""

    name: str
    begin: float
    end: float
    attributes: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose part a request is: ids of 16 and 8 bytes, the latter empty where a trace begins with it."""

    trace_id: bytes
    parent_id: bytes
    sampled: bool
    state: str = ""


_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_MAX_STATE = 512  # characters of tracestate that have to be passed on


def origin_of(traceparent: str, tracestate: str = "") -> Origin:
    """As W3C's Trace Context has it (https://www.w3.org/TR/trace-context/): what is malformed begins a new trace."""
    found = _TRACEPARENT.fullmatch(traceparent)
    if found is not None:
        version, trace, parent, flags, more = found.groups()
        known = version != "ff" and not (version == "00" and more)
        if known and trace.strip("0") and parent.strip("0"):
            state = tracestate if tracestate.isprintable() and len(tracestate) <= _MAX_STATE else ""
            return Origin(bytes.fromhex(trace), bytes.fromhex(parent), bool(int(flags, 16) & 1), state)
    return Origin(random.randbytes(16), b"", True)


def parts(line: Timeline) -> list[Part]:
    """The spans within a request. What didn't happen, or isn't known, is left out.

    The engine tells durations, not moments of its own clock: they are laid end to end from when it was asked.
    """
    found = []
    if line.tokenised is not None:  # before it: its body read, limits, its turn, and its adapter's files where it waits
        found = [Part("admit", line.started, line.tokenised[0]), Part("tokenise", *line.tokenised)]
    several = len(line.sequences) > 1
    for number, sequence in enumerate(line.sequences):
        found += _of_sequence(sequence, {"livery.sequence": number} if several else {})
    return found


def _of_sequence(one: Stretch, attributes: Mapping[str, Value]) -> list[Part]:
    if one.times is None or not one.first:
        return []
    first = max(one.first, one.asked)
    loaded = min(one.asked + one.times.load_s, first)
    running = max(loaded, min(one.asked + one.times.queue_s, first))
    found = [Part("load", one.asked, loaded, attributes)] if one.times.load_s else []
    found += [Part("queue", loaded, running, attributes), Part("prefill", running, first, attributes)]
    if one.last > first:
        found.append(Part("decode", first, one.last, attributes))
    return found
