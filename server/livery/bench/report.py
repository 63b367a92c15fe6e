"""What a run of `livery bench engine` amounts to: a JSON document and tables. Measures nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

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
from livery_loadtest.origin import Origin, installed, write_json

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
    complete: bool  # nothing failed and nobody interrupted it
    failures: dict[str, str]  # part -> what it failed with
    seconds: float  # the whole run
    part_seconds: dict[str, float]  # engines are parts, and what was measured on them
    schema: str = SCHEMA

    def write(self, path: Path) -> None:
        """Write the report as indented JSON, creating the folder."""
        write_json(self, path)


def build_report(findings: Findings, sizes: Sizes, origin: Origin, kernels: dict[str, str]) -> EngineReport:
    """`kernels` is what livery.engine.kernels.describe says, without the path of the library."""
    info = findings.info
    return EngineReport(
        origin=origin,
        versions=installed(VERSIONS),
        engine={**(_engine(info) if info else {}), "compiled": kernels},
        sizes=sizes,
        peaks=findings.peaks,
        rows=[_row(row) for row in findings.rows],
        profiles=findings.profiles,
        complete=findings.complete,
        failures=findings.failures,
        seconds=findings.seconds,
        part_seconds=findings.part_seconds,
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
        "with_operations": row.beside,
        "facts": row.facts,
    }


def shown(value: Spread) -> str:
    """Median, and in brackets the lowest and highest round."""
    if value.low == value.high:
        return f"{value.median:.3f}"
    return f"{value.median:.3f} ({value.low:.3f}..{value.high:.3f})"


def print_findings(findings: Findings, console: Console) -> None:
    """The table with bars, the machine's peaks, and where a step's time goes."""
    if findings.peaks:
        console.print(_machine(findings.peaks))
    console.print(_table(findings.rows))
    for one in findings.profiles:
        console.print(_profile(one))
    took = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in findings.part_seconds.items())
    console.print(
        f"{findings.seconds:.0f} s in all; engines with all that was measured on them: {took}", highlight=False
    )


def _machine(peaks: Sequence[Peak]) -> str:
    reads = [peak.bandwidth / 1e9 for peak in peaks]
    computes = [peak.flops / 1e9 for peak in peaks]
    return (
        f"the machine: reads {median(reads):.1f} GB/s ({min(reads):.1f}..{max(reads):.1f}), computes "
        f"{median(computes):.0f} Gop/s ({min(computes):.0f}..{max(computes):.0f}); floors are by the medians"
    )


def _table(rows: Sequence[Row]) -> Table:
    table = Table(title="ratios within one run, median (lowest..highest round)", title_justify="left")
    table.add_column("row", overflow="fold")
    table.add_column("value", justify="right")
    table.add_column("bar")
    table.add_column("")
    table.add_column("with operations", justify="right")
    for row in rows:
        verdict = f"[{COLOURS[row.verdict]}]{row.verdict}[/]"
        table.add_row(
            escape(row.name), shown(row.value), str(row.bar or ""), verdict, shown(row.beside) if row.beside else ""
        )
    return table


def _profile(one: Profile) -> str:
    who = f"{one.adapters} adapters" if one.adapters else "base"
    costs = ", ".join(f"{escape(cost.name)} {cost.share:.0%}" for cost in one.costs)
    return f"profile, {one.forward}, decode, {one.rows} rows, {who}: {1e3 * one.seconds:.1f} ms: {costs}"
