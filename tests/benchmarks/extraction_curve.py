"""What a rank leaves of a full fine-tune of the demo base: error, KL and perplexity by rank, as a table and an SVG.

    python tests/benchmarks/extraction_curve.py --out extraction-curve.json --svg extraction-curve.svg

The fine-tune is demo_tuned.py's, made once. It is extracted at the highest rank, timed, and cut to the others: a pair's
rows are in the order of its singular values. Beside that as `livery adapters extract` does by itself, with
a rank chosen for each module (`auto`). The text is new entries of the same logbook.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.demo_tuned import logbook, tuned_demo
from livery import __version__
from livery.commands.extracting import ENERGY
from livery.commands.text_loss import compared, reading_prover
from livery.commands.two_models import together
from livery.models import DEMO_MODEL, ResolvedModel, base_digest, resolve_model
from livery.text import Tokenizer
from livery_adapters.making.extract import Aim, ExtractReport, extract
from livery_adapters.making.extract_checkpoint import Checkpoint
from livery_adapters.making.extract_plan import Side
from livery_adapters.tensor_file import CONFIG_NAME, WEIGHTS_NAME
from livery_loadtest.origin import Origin, document, write_json

RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
WINDOW = 512
_SEED = 99  # of the text, which training never saw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="where the JSON goes")
    parser.add_argument("--svg", type=Path, help="where the plot goes")
    parser.add_argument("--tokens", type=int, default=2048, help="of the text")
    given = parser.parse_args()
    base, tuned = resolve_model(DEMO_MODEL), ResolvedModel("tuned", tuned_demo())
    origin = Origin.here(f"livery {__version__}")  # the machine's load before this run's own
    with tempfile.TemporaryDirectory(prefix="livery-curve-") as scratch:
        found = curve(base, tuned, Path(scratch), given.tokens)
    write_json(document("livery-extraction-curve/1", origin, ["torch", "transformers", "peft"], found), given.out)
    if given.svg:
        given.svg.write_text(drawn(found["ranks"], found["base"]["kl"]))
    show(found)


def curve(base: ResolvedModel, tuned: ResolvedModel, folder: Path, tokens: int) -> dict[str, Any]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, cpu = time.perf_counter(), time.process_time()
    report = extracted(base, tuned, folder / "whole", Aim(rank=RANKS[-1]))
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    auto = extracted(base, tuned, folder / "auto", Aim(error=math.sqrt(1 - ENERGY)))
    cuts = {rank: cut(folder / "whole", folder / str(rank), rank, report) for rank in RANKS}
    ids = Tokenizer.from_directory(base.path).encode_bare(logbook(_SEED, 100))[:tokens]
    prover = reading_prover(base.path, base_digest(base.path), WINDOW, lambda words: None)
    made = [*(folder / str(rank) for rank in RANKS), folder / "auto"]
    text = compared(prover, tuned.path, made, ids, WINDOW)
    ranks = [
        {
            "rank": rank,
            "error": cuts[rank],
            "nbytes": (folder / str(rank) / WEIGHTS_NAME).stat().st_size,
            "pair_nbytes": pair_bytes(folder / str(rank)),
            **measured,
        }
        for rank, measured in zip(RANKS, text["adapters"], strict=False)  # the last one is `auto`'s
    ]
    chosen = sorted(module.rank for module in auto.modules.values() if module.rank)
    return {
        "tokens": text["tokens"],
        "seconds": seconds,
        "cpu_seconds": cpu,
        "peak_mb_above_imports": (peak - before) / 1024,
        "threads": torch.get_num_threads(),
        "moved": report.moved,
        "base": text["base"],
        "tuned": text["tuned"],
        "ranks": ranks,
        "auto": {"error": auto.error, "nbytes": auto.nbytes, "ranks": [chosen[0], chosen[-1]], **text["adapters"][-1]},
    }


def extracted(base: ResolvedModel, tuned: ResolvedModel, out: Path, aim: Aim) -> ExtractReport:
    models = together(base, tuned)
    sides = (
        Side.of(Checkpoint.open(model.path), models.shapes, tied)
        for model, tied in ((base, models.base_tied), (tuned, models.tuned_tied))
    )
    return extract(*sides, models.shapes, aim, out)


def cut(whole: Path, out: Path, rank: int, report: ExtractReport) -> float:
    """The adapter at a lower rank, and the error of all its pairs together."""
    shutil.copytree(whole, out)
    tensors = load_file(whole / WEIGHTS_NAME)
    lost = total = 0.0
    for name in [name for name in tensors if name.endswith("lora_A.weight")]:
        other = name.replace("lora_A", "lora_B")
        a, b = tensors[name], tensors[other]
        values = (a.double().norm(dim=1) * b.double().norm(dim=0)).square()
        error = report.modules[name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")].error
        square = float(values.sum()) / (1 - error**2)
        lost += square * error**2 + float(values[rank:].sum())
        total += square
        tensors[name], tensors[other] = a[:rank].contiguous(), b[:, :rank].contiguous()
    save_file(tensors, out / WEIGHTS_NAME)
    config = json.loads((out / CONFIG_NAME).read_text())
    ranks = {module: min(rank, old) for module, old in config["rank_pattern"].items()}
    fields = {"r": min(rank, config["r"]), "lora_alpha": min(rank, config["r"])}
    (out / CONFIG_NAME).write_text(json.dumps({**config, **fields, "rank_pattern": ranks, "alpha_pattern": ranks}))
    return math.sqrt(lost / total)


def pair_bytes(adapter: Path) -> int:
    tensors = load_file(adapter / WEIGHTS_NAME)
    return sum(tensor.nbytes for name, tensor in tensors.items() if ".lora_" in name)


def show(found: Mapping[str, Any]) -> None:
    table = Table(title=f"{found['tokens']} tokens; extracted at rank {RANKS[-1]} in {found['seconds']:.0f} s")
    for column in ("rank", "left out of ΔW", "KL, nats a token", "perplexity", "same best", "pairs", "file"):
        table.add_column(column, justify="right")
    table.add_row("base", "1", *told(found["base"]), "", "")
    for row in found["ranks"]:
        sizes = (f"{row['pair_nbytes'] / 1e6:.1f} MB", f"{row['nbytes'] / 1e6:.1f} MB")
        table.add_row(str(row["rank"]), f"{row['error']:.3f}", *told(row), *sizes)
    auto, (least, most) = found["auto"], found["auto"]["ranks"]
    table.add_row(f"auto, {least} to {most}", f"{auto['error']:.3f}", *told(auto), "", f"{auto['nbytes'] / 1e6:.1f} MB")
    table.add_row("tuned", "0", "0", f"{found['tuned']['perplexity']:.3f}", "", "", "")
    Console(width=110).print(table)


def told(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return f"{row['kl']:.5f}", f"{row['perplexity']:.3f}", f"{row['same_best']:.1%}"


# -- the plot ------------------------------------------------------------------------------------------------

_WIDE, _HIGH, _EDGE = 640, 360, 60


def drawn(rows: Sequence[Mapping[str, Any]], base_kl: float) -> str:
    """Error of ΔW and KL as a share of the base's, both on a scale of powers of ten, by rank."""
    curves = {
        "‖ΔW - B·A‖ / ‖ΔW‖": ("#2266aa", [row["error"] for row in rows]),
        "KL, share of the base's": ("#bb5522", [row["kl"] / base_kl for row in rows]),
    }
    low = math.floor(math.log10(min(min(values) for _, values in curves.values())))

    def x(index: int) -> float:
        return _EDGE + index * (_WIDE - 2 * _EDGE) / (len(rows) - 1)

    def y(value: float) -> float:
        return _EDGE / 2 + math.log10(value) / low * (_HIGH - 1.5 * _EDGE)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDE} {_HIGH}" font-family="sans-serif"'
        ' font-size="12">',
        f'<rect width="{_WIDE}" height="{_HIGH}" fill="white"/>',
    ]
    for power in range(low, 1):
        parts.append(f'<path d="M{_EDGE} {y(10**power):.1f}H{_WIDE - _EDGE}" stroke="#ddd"/>')
        parts.append(f'<text x="{_EDGE - 8}" y="{y(10**power) + 4:.1f}" text-anchor="end">{10**power:g}</text>')
    for index, row in enumerate(rows):
        parts.append(f'<text x="{x(index):.1f}" y="{_HIGH - 38}" text-anchor="middle">{row["rank"]}</text>')
    parts.append(f'<text x="{_WIDE / 2}" y="{_HIGH - 18}" text-anchor="middle">rank of every linear module</text>')
    for line, (name, (colour, values)) in enumerate(curves.items()):
        points = " ".join(f"{x(index):.1f},{y(value):.1f}" for index, value in enumerate(values))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{_EDGE + 10}" y="{_HIGH - 90 + 18 * line}" fill="{colour}">{name}</text>')
    return "\n".join([*parts, "</svg>\n"])


if __name__ == "__main__":
    main()
