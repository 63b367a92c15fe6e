"""How a command ends: files written, tables printed, an exit status that says what a script must know."""

from __future__ import annotations

from enum import IntEnum
from importlib.metadata import PackageNotFoundError, version
from typing import NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from livery_loadtest.report.result import Result


class Exit(IntEnum):
    """Of several that fit, the first in this order."""

    INTERRUPTED = 130
    FAILED = 1
    INVALID = 3
    FINE = 0


ENDS = (
    "Exit status: 0; 1 when requests failed, an answer came from another model, or a slope is steeper than the "
    "workload allows; 3 when the client was the bottleneck, so that the figures aren't the server's; 130 when it was "
    "interrupted, with what was there written."
)


def status(result: Result, allow_errors: bool) -> Exit:
    """The exit status of a result."""
    if result.interrupted:
        return Exit.INTERRUPTED
    crept = any(not line.holds for one in result.summary for line in one.growth)
    if result.wrong or crept or (result.failed and not allow_errors):
        return Exit.FAILED
    return Exit.INVALID if result.doubts else Exit.FINE


def leave(statuses: list[Exit]) -> NoReturn:
    """End with the worst of several."""
    raise typer.Exit(next((one for one in Exit if one in statuses), Exit.FINE))


def stop(message: str) -> NoReturn:
    """End with a message that says what to do."""
    Console(stderr=True).print(f"[red]error:[/] {escape(message)}", soft_wrap=True)
    raise typer.Exit(Exit.FAILED)


def own_version() -> str:
    """Of this package, as installed."""
    try:
        return version("livery")
    except PackageNotFoundError:
        return "unknown"
