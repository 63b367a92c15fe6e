"""The requests of one run as arrays, one entry a request: what every number and every picture is made from.

Pure facts: nothing is left out and nothing summed up. `report.result` writes them down and reads them back.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from livery_loadtest.gaps import GROWTH, LOWEST_S
from livery_loadtest.record import Record, Run

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

NOT_ASKED, BROKEN, PARSED = -1, 0, 1  # what a structured answer was


@dataclass(frozen=True, slots=True)
class Columns:
    """Arrays of length [requests] in the order of `index`; times in seconds after the run's start, NaN: not reached.

    `model`, `tenant`, `error` and `finish` are places in the names beside them, -1 for none; `examples` has one
    message for each of `errors`. `prompt`, `cached` and `output` are the server's usage, -1 where it told none.
    `arrivals` [events of all] are the times of events, request after request, `events` how many each has. `open`:
    its time was planned, whatever happened before; `planned_leave`: the client was to go away; `retried`: it was sent
    twice, as a kept connection had just been closed. `structured` is one of NOT_ASKED, BROKEN, PARSED: whether an
    answer that was to be JSON is. Of a run whose times between events were folded into a histogram, that is `folded`
    (livery_loadtest.gaps), and each answer has its first and last event; `counted` is how many it had.
    """

    index: Ints
    model: Ints
    models: tuple[str, ...]
    tenant: Ints
    tenants: tuple[str, ...]
    error: Ints
    errors: tuple[str, ...]
    examples: tuple[str, ...]
    finish: Ints
    finishes: tuple[str, ...]
    intended: Floats
    sent: Floats
    connected: Floats
    finished: Floats
    arrivals: Floats
    events: Ints
    counted: Ints
    max_tokens: Ints
    prompt: Ints
    cached: Ints
    output: Ints
    status: Ints
    retry_after: Floats
    structured: Ints
    open: Flags
    left: Flags
    planned_leave: Flags
    cold: Flags
    retried: Flags
    folded: Ints

    @classmethod
    def of(cls, run: Run) -> Columns:
        """Of what was recorded."""
        records = sorted(run.records, key=lambda record: record.planned.index)
        model, models = _coded(record.planned.model for record in records)
        tenant, tenants = _coded(record.planned.tenant for record in records)
        error, errors = _coded(record.error for record in records)
        finish, finishes = _coded(record.finish_reason for record in records)
        arrivals = array("d")
        for record in records:
            arrivals.extend(record.events)
        examples: dict[str, str] = {}
        for record in records:
            if record.error is not None and not examples.get(record.error):
                examples[record.error] = record.error_message

        def ints(values: Iterable[int | None]) -> Ints:
            return np.fromiter((-1 if value is None else value for value in values), np.int64, len(records))

        def times(values: Iterable[float]) -> Floats:
            seconds = np.fromiter(values, np.float64, len(records))
            return np.where(seconds == 0.0, np.nan, seconds - run.started)

        def flags(values: Iterable[bool]) -> Flags:
            return np.fromiter(values, np.bool_, len(records))

        return cls(
            index=ints(record.planned.index for record in records),
            model=model,
            models=models,
            tenant=tenant,
            tenants=tenants,
            error=error,
            errors=errors,
            examples=tuple(examples[kind] for kind in errors),
            finish=finish,
            finishes=finishes,
            intended=times(record.intended for record in records),
            sent=times(record.sent for record in records),
            connected=times(record.connected for record in records),
            finished=times(record.finished for record in records),
            arrivals=np.asarray(arrivals, dtype=np.float64) - run.started,
            events=ints(len(record.events) for record in records),
            counted=ints(record.counted or len(record.events) for record in records),
            max_tokens=ints(record.planned.max_tokens for record in records),
            prompt=ints(record.prompt_tokens for record in records),
            cached=ints(record.cached_tokens for record in records),
            output=ints(record.output_tokens for record in records),
            status=ints(record.status for record in records),
            retry_after=np.fromiter(
                (np.nan if record.retry_after_s is None else record.retry_after_s for record in records),
                np.float64,
                len(records),
            ),
            structured=ints(_structured(record) for record in records),
            open=flags(record.planned.at is not None for record in records),
            left=flags(record.left for record in records),
            planned_leave=flags(record.planned.leave_after is not None for record in records),
            cold=flags(record.planned.cold for record in records),
            retried=flags(record.retried for record in records),
            folded=np.trim_zeros(np.asarray(run.gaps.counts, np.int64), "b") if run.gaps else np.empty(0, np.int64),
        )

    def __len__(self) -> int:
        return len(self.index)

    @property
    def begun(self) -> Floats:
        """What latencies count from: the intended time, of every request (livery_loadtest.record)."""
        return self.intended

    @property
    def answered(self) -> Flags:
        """Without an error; the client may have left, as planned."""
        return self.error < 0

    @property
    def whole(self) -> Flags:
        """Answered to the end."""
        return self.answered & ~self.left & np.isfinite(self.finished)

    @property
    def tokens(self) -> Ints:
        """Tokens of each answer: by the server's usage, or as many as events where it told none."""
        return np.where(self.output >= 0, self.output, self.counted)

    @property
    def ends(self) -> Ints:
        """Where each request's events end in `arrivals`."""
        return np.cumsum(self.events)

    @property
    def first(self) -> Floats:
        """Time of the first event."""
        return self._arrival(self.ends - self.events)

    @property
    def last(self) -> Floats:
        """Time of the last event."""
        return self._arrival(self.ends - 1)

    def _arrival(self, places: Ints) -> Floats:
        found = np.full(len(self), np.nan)
        some = self.events > 0
        found[some] = self.arrivals[places[some]]
        return found

    @property
    def ttft(self) -> Floats:
        """Seconds to the first event; NaN without one or with an error."""
        return np.where(self.answered, self.first - self.begun, np.nan)

    @property
    def tpot(self) -> Floats:
        """Seconds a token after the first, (last event - first) / (tokens - 1); NaN below two tokens or events."""
        several = self.whole & (self.tokens > 1) & (self.events > 1)
        return np.where(several, (self.last - self.first) / np.maximum(self.tokens - 1, 1), np.nan)

    @property
    def e2e(self) -> Floats:
        """Seconds to the end of a whole answer; NaN for others."""
        return np.where(self.whole, self.finished - self.begun, np.nan)

    @property
    def owners(self) -> Ints:
        """The request of each event."""
        return np.repeat(np.arange(len(self)), self.events)

    def gaps(self) -> tuple[Floats, Ints]:
        """Seconds between neighbouring events of one answer without an error, and the request of each gap.

        Of a folded run: of all answers, to a percent, and nobody knows whose (0).
        """
        if len(self.folded):
            lengths = LOWEST_S * GROWTH ** np.arange(len(self.folded), dtype=np.float64)
            values = np.repeat(lengths, self.folded)
            return values, np.zeros(len(values), np.int64)
        owners = self.owners
        inside = np.diff(owners, prepend=-1) == 0
        inside &= self.answered[owners]
        return np.diff(self.arrivals, prepend=0.0)[inside], owners[inside]

    def tokens_by_event(self) -> Floats:
        """Tokens that each event stands for: the answer's tokens evenly over its events; 0 for failed requests."""
        each = np.where(self.answered, self.tokens, 0) / np.maximum(self.events, 1)
        return np.repeat(each, self.events)

    def only(self, some: Flags) -> Columns:
        """The requests for which `some` is set."""
        events = np.repeat(some, self.events)
        kept: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        for name, value in kept.items():
            if isinstance(value, np.ndarray) and name != "folded":
                kept[name] = value[events if name == "arrivals" else some]
        return Columns(**kept)


def _coded(values: Iterable[str | None]) -> tuple[Ints, tuple[str, ...]]:
    """Names as places in a list of them, in the order in which they first come; -1 for None."""
    places: dict[str, int] = {}
    codes = [-1 if value is None else places.setdefault(value, len(places)) for value in values]
    return np.asarray(codes, dtype=np.int64), tuple(places)


def _structured(record: Record) -> int:
    if record.planned.json_schema is None or record.error is not None or record.left:
        return NOT_ASKED
    return PARSED if is_json(record.text) else BROKEN


def is_json(text: str) -> bool:
    """Whether a whole text is one JSON value."""
    try:
        msgspec.json.decode(text, type=Any)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return False
    return True


def joined(parts: Sequence[Floats]) -> Floats:
    """One array of several, also of none."""
    return np.concatenate(parts) if parts else np.empty(0)


def told(tokens: Ints) -> Ints:
    """Counts with 0 where none was told."""
    return np.maximum(tokens, 0)
