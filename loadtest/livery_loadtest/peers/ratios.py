"""Ours over each peer's, workload by workload, taken within each repeat, beside the bars that are to be reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

from livery_loadtest.bars import COLOURS, Bar, Verdict
from livery_loadtest.measures import Spread, paired_ratio
from livery_loadtest.report.result import Result

OURS = "livery"
BASE, MIXED, SINGLE = "base", "mixed", "one-stream"
# Our tokens a second over a peer's, on CPU with the demo base at 16 streams, by the peer and the workload.
PEER_BARS = {
    ("vllm", MIXED): Bar(4.5, 6),
    ("llama.cpp", MIXED): Bar(2, 3.5),
    ("llama.cpp", SINGLE): Bar(0.5, 1.1),
}


@dataclass(frozen=True, slots=True)
class Ratio:
    """Output tokens per second of one server and workload over another's, repeat by repeat."""

    name: str
    value: Spread
    bar: Bar | None = None
    verdict: Verdict = Verdict.SHOWN


def speeds(result: Result) -> dict[str, list[float]]:
    """Output tokens per second of each target's repeats; of a repeat that ended before anything came, 0."""
    found = {}
    for target, repeats in result.measured.items():
        tokens = [int(one.columns.tokens[one.columns.answered].sum()) for one in repeats]
        pairs = zip(tokens, repeats, strict=True)
        found[target] = [count / one.seconds if one.seconds else 0.0 for count, one in pairs]
    return found


def ratios(results: Mapping[str, Result], bars: bool) -> list[Ratio]:
    """Mixed over base of each server, then each of ours over each other one; `bars`: those that there are hold here."""
    measured = {name: speeds(result) for name, result in results.items()}
    names = list(dict.fromkeys(name for found in measured.values() for name in found))
    wanted = [(f"{name}: mixed / base", (name, MIXED), (name, BASE)) for name in names]
    wanted += [
        (f"{workload}: {one} / {other}", (one, workload), (other, workload))
        for workload in measured
        for one in names
        for other in names
        if one.startswith(OURS) and not other.startswith(OURS)
    ]
    found = []
    for label, above, below in wanted:
        ours, theirs = (measured.get(workload, {}).get(name, []) for name, workload in (above, below))
        # An interrupted run has repeats without their counterpart.
        value = paired_ratio(*zip(*zip(ours, theirs), strict=True)) if ours and theirs else None  # noqa: B905
        if value is not None:
            bar = PEER_BARS.get(below) if bars and above[0] != below[0] else None
            found.append(Ratio(label, value, bar, bar.verdict(value.median) if bar else Verdict.SHOWN))
    return found


def ratio_table(found: Sequence[Ratio]) -> Table:
    """As a person reads it."""
    table = Table(title="output tokens/s, ratios taken within each repeat", title_justify="left")
    table.add_column("ratio")
    table.add_column("median (lowest to highest)", justify="right")
    table.add_column("bar")
    table.add_column("")
    for one in found:
        value = f"{one.value.median:.2f} ({one.value.low:.2f} to {one.value.high:.2f})"
        verdict = f"[{COLOURS[one.verdict]}]{one.verdict}[/]" if one.bar else ""
        table.add_row(one.name, value, str(one.bar or ""), verdict)
    return table
