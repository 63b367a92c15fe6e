"""What `livery plan` says of this machine beside what the engine does on it, cell by cell:

    python tests/benchmarks/plan_check.py --out plan-check.json

The machine's bandwidth and arithmetic are measured between the cells (medians count). Decode steps and prompts are
single steps of the engine; `floor` is the plan's physics, `expected` the plan at its default efficiencies, `calibrated`
the plan at the two efficiencies that one decode step and one prompt of this run have (marked *), as one would set
`--bandwidth-efficiency` and `--compute-efficiency` from one's own measurement. The serving cells keep a number of
requests under way through the whole engine, scheduler and all, their adapters drawn by Zipf's law, and compare tokens a
second and the distinct adapters of a step.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter

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
from livery.models import cache_dir, resolve_model
from livery.scale.plan.accelerators import Accelerator
from livery.scale.plan.planner import Plan, make_plan
from livery.scale.plan.popularity import expected_distinct, zipf
from livery.scale.plan.question import Question
from livery.scale.plan.shapes import model_shape
from livery_loadtest.origin import Origin, document, write_json
from livery_loadtest.random_adapters import write_random_adapters

MODEL = "smollm2-135m-instruct"
RANK, ADAPTERS, CONTEXT = 16, 32, 128
PROMPT, OUTPUT = 128, (32, 96)  # tokens; answers are of any length between
DECODE = ((1, 0), (1, 1), (4, 4), (8, 1), (8, 8), (16, 4), (16, 16), (32, 1), (32, 32), (64, 32))
PROMPTS = (256, 512, 1024)
STREAMS = (1, 8, 16, 32)
BANDWIDTH_CELL, COMPUTE_CELL = "decode 1 x 0", "prompt 512"
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


class Check:
    """Cells of one layout of the weights."""

    def __init__(self, bench: Workbench, adapters: Sequence[AdapterRef], layout: str, rounds: int) -> None:
        self.bench, self.adapters, self.layout, self.rounds = bench, adapters, layout, rounds
        self.peaks: list[Peak] = []
        self.shape = model_shape(bench.config.model_path)

    def look(self) -> None:
        self.peaks.append(measure_peak(torch.device("cpu"), self.bench.runner.kernels))

    def plan(self, **fields: float) -> Plan:
        """The plan for this machine as it was measured, for the serving cells' load."""
        peak = Peak.typical(self.peaks)
        machine = Accelerator(
            name="cpu",
            kind="cpu",
            memory_gb=8,
            bandwidth_gb_s=peak.bandwidth / 1e9,
            tflops=peak.flops / 1e12,
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
        )
        return make_plan(replace(question, **fields))

    def steps(self) -> dict[str, float]:
        """Seconds of decode steps and prompts by name, medians of rounds in which all take turns."""
        variants = {
            f"decode {rows} x {distinct}": self.bench.decoder(rows, CONTEXT, self.adapters[:distinct] or [None])
            for rows, distinct in DECODE
        }
        variants |= {f"prompt {tokens}": self.bench.reader(tokens, self.adapters[0]) for tokens in PROMPTS}
        found: dict[str, list[float]] = {name: [] for name in variants}
        for _ in range(self.rounds):
            self.look()
            for name, seconds in alternate(variants, 1, 3).items():
                found[name] += seconds
        return {name: statistics.median(seconds) for name, seconds in found.items()}

    def cells(self) -> list[Cell]:
        """Every single step beside the plan, then the engine as a whole."""
        measured = self.steps()
        plan = self.plan()

        def told(name: str, one: Plan) -> tuple[float, float]:
            kind, _, rest = name.partition(" ")
            if kind == "prompt":
                return one.floor.prefill(int(rest)), one.expected.prefill(int(rest))
            rows, _, distinct = rest.partition(" x ")
            keys = int(rows) * CONTEXT
            costs = (one.floor, one.expected)
            floor, expected = (cost.decode(int(rows), keys, int(distinct)) for cost in costs)
            return floor, expected

        own = {
            "bandwidth_efficiency": min(1.0, told(BANDWIDTH_CELL, plan)[0] / measured[BANDWIDTH_CELL]),
            "compute_efficiency": min(1.0, told(COMPUTE_CELL, plan)[0] / measured[COMPUTE_CELL]),
        }
        say(
            f"{self.layout}: efficiencies {own}, engine holds {self.bench.info.weight_bytes / 1e6:.1f} MB, "
            f"the plan {plan.memory.weights / 1e6:.1f}"
        )
        calibrated = self.plan(**own)
        found = [
            Cell(self.layout, name, seconds, *told(name, plan), told(name, calibrated)[1])
            for name, seconds in measured.items()
        ]
        for streams in STREAMS:
            rate, distinct = self.serve(streams)
            expected, own_plan = self.plan(max_running=streams), self.plan(max_running=streams, **own)
            perfect = self.plan(max_running=streams, bandwidth_efficiency=1.0, compute_efficiency=1.0)
            tokens = [
                one.replica.rate_at(streams) * one.question.output_tokens for one in (perfect, expected, own_plan)
            ]
            found.append(Cell(self.layout, f"serving {streams} streams", rate, *tokens, unit="tokens/s"))
            closed_form = expected_distinct(zipf(ADAPTERS, 1.0), streams)
            distinct_cell = (distinct, closed_form, closed_form, closed_form)
            found.append(Cell(self.layout, f"distinct of {streams} streams", *distinct_cell, unit="adapters"))
        return found

    def serve(self, streams: int) -> tuple[float, float]:
        """Tokens a second and distinct adapters a step of a closed loop, once all streams have begun anew."""
        rng = np.random.default_rng(streams)
        shares = zipf(ADAPTERS, 1.0)
        bench, under_way = self.bench, dict[str, int]()

        def submit() -> None:
            adapter = int(rng.choice(ADAPTERS, p=shares))
            length = int(rng.integers(OUTPUT[0], OUTPUT[1], endpoint=True))
            under_way[bench.submit(bench.tokens(PROMPT), length, self.adapters[adapter])] = adapter

        for _ in range(streams):
            submit()
        ended, begun, tokens, distinct, steps = 0, 0.0, 0, 0, 0
        while ended < streams + max(2 * streams, 12):
            before = sum(len(bench.answers[name].tokens) for name in under_way)
            bench.step()
            after = sum(len(bench.answers[name].tokens) for name in under_way)
            if begun:
                tokens += after - before
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


