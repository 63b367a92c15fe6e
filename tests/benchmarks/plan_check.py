"""What `livery plan` says of this machine beside what the engine does on it, cell by cell:

    python tests/benchmarks/plan_check.py --out plan-check.json

The machine's bandwidth and arithmetic are measured between the cells (medians count). Decode steps and prompts are
single steps of the engine; `floor` is the plan's physics, `expected` the plan at its default efficiencies, `calibrated`
the plan at the two efficiencies that make two of the steps right (marked *), as one would set `--bandwidth-efficiency`
and `--compute-efficiency` from one's own measurement. The serving cells keep a number of requests under way through the
whole engine, scheduler and all, their adapters drawn by Zipf's law, and compare tokens a second and the distinct
adapters of a step.

    python tests/benchmarks/plan_check.py --bench loadtest/results/2026-11-21-engine-cpu.json

puts the plan beside the steps that `livery bench engine` measured, and measures nothing itself.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from livery import __version__
from livery.bench.alternate import alternate
from livery.bench.machine import measure_peak
from livery.bench.physics import Peak
from livery.bench.workbench import Workbench, reference
from livery.engine.base import AdapterRef, EngineConfig
from livery.engine.step_size import PROMPT_TOKENS
from livery.models import cache_dir, resolve_model
from livery.scale.plan.accelerators import Accelerator
from livery.scale.plan.planner import Plan, make_plan
from livery.scale.plan.popularity import expected_distinct, zipf
from livery.scale.plan.question import Question
from livery.scale.plan.roofline import StepCosts
from livery.scale.plan.shapes import ModelShape, model_shape
from livery_loadtest.origin import Origin, document, write_json
from livery_loadtest.random_adapters import write_random_adapters

MODEL = "smollm2-135m-instruct"
RANK, ADAPTERS, CONTEXT = 16, 32, 128
PROMPT, OUTPUT = 128, (32, 96)  # tokens; answers are of any length between
DECODE = ((1, 0), (1, 1), (4, 4), (8, 1), (8, 8), (16, 4), (16, 16), (32, 1), (32, 32), (64, 32))
PROMPTS = (256, 512, 1024)
STREAMS = (1, 8, 16)
FEWEST_SERVED = 12  # requests of a serving cell at least
CALIBRATING = ((1, 0), (32, 1))  # decode steps: rows, distinct adapters
say = Console(stderr=True).print


@dataclass(frozen=True, slots=True)
class Cell:
    """One measurement in seconds, and tokens a second for serving ones, beside what the plan says."""

    layout: str
    name: str
    measured: float
    floor: float
    expected: float
    calibrated: float
    unit: str = "s"

    @property
    def off(self) -> float:
        """Measured over calibrated, in time, whichever unit."""
        return self.measured / self.calibrated if self.unit == "s" else self.calibrated / self.measured


class Beside:
    """The plan for a machine that reached `peak`, beside what an engine did there."""

    def __init__(self, shape: ModelShape, layout: str, peak: Peak, context: int, batch_tokens: int) -> None:
        """`batch_tokens`: of the engine's longest step."""
        self.shape, self.layout, self.peak, self.context = shape, layout, peak, context
        self.batch_tokens = batch_tokens
        self.own: dict[str, float] = {}

    def plan(self, **fields: float) -> Plan:
        """The plan for the serving cells' load."""
        machine = Accelerator(
            name="cpu",
            kind="cpu",
            memory_gb=8,
            bandwidth_gb_s=self.peak.bandwidth / 1e9,
            tflops=self.peak.flops / 1e12,
        )
        question = Question(
            gpu=machine,
            model=self.shape,
            adapters=ADAPTERS,
            rank=RANK,
            prompt_tokens=PROMPT,
            output_tokens=sum(OUTPUT) // 2,
            weights=self.layout,
            dtype="float32",
            max_running=self.batch_tokens - PROMPT_TOKENS,
        )
        return make_plan(replace(question, **fields))

    def calibrate(self, measured: dict[str, float]) -> None:
        """The two efficiencies at which reading and computing add up to the time of both calibrating cells."""
        floor = self.plan().floor
        parts, times = [], []
        for rows, distinct in CALIBRATING:
            keys = rows * self.context
            parts.append((floor.reading(keys, distinct), floor.computing(rows, keys)))
            times.append(measured[f"decode {rows} x {distinct}"])
        solved = np.linalg.solve(np.array(parts), np.array(times))
        names = ("bandwidth_efficiency", "compute_efficiency")
        self.own = {name: float(np.clip(1 / one, 0.01, 1.0)) for name, one in zip(names, solved, strict=True)}
        say(f"{self.layout}: {', '.join(f'{name} {value:.2f}' for name, value in self.own.items())}")

    def steps(self, measured: dict[str, float]) -> list[Cell]:
        """Single steps, named `decode ROWS x DISTINCT` and `prompt TOKENS`."""
        plain, calibrated = self.plan(), self.plan(**self.own)
        return [
            Cell(
                self.layout,
                name,
                seconds,
                *(self._told(name, costs) for costs in (plain.floor, plain.expected, calibrated.expected)),
            )
            for name, seconds in measured.items()
        ]

    def _told(self, name: str, costs: StepCosts) -> float:
        kind, _, rest = name.partition(" ")
        if kind == "prompt":
            return replace(costs, chunk=self.batch_tokens).prefill(int(rest))
        rows, _, distinct = rest.partition(" x ")
        return costs.decode(int(rows), int(rows) * self.context, int(distinct))

    def serving(self, streams: int, rate: float, distinct: float) -> list[Cell]:
        """A closed loop's tokens a second, and the distinct adapters of its steps."""
        perfect = {"bandwidth_efficiency": 1.0, "compute_efficiency": 1.0}
        plans = [self.plan(**efficiencies) for efficiencies in (perfect, {}, self.own)]
        tokens = [one.replica.rate_at(streams) * one.question.output_tokens for one in plans]
        closed_form = expected_distinct(zipf(ADAPTERS, 1.0), streams)
        return [
            Cell(self.layout, f"serving {streams} streams", rate, *tokens, unit="tokens/s"),
            Cell(self.layout, f"distinct, {streams} streams", distinct, *[closed_form] * 3, unit="adapters"),
        ]


