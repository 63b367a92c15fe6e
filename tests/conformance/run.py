"""Let clients that others wrote loose on a live server, each in an environment of its own, and count what passed.

    python tests/conformance/run.py [SUITE ...] [--json conformance.json] [--write server/docs/api.md]

The suites are the rows of environments.toml. One whose program (Node.js, another Python) isn't there is passed over
with the remedy; with CI=true that is a failure. Ends with 1 where any test failed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent.parent))

from conformance.environments import CLIENTS, PartMissing, Suite, suites
from conformance.results import Result, markdown, reasons, succeeded, table
from conformance.servers import serving
from livery_loadtest.peers import EnvironmentFailed

LIMIT_S = 1200  # for one suite; a client that hangs must not hang the rest
BEGIN, END = "<!-- conformance -->", "<!-- /conformance -->"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options().parse_args(arguments)
    console = Console()
    chosen = _chosen(options.suites)
    results = [_prepare(suite, console) for suite in chosen]
    runnable = [(suite, result) for suite, result in zip(chosen, results, strict=True) if not result.missing]
    for (kind, flags), group in groupby(runnable, lambda pair: (pair[0].server, pair[0].flags)):
        with tempfile.TemporaryDirectory() as folder, serving(kind, flags, Path(folder)) as facts:
            for suite, result in group:
                _run(suite, result, facts, Path(folder), console)
                _save(results, options.json)  # also what there is when a run is interrupted
    console.print(table(results))
    for line in reasons(results):
        console.print(line, markup=False, highlight=False)
    _save(results, options.json)
    if options.write:
        _write(options.write, markdown(results))
    return int(not succeeded(results, all_must_run=os.environ.get("CI") == "true"))


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("suites", nargs="*", help="which suites; all of them otherwise")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--write", type=Path, help="write the table between the two marks of this Markdown file")
    return parser


def _chosen(names: Sequence[str]) -> list[Suite]:
    known = {suite.name: suite for suite in suites()}
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"No suite named {', '.join(unknown)}; there are {', '.join(known)}.")
    return [known[name] for name in names] or list(known.values())


def _prepare(suite: Suite, console: Console) -> Result:
    """A result yet to be filled, its environment there; or one that says why it can't be."""
    result = Result(suite.name, ", ".join(name for name in suite.python + suite.npm if not name.startswith("pytest")))
    try:
        suite.ensure(console)
    except PartMissing as missing:
        result.missing = str(missing)
    except EnvironmentFailed as failed:
        result.failures.append(("its environment", str(failed)))
        result.missing = "its environment could not be built"
    return result


def _run(suite: Suite, result: Result, facts: dict[str, str], folder: Path, console: Console) -> None:
    report, started = folder / f"{suite.name}.xml", time.monotonic()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | facts
    console.rule(f"{suite.name} on {facts['LIVERY_BASE']}")
    ended = "ended"
    try:
        command = suite.command(report)
        status = subprocess.run(command, cwd=CLIENTS, env=environment, timeout=LIMIT_S, check=False).returncode
        ended = f"ended with code {status}"
    except subprocess.TimeoutExpired:
        status, ended = -1, f"took longer than {LIMIT_S} seconds and was stopped"
    result.seconds = time.monotonic() - started
    if report.is_file() and report.stat().st_size:
        result.read(report)
    if (status and not result.failures) or not result.passed:
        result.failures.append(("the run", f"{ended}, {result.passed} tests passed; what it said stands above"))


def _save(results: Sequence[Result], file: Path | None) -> None:
    if file is not None:
        file.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")


def _write(file: Path, text: str) -> None:
    before, begin, rest = file.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{file} has no place for the table: it goes between {BEGIN} and {END}.")
    file.write_text(f"{before}{begin}\n{text}\n{end}{after}")


if __name__ == "__main__":
    sys.exit(main())
