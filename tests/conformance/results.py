"""What suites reported, as numbers, reasons and a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import unescape
from pathlib import Path
from xml.etree import ElementTree

from rich.table import Table

from foreign_parts import NOTHING

SHOWN = 120  # characters of a reason in server/docs/api.md


@dataclass
class Result:
    """How one suite went. `failures`, `expected` and `left_out` tell a test's name and why."""

    suite: str
    packages: str
    passed: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    expected: list[tuple[str, str]] = field(default_factory=list)  # known not to pass, with the reason
    left_out: list[tuple[str, str]] = field(default_factory=list)  # said not to apply
    measured: list[dict[str, str]] = field(default_factory=list)  # what a test recorded, by column
    missing: str = ""  # why the suite didn't run at all
    seconds: float = 0.0

    def read(self, report: Path) -> None:
        """Count the test cases of a JUnit report."""
        for case in ElementTree.parse(report).iter("testcase"):
            name = case.get("name", "?")
            if recorded := {one.get("name", ""): one.get("value", "") for one in case.iter("property")}:
                self.measured.append(recorded)
            if (bad := case.find("failure")) is not None or (bad := case.find("error")) is not None:
                self.failures.append((name, _reason(bad)))
            elif (skipped := case.find("skipped")) is not None:
                known = self.expected if skipped.get("type") == "pytest.xfail" else self.left_out
                known.append((name, _reason(skipped)))
            else:
                self.passed += 1


def _reason(element: ElementTree.Element) -> str:
    words = (element.get("message") or element.text or "").strip()
    return " ".join(unescape(words).split())[:400]  # Node escapes twice


def succeeded(results: Iterable[Result], *, all_must_run: bool) -> bool:
    """Whether nothing failed; and, where all must run, whether every suite did."""
    return not any(result.failures or (result.missing and all_must_run) for result in results)


def table(results: Iterable[Result]) -> Table:
    """For the terminal."""
    shown = Table("suite", "client", "passed", "failed", "known", "left out", "seconds")
    for result in results:
        cells = (str(result.passed), str(len(result.failures)), str(len(result.expected)), str(len(result.left_out)))
        style = "yellow" if result.missing else "red" if result.failures else ""
        shown.add_row(result.suite, result.packages, *cells, f"{result.seconds:.0f}", style=style)
    return shown


def reasons(results: Iterable[Result]) -> Iterable[str]:
    """A line for every test that didn't pass, and for every suite that didn't run."""
    for result in results:
        if result.missing:
            yield f"{result.suite}: {NOTHING}: {result.missing}"
        kinds = (("failed", result.failures), ("known", result.expected), ("left out", result.left_out))
        for kind, cases in kinds:
            yield from (f"{result.suite}: {kind}: {name}: {why}" for name, why in cases)


def markdown(results: Sequence[Result]) -> str:
    """For server/docs/api.md: counts, and the reason for each test that didn't pass, alike ones together."""
    lines = ["| suite | client | passed | failed | known not to pass, or left out |", "|---|---|---|---|---|"]
    for result in results:
        failed = result.missing or _grouped(result.failures)
        known = _grouped([*result.expected, *result.left_out])
        lines.append(f"| {result.suite} | {result.packages} | {result.passed} | {failed} | {known} |")
    for result in results:
        lines += _measured(result)
    return "\n".join(lines)


def _grouped(cases: Iterable[tuple[str, str]]) -> str:
    """How many tests for which reason."""
    counts: dict[str, int] = {}
    for _, why in cases:
        shown = why if len(why) <= SHOWN else why[:SHOWN] + "…"
        counts[shown] = counts.get(shown, 0) + 1
    return "; ".join(f"{count}: {why}" for why, count in counts.items()).replace("|", "\\|") or "–"


def _measured(result: Result) -> list[str]:
    """What a suite's tests recorded, a row each."""
    if not result.measured:
        return []
    columns = list(result.measured[0])
    rows = ["| " + " | ".join(row.get(column, "") for column in columns) + " |" for row in result.measured]
    return ["", f"| {result.suite}: {' | '.join(columns)} |", "|---" * len(columns) + "|", *rows]
