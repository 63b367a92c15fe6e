"""What one step of the engine costs, by the fused decoder and by the model's own forward, alternating in one run:

    python tests/benchmarks/decode_step.py --out step.json

Each step is `ModelRunner.forward` alone: no scheduling, sampling or HTTP. Steps of 1 and 16 decoding rows, base only
and with 8 adapters of rank 16 on all linear modules, and 256 tokens of a prompt. With --profile, the three largest
costs of each decode step as well: by Python function for the own forward, by kernel for the fused one, whose layers
are called one by one for that.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from livery import __version__
from livery.engine.base import AdapterRef, EngineConfig
from livery.engine.plan import SampleSpec, SequenceSlice
from livery.engine.runner import ModelRunner
from livery.models import resolve_model
from livery_adapters.manifest import read_manifest
from livery_loadtest.origin import Origin, as_json, document, write_json
from livery_loadtest.random_adapters import write_random_adapters

MODEL = "smollm2-135m-instruct"
GREEDY = SampleSpec(temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, draw=0.0)
say = Console(stderr=True).print


class Steps:
    """One runner with eight adapters, and plans for it."""

    def __init__(self, base: Path, adapters: list[AdapterRef], **options: Any) -> None:
        self.runner = ModelRunner(EngineConfig(str(base), **options), say)
        self.size = self.runner.info.block_size
        self.digests = [adapter.digest for adapter in adapters]
        for adapter in adapters:
            self.runner.install(self.runner.read_adapter(adapter).packed)

    def decode(self, rows: int, adapters: int, context: int) -> list[SequenceSlice]:
        """One new token each for `rows` sequences of `context` tokens, `adapters` (0: none) taking turns."""
        blocks = context // self.size + 1
        chosen = sorted((self.digests[row % adapters] for row in range(rows)) if adapters else [""] * rows)
        return [
            SequenceSlice(
                str(row), (17 + row,), context, tuple(range(row * blocks, (row + 1) * blocks)), name or None, (GREEDY,)
            )
            for row, name in enumerate(chosen)
        ]

    def prefill(self, end: int, adapters: int) -> list[SequenceSlice]:
        """The last 256 of a prompt's first `end` tokens."""
        ids, table = tuple(range(100, 356)), tuple(range(-(-end // self.size)))
        return [SequenceSlice("prompt", ids, end - 256, table, self.digests[0] if adapters else None, (GREEDY,))]


def seconds(steps: Steps, plan: list[SequenceSlice]) -> float:
    start = time.perf_counter()
    steps.runner.forward(plan)
    return time.perf_counter() - start


def compare(sides: dict[str, Steps], kind: str, size: int, adapters: int, context: int, rounds: int) -> dict[str, Any]:
    """Median milliseconds of one kind of step on each side, and how the sides compare."""
    plans = {
        name: steps.decode(size, adapters, context) if kind == "decode" else steps.prefill(size, adapters)
        for name, steps in sides.items()
    }
    took: dict[str, list[float]] = {name: [] for name in sides}
    for round_ in range(rounds + 1):
        for name, steps in sides.items():
            spent = seconds(steps, plans[name])
            if round_:  # the first warms up
                took[name].append(spent * 1000)
    medians = {name: statistics.median(times) for name, times in took.items()}
    row = {"step": kind, "rows": size, "adapters": adapters, "context": context, **medians}
    row |= {f"{name} lowest": min(times) for name, times in took.items()}
    say(row)
    return row


def largest(steps: Steps, plan: list[SequenceSlice], rounds: int = 5) -> list[str]:
    """The three functions that a step spends most of its time in, themselves."""
    profile = cProfile.Profile()
    with profile:
        for _ in range(rounds):
            steps.runner.forward(plan)
    stats: Any = pstats.Stats(profile)
    by_time = sorted(stats.stats.items(), key=lambda item: item[1][2], reverse=True)
    return [
        f"{name} ({Path(file).name}): {own / rounds * 1000:.1f} ms in {calls / rounds:.0f} calls"
        for (file, _, name), (_, calls, own, _, _) in by_time[:3]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--context", type=int, default=200)
    parser.add_argument("--prefill", type=int, nargs="*", default=[256, 1024])
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    origin = Origin.here(__version__)
    base = resolve_model(MODEL).path
    with tempfile.TemporaryDirectory() as folder:
        made = write_random_adapters(base, Path(folder), 8, rank=16)
        adapters = [AdapterRef.of(read_manifest(path).digest, str(path)) for path in made.values()]
        sides = {"fused": Steps(base, adapters), "own": Steps(base, adapters, decoder="transformers")}
    results = [
        compare(sides, "decode", rows, count, options.context, options.rounds) for rows in (1, 16) for count in (0, 8)
    ]
    results += [
        compare(sides, "prefill", end, count, 0, max(3, options.rounds // 3))
        for end in options.prefill
        for count in (0, 8)
    ]
    if options.profile:
        decoder: Any = sides["fused"].runner._decoder
        decoder._native = None
        for row in results[:4]:
            for name, steps in sides.items():
                row[f"{name} largest"] = largest(steps, steps.decode(row["rows"], row["adapters"], options.context))
    measured = {"model": MODEL, "threads": torch.get_num_threads(), "steps": results}
    report = document("livery-bench-step/1", origin, ("torch", "transformers"), measured)
    if options.out:
        write_json(report, options.out)
    else:
        Console().print_json(as_json(report).decode())


if __name__ == "__main__":
    main()
