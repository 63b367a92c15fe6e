"""Options that several commands have, worded once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from livery_loadtest.fanout import Fanout

MOST_PROCESSES = 1024

Targets = Annotated[
    list[str] | None,
    typer.Option("--target", help="NAME=URL of a running server; repeat to compare several, measured in turn."),
]
Repeats = Annotated[int, typer.Option(min=1, help="Times each target is measured; targets alternate within each.")]
Processes = Annotated[
    str,
    typer.Option(
        metavar="N|auto",
        help="Client processes. auto: as many as it takes; a run in which one was too busy is made anew from twice "
        "as many, up to one for each core.",
    ),
]
Out = Annotated[Path, typer.Option(help="Folder for NAME.json and NAME.html of each workload.")]
Adapters = Annotated[str, typer.Option(help="Names a,b,…; otherwise all that the server lists.")]
Base = Annotated[str | None, typer.Option(help="The base's name; otherwise the first that the server lists.")]
Verify = Annotated[
    int, typer.Option(min=0, help="Ask again for this many answers when nothing else runs, and compare them.")
]
Reference = Annotated[
    str | None,
    typer.Option(help="Who is asked again: a URL, or `peft` for a plain loop started here. Default: the same server."),
]
ReferenceModel = Annotated[str, typer.Option(help="With --compare-with peft: the base, a directory or a known name.")]
ReferenceAdapters = Annotated[
    Path | None, typer.Option(help="With --compare-with peft: the folder with a directory for each adapter.")
]
OtherNames = Annotated[
    bool, typer.Option("--other-names", help="Answers may bear another model's name than the one asked for.")
]
AllowErrors = Annotated[bool, typer.Option("--allow-errors", help="Failed requests don't make the exit status 1.")]
AllowHooks = Annotated[
    bool, typer.Option("--allow-hooks", help="Run the commands of a workload's `hooks`, with your rights.")
]
Rate = Annotated[float, typer.Option(min=0.001, help="Scales every arrival rate of the workloads.")]


def fanout(processes: str) -> Fanout:
    """What --processes asks for. Raises ValueError."""
    if processes == "auto":
        return Fanout()
    if not processes.isdecimal() or not 1 <= int(processes) <= MOST_PROCESSES:
        raise ValueError(f"--processes {processes}: give a number from 1 to {MOST_PROCESSES}, or auto")
    return Fanout(int(processes))