def of_bench(document: dict[str, Any]) -> tuple[dict[str, float], Peak, int, int]:
    """Decode steps and prompts of a `livery bench engine` document, peak, context of a row, most tokens of a step."""
    measured: dict[str, float] = {}
    for row in document["rows"]:
        facts = row["facts"]
        if found := re.match(r"one adapter / base, decode, (\d+) rows", row["name"]):
            rows = found.group(1)
            measured[f"decode {rows} x 0"], measured[f"decode {rows} x 1"] = facts["base"]["time"], facts["one"]["time"]
        elif found := re.match(r"(\d+) distinct adapters, decode", row["name"]):
            measured[f"decode {found.group(1)} x {found.group(1)}"] = facts["mixed"]["time"]
        elif found := re.match(r"prefill with adapter / base, (\d+) tokens", row["name"]):
            measured[f"prompt {found.group(1)}"] = facts["one"]["time"]
    peaks = [Peak(one["bandwidth"], one["flops"]) for one in document["peaks"]]
    return measured, Peak.typical(peaks), document["sizes"]["context"], document["engine"]["max_batch_tokens"]


def steps_of(bench: Workbench, adapters: Sequence[AdapterRef], rounds: int) -> tuple[dict[str, float], Peak]:
    """Seconds of decode steps and prompts, medians of rounds in which all take turns, and the machine's peak."""
    variants = {
        f"decode {rows} x {distinct}": bench.decoder(rows, CONTEXT, adapters[:distinct] or [None])
        for rows, distinct in DECODE
    }
    variants |= {f"prompt {tokens}": bench.reader(tokens, adapters[0]) for tokens in PROMPTS}
    found: dict[str, list[float]] = {name: [] for name in variants}
    peaks = []
    for _ in range(rounds):
        peaks.append(measure_peak(torch.device("cpu"), bench.runner.kernels))
        for name, seconds in alternate(variants, 1, 3).items():
            found[name] += seconds
    return {name: statistics.median(seconds) for name, seconds in found.items()}, Peak.typical(peaks)


