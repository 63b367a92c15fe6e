"""Where a decode step's time goes, by torch's profiler, with the native kernels under their own names."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch.profiler import ProfilerActivity, profile, record_function

from livery.bench.workbench import Workbench
from livery.engine.base import AdapterRef
from livery.engine.kernels import Kernels

STEPS = 10
LARGEST = 3
OUTSIDE = "python and launches"


@dataclass(frozen=True, slots=True)
class Cost:
    """One part of a step: seconds a step, and its share of the step."""

    name: str
    seconds: float
    share: float


@dataclass(frozen=True, slots=True)
class Profile:
    """The largest costs of a step of `rows` rows under `adapters` distinct adapters, `seconds` long.

    `forward` says whose forward it was: where one native call computes all layers, the same kernels called one by one
    show what is inside.
    """

    forward: str
    rows: int
    adapters: int
    seconds: float
    costs: tuple[Cost, ...]


def profiles(
    bench: Workbench, adapters: Sequence[AdapterRef], context: int, forward: str, rows: Sequence[int] = (1, 16)
) -> Iterator[Profile]:
    """The base and `adapters` mixed, at each number of rows. The profiler slows what it watches a little."""
    for count in rows:
        for chosen in ((), adapters[:count]):
            step = bench.decoder(count, context, list(chosen) or [None])
            yield _profile(step, bench, forward, count, len(chosen))


def _profile(step: Callable[[], object], bench: Workbench, forward: str, rows: int, adapters: int) -> Profile:
    step()
    activities = [ProfilerActivity.CPU]
    if bench.info.device != "cpu":
        activities.append(ProfilerActivity.CUDA)
    with _named(bench.runner.kernels), profile(activities=activities) as watched:
        start = time.perf_counter()
        for _ in range(STEPS):
            step()
        seconds = (time.perf_counter() - start) / STEPS
    spent: dict[str, float] = {}
    for event in watched.key_averages():
        own = event.self_cpu_time_total if bench.info.device == "cpu" else event.self_device_time_total
        spent[event.key] = spent.get(event.key, 0.0) + own / 1e6 / STEPS
    if bench.info.device == "cpu":  # nothing else runs beside it there
        spent[OUTSIDE] = max(0.0, seconds - sum(spent.values()))
    largest = sorted(spent.items(), key=lambda item: -item[1])[:LARGEST]
    costs = tuple(Cost(name, own, own / seconds) for name, own in largest)
    return Profile(forward, rows, adapters, seconds, costs)


@contextmanager
def _named(kernels: Kernels) -> Iterator[None]:
    """While this lasts, every call of a kernel is an event of its own: the profiler doesn't see into C++ by itself."""
    names = [name for name in dir(kernels) if not name.startswith("_") and callable(getattr(kernels, name))]
    held = vars(kernels)
    before = dict(held)
    held.update({name: _watched(f"livery::{name}", getattr(kernels, name)) for name in names})
    try:
        yield
    finally:
        held.clear()
        held.update(before)


def _watched(label: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **keywords: Any) -> Any:  # noqa: ANN401 - whatever the kernel takes and gives
        with record_function(label):
            return call(*args, **keywords)

    return run
