"""`livery bench http`: options in, servers measured, tables and JSON out."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from livery import __version__
from livery.commands.asking import CommandFailed
from livery.models import DEMO_MODEL
from livery_loadtest.writable import Unwritable, check_file

PARTS = ("streams", "requests", "tenants", "metrics", "scrape", "profile", "hostile", "text")


def http(
    model: Annotated[str, typer.Option(help="Model directory, hub id, .gguf or the demo base.")] = DEMO_MODEL,
    only: Annotated[list[str] | None, typer.Option(help=f"{', '.join(PARTS)}; repeatable; all by default.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each load.")] = 3,
    out: Annotated[Path | None, typer.Option(help="Write everything measured to this JSON file.")] = None,
) -> None:
    """Measure what is around the engine: events a second with a fake one on one core, and where the time goes.

    Then what keys, limits and metering cost, and metrics and traces; a scrape and the console's poll with thousands of
    adapters; how long others wait beside requests that cost as much as a body may; and, with a real engine, the share
    of tokenising, templating and detokenising. The machine should have nothing else to do.
    """
    unknown = sorted(set(only or ()) - set(PARTS))
    if unknown:
        raise typer.BadParameter(f"--only {', '.join(unknown)}: expected {', '.join(PARTS)}")
    try:
        check_file("--out", out)
    except Unwritable as refused:
        raise typer.BadParameter(str(refused)) from None
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leave no server behind
    from livery.bench.http.report import print_findings, write_report
    from livery.bench.http.suite import Part, Sizes, Suite
    from livery_loadtest.lean import LoadFailed
    from livery_loadtest.origin import Origin
    from livery_loadtest.servers import ServerFailed

    origin, sizes, console = Origin.here(__version__), Sizes(rounds=rounds), Console(stderr=True)
    suite = Suite(model, sizes, console)
    try:
        suite.run(frozenset(map(Part, only or PARTS)))
    except (LoadFailed, ServerFailed, TimeoutError) as failure:
        raise CommandFailed(str(failure)) from None
    finally:  # of a run that was interrupted, what it had measured
        print_findings(suite.findings, Console())
        if out is not None:
            write_report(suite.findings, sizes, origin, out)
            console.print(f"everything measured is in {out}")
