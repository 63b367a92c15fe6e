"""The requests of a simulation: when they come, how long they are, and which adapter each names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from livery.scale.plan.popularity import zipf
from livery.scale.plan.refusal import PlanRefused
from livery_loadtest.spec import SpecInvalid
from livery_loadtest.traces import Floats, Ints, azure_2023, draw, read_trace

SHIPPED = ("conv", "code")  # of which there are quantiles


@dataclass(frozen=True, slots=True)
class Requests:
    """One entry a request, in order of arrival: seconds, tokens, and the adapter's place in the popularity."""

    times: Floats
    prompts: Ints
    outputs: Ints
    adapters: Ints

    def __len__(self) -> int:
        return len(self.times)


def make_requests(
    trace: str, count: int, rate: float, adapters: int, exponent: float, longest: int, seed: int
) -> Requests:
    """`count` requests at `rate` a second, their adapters drawn by Zipf's law.

    `trace` is conv or code (drawn from the shipped quantiles of Azure's traces: lengths and gaps each by themselves) or
    a CSV file, whose rows are taken in order, again from the start where they are too few. Either way times are
    stretched to the rate, and prompts cut where a sequence would be longer than `longest` tokens. Raises PlanRefused.
    """
    gaps_rng, prompt_rng, output_rng, adapter_rng = (np.random.default_rng([seed, stream]) for stream in range(4))
    if trace in SHIPPED:
        summary = getattr(azure_2023(), trace)
        gaps = draw(summary.gap_s, count, gaps_rng)
        prompts = np.rint(draw(summary.prompt, count, prompt_rng)).astype(np.int64)
        outputs = np.rint(draw(summary.output, count, output_rng)).astype(np.int64)
    else:
        gaps, prompts, outputs = _of_file(Path(trace), count)
    times = np.cumsum(gaps)
    outputs = np.clip(outputs, 1, longest - 1)
    return Requests(
        times=times * (count / rate / times[-1]),
        prompts=np.clip(prompts, 1, longest - outputs),
        outputs=outputs,
        adapters=adapter_rng.choice(adapters, size=count, p=zipf(adapters, exponent)),
    )


def _of_file(path: Path, count: int) -> tuple[Floats, Ints, Ints]:
    try:
        rows = read_trace(path, most=count)
    except SpecInvalid as error:
        raise PlanRefused(f"--trace {error}; or name one that is shipped: {', '.join(SHIPPED)}") from error
    if len(rows.times) < 2 or not rows.times[-1]:
        raise PlanRefused(f"--trace {path}: its requests take no time; a trace has two at least, at different times")
    gaps = np.diff(rows.times)
    gaps = np.concatenate([gaps[-1:], gaps])  # a first one for the first request, and where the rows begin again
    return tuple(np.resize(column, count) for column in (gaps, rows.prompts, rows.outputs))  # type: ignore[return-value]


def prompt_seconds(prompts: Ints, seconds: Any) -> Floats:  # noqa: ANN401 - a function of one length
    """What reading each prompt takes; lengths are worked out once each."""
    lengths, places = np.unique(prompts, return_inverse=True)
    each: Floats = np.array([seconds(int(length)) for length in lengths])[places]
    return each
