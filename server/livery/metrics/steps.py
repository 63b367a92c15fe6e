"""The engine's steps and loads as families."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, Metric

from livery.engine.figures import LOAD_SECONDS, PHASES, SIZES, STEP_SECONDS, EngineFigures, Spread
from livery.metrics.plain import counter, histogram, names_of


def step_families(steps: int, figures: EngineFigures) -> Iterator[Metric]:
    yield counter("livery_engine_steps", "Steps of the engine", {}, steps)
    phases = CounterMetricFamily("livery_engine_phase_seconds", "Where the engine's time goes", labels=["phase"])
    # Of an engine that tells no phases there are no samples.
    for phase, seconds in zip(PHASES, figures.phase_seconds, strict=False):
        phases.add_metric([phase], seconds)
    yield phases
    yield counter("livery_adapter_loads_failed", "Adapters that could not be loaded", {}, figures.load_failures)
    for name, text, bounds, spread in (
        ("engine_step_seconds", "Time of a step", STEP_SECONDS, figures.step_seconds),
        ("engine_step_sequences", "Sequences in a step", SIZES, figures.step_sequences),
        ("engine_step_tokens", "Tokens computed in a step", SIZES, figures.step_tokens),
        ("adapter_read_seconds", "Time from store to host memory", LOAD_SECONDS, figures.reads),
        ("adapter_copy_seconds", "Time from host to device memory", LOAD_SECONDS, figures.copies),
    ):
        yield _family(f"livery_{name}", text, bounds, spread)


def _family(name: str, text: str, bounds: Sequence[float], spread: Spread) -> Metric:
    counts = spread.counts or (0,) * (len(bounds) + 1)
    return histogram(name, text, {}, names_of(bounds), counts, spread.total)
