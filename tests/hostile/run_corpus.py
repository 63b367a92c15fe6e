"""Takes every case of the corpus and prints what became of it.

PYTHONPATH=tests python -m hostile.run_corpus                 # the table; exit status 1 if a case isn't as expected
PYTHONPATH=tests python -m hostile.run_corpus --only work --cpu-seconds 60 --json
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from hostile.corpus import CASES
from hostile.taking import Outcome, take_all


@dataclass(frozen=True)
class Line:
    """One line of the table."""

    title: str
    code: str
    message: str
    stage: str
    as_expected: bool
    note: str

    @classmethod
    def of(cls, outcome: Outcome) -> Line:
        case = outcome.case
        note = outcome.skipped or ", ".join(outcome.left_behind)
        stage = case.stage if outcome.code else ""
        return cls(case.title, outcome.code, outcome.message, stage, outcome.as_expected, note)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="cases whose title holds this text")
    parser.add_argument("--cpu-seconds", type=int, default=0, help="processor time after which the process is killed")
    parser.add_argument("--json", action="store_true", help="one JSON list instead of a table")
    given = parser.parse_args()
    if given.cpu_seconds:
        resource.setrlimit(resource.RLIMIT_CPU, (given.cpu_seconds, given.cpu_seconds))
    chosen = tuple(case for case in CASES if given.only in case.title)
    with tempfile.TemporaryDirectory() as folder:
        outcomes = take_all(chosen, Path(folder))
    lines = [Line.of(outcome) for outcome in outcomes]
    if given.json:
        json.dump([asdict(line) for line in lines], sys.stdout)
    else:
        _print_table(lines)
    return 0 if all(line.as_expected for line in lines) else 1


def _print_table(lines: list[Line]) -> None:
    print("| case | stage | code | message |\n|---|---|---|---|")
    for line in lines:
        message = line.message.replace("|", "\\|")
        verdict = message or "accepted"
        extra = f" **{line.note}**" if line.note else ""
        print(f"| {line.title}{'' if line.as_expected else ' (!)'} | {line.stage} | {line.code} | {verdict}{extra} |")
    refused = sum(bool(line.code) for line in lines)
    codes = len({line.code for line in lines if line.code})
    print(f"\n{len(lines)} cases: {refused} refused with {codes} codes, {len(lines) - refused} taken or skipped")


if __name__ == "__main__":
    sys.exit(main())
