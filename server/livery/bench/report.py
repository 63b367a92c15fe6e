"""What a run of `livery bench engine` amounts to: a JSON document and tables. Measures nothing."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from livery.bench.bars import Row
from livery.bench.physics import Peak
from livery.bench.profile import Profile
from livery.bench.sizes import Sizes
from livery.bench.suite import Findings
from livery.engine.base import EngineInfo
from livery_loadtest.bars import COLOURS
from livery_loadtest.measures import Spread
from livery_loadtest.report import Origin

SCHEMA = "livery-bench-engine/1"
VERSIONS = ("torch", "transformers", "numpy")


@dataclass(frozen=True, slots=True)
class EngineReport:
    """A whole run, ready for JSON. `peaks` were measured before each row on steps; floors are by their medians."""

    origin: Origin
    versions: dict[str, str]
    engine: dict[str, Any]
    sizes: Sizes
    peaks: list[Peak]
    rows: list[dict[str, Any]]
    profiles: list[Profile]
    schema: str = SCHEMA

    def write(self, path: Path) -> None:
        """Write the report as indented JSON, creating the folder."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")


def build_report(findings: Findings, sizes: Sizes, origin: Origin, kernels: dict[str, str]) -> EngineReport:
    """`kernels` is what livery.engine.kernels.describe says, without the path of the library."""
    info = findings.info
    return EngineReport(
        origin=origin,
        versions={name: importlib.metadata.version(name) for name in VERSIONS},
        engine={**(_engine(info) if info else {}), "compiled": kernels},
        sizes=sizes,
        peaks=findings.peaks,
        rows=[_row(row) for row in findings.rows],
        profiles=findings.profiles,
    )


def _engine(info: EngineInfo) -> dict[str, Any]:
    names = ("architecture", "base_digest", "device", "dtype", "attention", "kernels", "max_batch_tokens")
    return {name: getattr(info, name) for name in (*names, "weight_bytes", "block_size", "num_blocks")}


def _row(row: Row) -> dict[str, Any]:
    return {
        "name": row.name,
        "value": row.value,
        "bar": asdict(row.bar) if row.bar else None,
        "verdict": row.verdict,
        "note": row.note,
        "facts": row.facts,
    }


def shown(value: Spread) -> str:
    """Median, and in brackets the lowest and highest round."""
    if value.low == value.high:
        return f"{value.median:.3f}"
    return f"{value.median:.3f} ({value.low:.3f}..{value.high:.3f})"


def print_findings(findings: Findings, console: Console) -> None:
    """The table with bars, the machine's peaks, and where a step's time goes."""
    reads = [peak.bandwidth / 1e9 for peak in findings.peaks]
    computes = [peak.flops / 1e9 for peak in findings.peaks]
    console.print(
        f"the machine: reads {median(reads):.1f} GB/s ({min(reads):.1f}..{max(reads):.1f}), computes "
        f"{median(computes):.0f} Gop/s ({min(computes):.0f}..{max(computes):.0f}); floors are by the medians"
    )
    console.print(_table(findings.rows))
    for one in findings.profiles:
        console.print(_profile(one))


def _table(rows: Sequence[Row]) -> Table:
    table = Table(title="ratios within one run, median (lowest..highest round)", title_justify="left")
    table.add_column("row", overflow="fold")
    table.add_column("value", justify="right")
    table.add_column("bar")
    table.add_column("")
    for row in rows:
        verdict = f"[{COLOURS[row.verdict]}]{row.verdict}[/]"
        table.add_row(escape(row.name), shown(row.value), str(row.bar or ""), verdict)
    return table


def _profile(one: Profile) -> str:
    who = f"{one.adapters} adapters" if one.adapters else "base"
    costs = ", ".join(f"{escape(cost.name)} {cost.share:.0%}" for cost in one.costs)
    return f"profile, {one.forward}, decode, {one.rows} rows, {who}: {1e3 * one.seconds:.1f} ms: {costs}"
