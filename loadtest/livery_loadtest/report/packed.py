"""One repeat as it stands in a result file: columns of whole numbers, the times of events squeezed into one text."""

from __future__ import annotations

import base64
import binascii
import math
import zlib
from collections.abc import Sequence

import msgspec
import numpy as np

from livery_loadtest.columns import Columns, Flags, Floats, Ints
from livery_loadtest.record import Health, Hooked, Load, Run, Sample


class Requests(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Columns, one entry a request in the order of `index`; times in microseconds after the start, -1: not reached.

    `model`, `tenant`, `error` and `finish` are places in the lists of names, -1 for none; tokens are the server's
    usage, -1 where it told none. `gaps` holds the microseconds between the events of each answer, one answer after
    the other (an answer of n events has n - 1): 32-bit unsigned little-endian numbers, zlib, base64.
    Of a long run, `events` are the first and the last, `counted` how many there were, and `folded` the histogram of
    all gaps (livery_loadtest.gaps); else both are empty.
    """

    models: list[str]
    tenants: list[str]
    errors: list[str]
    error_examples: list[str]
    finishes: list[str]
    index: list[int]
    model: list[int]
    tenant: list[int]
    error: list[int]
    finish: list[int]
    intended_us: list[int]
    sent_us: list[int]
    connected_us: list[int]
    first_us: list[int]
    finished_us: list[int]
    retry_after_us: list[int]
    events: list[int]
    max_tokens: list[int]
    prompt_tokens: list[int]
    cached_tokens: list[int]
    output_tokens: list[int]
    status: list[int]
    structured: list[int]
    open: list[int]
    left: list[int]
    planned_leave: list[int]
    cold: list[int]
    gaps: str
    folded: list[int]
    counted: list[int] = []
    retried: list[int] = []  # none in files that were written before there was this column


class Samples(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The server's metrics: what never changed once, what did as one value a sample; null where it had none."""

    at: list[float]
    steady: dict[str, float]
    series: dict[str, list[float | None]]


class Repeat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One run of the workload on one target. `at_s`: when it began, seconds after the first of all."""

    target: str
    repeat: int
    at_s: float
    seconds: float
    interrupted: bool
    health: Health
    requests: Requests
    samples: Samples
    loads: list[Load]
    hooked: list[Hooked]
    unsampled: str = ""

    def columns(self) -> Columns:
        """Its requests as arrays. Raises ValueError for columns that don't fit together."""
        return _unpack(self.requests)


def pack(run: Run, began: float) -> Repeat:
    """A run as it is written down; `began` is the start of the first one, on the clock of `run.started`."""
    return Repeat(
        target=run.target,
        repeat=run.repeat,
        at_s=round(run.started - began, 6),
        seconds=round(run.seconds, 6),
        interrupted=run.interrupted,
        health=run.health,
        requests=_pack(Columns.of(run)),
        samples=_pack_samples(run.samples),
        loads=list(run.loads),
        hooked=list(run.hooked),
        unsampled=run.unsampled,
    )


def _microseconds(seconds: Floats) -> list[int]:
    whole = np.where(np.isnan(seconds), -1, np.rint(np.nan_to_num(seconds) * 1e6))
    return [int(value) for value in whole]


def _pack(columns: Columns) -> Requests:
    inside = np.diff(columns.owners, prepend=-1) == 0
    gaps = np.diff(np.rint(columns.arrivals * 1e6), prepend=0.0)[inside]
    small = np.clip(gaps, 0, 2**32 - 1).astype("<u4")
    return Requests(
        models=list(columns.models),
        tenants=list(columns.tenants),
        errors=list(columns.errors),
        error_examples=list(columns.examples),
        finishes=list(columns.finishes),
        index=columns.index.tolist(),
        model=columns.model.tolist(),
        tenant=columns.tenant.tolist(),
        error=columns.error.tolist(),
        finish=columns.finish.tolist(),
        intended_us=_microseconds(columns.intended),
        sent_us=_microseconds(columns.sent),
        connected_us=_microseconds(columns.connected),
        first_us=_microseconds(columns.first),
        finished_us=_microseconds(columns.finished),
        retry_after_us=_microseconds(columns.retry_after),
        events=columns.events.tolist(),
        max_tokens=columns.max_tokens.tolist(),
        prompt_tokens=columns.prompt.tolist(),
        cached_tokens=columns.cached.tolist(),
        output_tokens=columns.output.tolist(),
        status=columns.status.tolist(),
        structured=columns.structured.tolist(),
        open=columns.open.astype(np.int64).tolist(),
        left=columns.left.astype(np.int64).tolist(),
        planned_leave=columns.planned_leave.astype(np.int64).tolist(),
        cold=columns.cold.astype(np.int64).tolist(),
        gaps=base64.b64encode(zlib.compress(small.tobytes(), 6)).decode("ascii"),
        folded=columns.folded.tolist(),
        counted=columns.counted.tolist() if len(columns.folded) else [],
        retried=columns.retried.astype(np.int64).tolist(),
    )


def _unpack(packed: Requests) -> Columns:
    lists = {name: value for name, value in msgspec.structs.asdict(packed).items() if isinstance(value, list)}
    names = {"models", "tenants", "errors", "error_examples", "finishes", "folded"}
    names |= {name for name in ("counted", "retried") if not lists[name]}
    lengths = {name: len(value) for name, value in lists.items() if name not in names}
    odd = [name for name, length in lengths.items() if length != len(packed.index)]
    if odd:
        raise ValueError(f"column {odd[0]} has {lengths[odd[0]]} entries and index {len(packed.index)}")
    codes = (
        *(("model", packed.models), ("tenant", packed.tenants)),
        *(("error", packed.errors), ("finish", packed.finishes)),
    )
    for name, known in codes:
        if any(not -1 <= code < len(known) for code in lists[name]):
            raise ValueError(f"column {name} names an entry that its list of {len(known)} doesn't have")
    events = _ints(packed.events)
    return Columns(
        index=_ints(packed.index),
        model=_ints(packed.model),
        models=tuple(packed.models),
        tenant=_ints(packed.tenant),
        tenants=tuple(packed.tenants),
        error=_ints(packed.error),
        errors=tuple(packed.errors),
        examples=tuple(packed.error_examples),
        finish=_ints(packed.finish),
        finishes=tuple(packed.finishes),
        intended=_seconds(packed.intended_us),
        sent=_seconds(packed.sent_us),
        connected=_seconds(packed.connected_us),
        finished=_seconds(packed.finished_us),
        arrivals=_arrivals(packed, events),
        events=events,
        counted=_ints(packed.counted) if packed.counted else events,
        max_tokens=_ints(packed.max_tokens),
        prompt=_ints(packed.prompt_tokens),
        cached=_ints(packed.cached_tokens),
        output=_ints(packed.output_tokens),
        status=_ints(packed.status),
        retry_after=_seconds(packed.retry_after_us),
        structured=_ints(packed.structured),
        open=_flags(packed.open),
        left=_flags(packed.left),
        planned_leave=_flags(packed.planned_leave),
        cold=_flags(packed.cold),
        retried=_flags(packed.retried or [0] * len(packed.index)),
        folded=_ints(packed.folded),
    )


def _ints(values: Sequence[int]) -> Ints:
    return np.asarray(values, dtype=np.int64)


def _flags(values: Sequence[int]) -> Flags:
    return np.asarray(values, dtype=np.int64) > 0


def _seconds(microseconds: Sequence[int]) -> Floats:
    values = np.asarray(microseconds, dtype=np.float64)
    return np.where(values < 0, np.nan, values / 1e6)


def _arrivals(packed: Requests, events: Ints) -> Floats:
    """The times of all events, from each answer's first one and the gaps after it. Raises ValueError."""
    try:
        gaps = np.frombuffer(zlib.decompress(base64.b64decode(packed.gaps, validate=True)), dtype="<u4")
    except (zlib.error, binascii.Error, ValueError) as error:
        raise ValueError(f"gaps can't be read: {error}") from error
    some = events > 0
    expected = int((events[some] - 1).sum())
    if len(gaps) != expected or (events < 0).any():
        raise ValueError(f"gaps has {len(gaps)} entries; the events of these answers have {expected} between them")
    begins = (np.cumsum(events) - events)[some]
    steps = np.zeros(int(events.sum()), dtype=np.int64)
    is_gap = np.ones(len(steps), dtype=np.bool_)
    is_gap[begins] = False
    steps[is_gap] = gaps
    since_begin = np.cumsum(steps)
    owners = np.repeat(np.arange(len(begins)), events[some])
    first = _ints(packed.first_us)[some]
    microseconds: Ints = first[owners] + since_begin - since_begin[begins][owners]
    return microseconds.astype(np.float64) / 1e6


def _pack_samples(samples: Sequence[Sample]) -> Samples:
    names = dict.fromkeys(name for sample in samples for name in sample.values)
    columns = {name: [_finite(sample.values.get(name)) for sample in samples] for name in names}
    steady: dict[str, float] = {}
    series: dict[str, list[float | None]] = {}
    for name, values in columns.items():
        first = values[0]
        if first is not None and all(value == first for value in values):
            steady[name] = first
        else:
            series[name] = values
    return Samples([round(sample.at, 3) for sample in samples], steady, series)


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def unpack_samples(packed: Samples) -> list[Sample]:
    """The samples as they were taken."""
    return [
        Sample(at, packed.steady | {name: value for name, values in packed.series.items() if (value := values[place])})
        for place, at in enumerate(packed.at)
    ]
