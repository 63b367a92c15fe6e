"""Programs and packages that a test needs and this project doesn't bring: without them nothing passes for tested."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import NoReturn

import pytest

NOTHING = "skipped, nothing was tested"


def must_run() -> bool:
    """Whether what can't run is a failure: green in CI must never mean skipped."""
    return os.environ.get("CI") == "true"


def lacking(remedy: str) -> NoReturn:
    """Skip the test, with what to do about it; with CI=true fail it."""
    if must_run():
        pytest.fail(remedy)
    pytest.skip(f"{NOTHING}: {remedy}")


def not_run(what: str, remedy: object) -> int:
    """Say on standard error that a script can do nothing here, and what to do about it; its exit status."""
    verdict = "FAILED, since CI=true and nothing was tested" if must_run() else NOTHING
    print(f"{what}: {verdict}: {remedy}", file=sys.stderr, flush=True)
    return int(must_run())


def told(skipped: Iterable[pytest.TestReport]) -> list[str]:
    """A line for each remedy, with how many tests want it; of those alone that `lacking` skipped."""
    counts: dict[str, int] = {}
    for report in skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
        if NOTHING in reason:
            remedy = reason.partition(f"{NOTHING}: ")[2]
            counts[remedy] = counts.get(remedy, 0) + 1
    return [f"{NOTHING} by {count} of the tests: {remedy}" for remedy, count in counts.items()]