def show(cells: Sequence[Cell]) -> None:
    table = Table(title="the plan beside the engine", title_justify="left")
    for head in ("weights", "cell", "measured", "floor", "expected", "calibrated", "time over calibrated"):
        table.add_column(head, justify="left" if head in ("weights", "cell") else "right")
    for cell in cells:
        factor, unit = (1e3, "ms") if cell.unit == "s" else (1, cell.unit)
        star = " *" if cell.name in (BANDWIDTH_CELL, COMPUTE_CELL) else ""
        numbers = [f"{factor * one:.1f} {unit}" for one in (cell.measured, cell.floor, cell.expected, cell.calibrated)]
        table.add_row(cell.layout, cell.name + star, *numbers, f"{cell.off:.2f}")
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--layouts", nargs="*", default=["int4", "fp32"], help="of the weights: int4, int8, bf16, fp32")
    options = parser.parse_args()
    origin = Origin.here(__version__)
    base = resolve_model(MODEL).path
    made = write_random_adapters(base, cache_dir() / "bench", ADAPTERS, rank=RANK)
    adapters = [reference(path) for path in made.values()]
    cells: list[Cell] = []
    peaks: list[Peak] = []
    for layout in options.layouts:
        config = EngineConfig(str(base), device="cpu", weights=layout, prefix_cache=False, adapter_memory_bytes=1 << 30)
        with closing(Workbench(config, lambda what: None)) as bench:
            bench.ready(adapters)
            check = Check(bench, adapters, layout, options.rounds)
            cells += check.cells()
            peaks += check.peaks
    show(cells)
    if options.out:
        measured = {
            "model": MODEL,
            "threads": torch.get_num_threads(),
            "rank": RANK,
            "context": CONTEXT,
            "peaks": peaks,
            "cells": [{**asdict(cell), "time_over_calibrated": cell.off} for cell in cells],
        }
        write_json(document("livery-plan-check/1", origin, ("torch", "numpy"), measured), options.out)


if __name__ == "__main__":
    main()