def serve(bench: Workbench, adapters: Sequence[AdapterRef], streams: int) -> tuple[float, float]:
    """Tokens a second and distinct adapters a step of a closed loop, once as many as it has have ended."""
    rng = np.random.default_rng(streams)
    shares = zipf(ADAPTERS, 1.0)
    under_way: dict[str, int] = {}

    def submit() -> None:
        adapter = int(rng.choice(ADAPTERS, p=shares))
        length = int(rng.integers(OUTPUT[0], OUTPUT[1], endpoint=True))
        under_way[bench.submit(bench.tokens(PROMPT), length, adapters[adapter])] = adapter

    for _ in range(streams):
        submit()
    ended, begun, tokens, distinct, steps = 0, 0.0, 0, 0, 0
    while ended < streams + max(2 * streams, FEWEST_SERVED):
        before = sum(len(bench.answers[name].tokens) for name in under_way)
        bench.step()
        if begun:
            tokens += sum(len(bench.answers[name].tokens) for name in under_way) - before
            distinct += len(set(under_way.values()))
            steps += 1
        for name in [name for name in under_way if bench.answers[name].done]:
            del under_way[name], bench.answers[name]
            ended += 1
            submit()
        if not begun and ended >= streams:
            begun = perf_counter()
    seconds = perf_counter() - begun
    bench.settle()
    return tokens / seconds, distinct / steps


def measure(layout: str, rounds: int) -> list[Cell]:
    """Every cell of a layout of the weights, measured now."""
    base = resolve_model(MODEL).path
    made = write_random_adapters(base, cache_dir() / "bench", ADAPTERS, rank=RANK)
    adapters = [reference(path) for path in made.values()]
    config = EngineConfig(str(base), device="cpu", weights=layout, prefix_cache=False, adapter_memory_bytes=1 << 30)
    with closing(Workbench(config, lambda what: None)) as bench:
        bench.ready(adapters)
        measured, peak = steps_of(bench, adapters, rounds)
        beside = Beside(model_shape(str(base)), layout, peak, CONTEXT, bench.info.max_batch_tokens)
        say(f"engine holds {bench.info.weight_bytes / 1e6:.1f} MB, plan {beside.plan().memory.weights / 1e6:.1f}")
        beside.calibrate(measured)
        cells = beside.steps(measured)
        for streams in STREAMS:
            cells += beside.serving(streams, *serve(bench, adapters, streams))
    return cells


def show(cells: Sequence[Cell]) -> None:
    table = Table(title="the plan beside the engine", title_justify="left")
    for head in ("weights", "cell", "measured", "floor", "expected", "calibrated", "time over calibrated"):
        table.add_column(head, justify="left" if head in ("weights", "cell") else "right")
    for cell in cells:
        factor, unit = (1e3, "ms") if cell.unit == "s" else (1, cell.unit)
        star = " *" if cell.name in {f"decode {rows} x {distinct}" for rows, distinct in CALIBRATING} else ""
        numbers = [f"{factor * one:.1f} {unit}" for one in (cell.measured, cell.floor, cell.expected, cell.calibrated)]
        table.add_row(cell.layout, cell.name + star, *numbers, f"{cell.off:.2f}")
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--layouts", nargs="*", default=["int4", "fp32"], help="of the weights: int4, int8, bf16, fp32")
    parser.add_argument(
        "--bench", type=Path, help="a document of `livery bench engine`: measure nothing, take its times"
    )
    options = parser.parse_args()
    origin = Origin.here(__version__)
    if options.bench:
        measured, peak, context, batch_tokens = of_bench(json.loads(options.bench.read_bytes()))
        beside = Beside(model_shape(MODEL), "int4", peak, context, batch_tokens)
        beside.calibrate(measured)
        cells = beside.steps(measured)
    else:
        cells = [cell for layout in options.layouts for cell in measure(layout, options.rounds)]
    show(cells)
    if options.out:
        facts = {"model": MODEL, "threads": torch.get_num_threads(), "rank": RANK, "calibrating": CALIBRATING}
        told = [{**asdict(cell), "time_over_calibrated": cell.off} for cell in cells]
        write_json(document("livery-plan-check/1", origin, ("torch", "numpy"), {**facts, "cells": told}), options.out)


if __name__ == "__main__":
    main()
