"""What happened when, in rows over time: loads, cold starts and errors; adapters and how long they waited."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from livery_loadtest.breakdown import SHOWN
from livery_loadtest.columns import Columns, joined
from livery_loadtest.report.pictures import time_axis
from livery_loadtest.report.plots import Axis, Cell, Strip, Strips
from livery_loadtest.report.result import Result
from livery_loadtest.report.words import count, duration, number

_WINDOWS = 48  # of a heat map


def timeline(result: Result) -> Strips | None:
    """When adapters were loaded, asked for cold, and when requests failed: a row of each kind for each target."""
    x = time_axis(result)
    rows: list[Strip] = []
    for colour, (target, repeats) in enumerate(result.measured.items()):
        written = result.repeats_of(target)
        loads = [
            (load.at, load.seconds, f"{load.model}: {load.error or duration(1000 * load.seconds)}")
            for one in written
            for load in one.loads
        ]
        hooks = [
            (hook.at, hook.seconds, f"{hook.name}: status {hook.status}") for one in written for hook in one.hooked
        ]
        cold = [moment for one in repeats for moment in _cold(one.columns)]
        wrong = [moment for one in repeats for moment in _failed(one.columns)]
        for label, moments, bad in (
            ("loads", loads, False),
            ("cold starts", cold, False),
            ("commands", hooks, False),
            ("errors", wrong, True),
        ):
            if moments:
                name = f"{target}: {label}" if len(result.targets) > 1 else label
                rows.append(Strip(name, _moments(moments, x), colour, count(len(moments)), bad))
    return Strips("Loads, cold starts and errors", x, rows, note="all repeats, one over the other") if rows else None


def _cold(columns: Columns) -> list[tuple[float, float, str]]:
    some = np.flatnonzero(columns.cold & np.isfinite(columns.ttft))
    return [
        (
            float(columns.begun[place]),
            float(columns.ttft[place]),
            f"{columns.models[columns.model[place]]}: {duration(1000 * columns.ttft[place])}",
        )
        for place in some
    ]


def _failed(columns: Columns) -> list[tuple[float, float, str]]:
    begun = np.where(np.isfinite(columns.sent), columns.sent, columns.intended)
    some = np.flatnonzero((columns.error >= 0) & np.isfinite(begun))
    return [(float(begun[place]), 0.0, columns.errors[columns.error[place]]) for place in some]


def _moments(moments: Sequence[tuple[float, float, str]], x: Axis) -> list[Cell]:
    """At most a few hundred cells: those that fall together become one, which says how many it stands for."""
    together: dict[float, list[tuple[float, float, str]]] = {}
    for moment in sorted(moments):
        together.setdefault(round(x.place(moment[0]) * 3), []).append(moment)
    cells = []
    for some in together.values():
        at, _, says = some[0]
        width = max(x.place(at + length) - x.place(at) for at, length, _ in some)
        more = f" and {count(len(some) - 1)} more" if len(some) > 1 else ""
        strength = min(1.0, 0.55 + 0.15 * len(some))
        cells.append(Cell(x.place(at), max(width, 0.25), strength, f"{number(at)} s, {says}{more}"))
    return cells


def heat_maps(result: Result) -> list[Strips]:
    """Adapters over time: how many requests each got, the same for all targets, and how long each target took."""
    if not any(len(one.adapters) > 1 for one in result.summary):
        return []
    x = time_axis(result)
    first, *_ = result.measured
    maps = [_heat_map("Requests", result, first, x, None)]
    waits = {target: _cells(result, target, x) for target in result.measured}
    known = [wait for cells in waits.values() for row in cells.values() for _, wait in row.values() if wait is not None]
    if known:
        low, high = float(np.quantile(known, 0.02)), float(np.quantile(known, 0.98))
        maps += [_heat_map("Median time to first token", result, target, x, (low, high)) for target in result.measured]
    return maps


def _cells(result: Result, target: str, x: Axis) -> dict[str, dict[int, tuple[int, float | None]]]:
    """By adapter and window: requests over all repeats, and the median of their TTFT in milliseconds."""
    busiest = [group.name for one in result.summary if one.target == target for group in one.adapters[:SHOWN]]
    found: dict[str, dict[int, tuple[int, float | None]]] = {}
    parts = [one.columns for one in result.measured[target]]
    begun = joined([one.begun for one in parts])
    ttft = joined([one.ttft for one in parts])
    model = np.concatenate([np.asarray([*one.models, ""], dtype=object)[one.model] for one in parts])
    window = np.clip(np.nan_to_num(begun) / x.high * _WINDOWS, 0, _WINDOWS - 1).astype(np.int64)
    for name in busiest:
        mine = np.flatnonzero(model == name)
        cells: dict[int, tuple[int, float | None]] = {}
        for place in np.unique(window[mine]):
            inside = mine[window[mine] == place]
            waits = ttft[inside][np.isfinite(ttft[inside])]
            cells[int(place)] = (len(inside), float(1000 * np.median(waits)) if len(waits) else None)
        if cells:
            found[name] = cells
    return found


def _heat_map(title: str, result: Result, target: str, x: Axis, waits: tuple[float, float] | None) -> Strips:
    cells = _cells(result, target, x)
    most = max((many for row in cells.values() for many, _ in row.values()), default=1)
    several = len(result.targets) > 1
    rows = []
    for name, row in cells.items():
        drawn = []
        for window, (many, wait) in sorted(row.items()):
            strength = many / most if waits is None else _strength(wait, *waits)
            says = f"{name}: {count(many)} requests, TTFT {duration(wait)}"
            if strength is not None:
                drawn.append(Cell(round(100 * window / _WINDOWS, 2), round(100 / _WINDOWS, 2), strength, says))
        rows.append(Strip(name, drawn, list(result.measured).index(target) if waits else 0))
    full = title if waits is None or not several else f"{title}, {target}"
    scale = ("1", count(most)) if waits is None else (duration(waits[0]), duration(waits[1]))
    return Strips(full, x, rows, scale)


def _strength(value: float | None, low: float, high: float) -> float | None:
    """On a log scale from a tenth to 1."""
    if value is None:
        return None
    low, high = max(low, 1e-6), max(high, 1e-6)
    part = math.log(max(value, 1e-6) / low) / math.log(high / low) if high > low else 0.5
    return round(0.1 + 0.9 * min(1.0, max(0.0, part)), 3)
