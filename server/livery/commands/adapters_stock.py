"""`livery adapters`: what is done to the files in a data folder: gc, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from livery.commands import shown
from livery.commands.reach import Reach, reaches


@reaches
def gc(
    reach: Reach,
    keep_versions: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Drop all but the newest N versions of each adapter.")
    ] = None,
) -> None:
    """Delete files that no version refers to, in a data folder and its --blob-store."""
    reach.run_here(lambda backend: backend.gc(keep_versions=keep_versions), shown.collected)


@reaches
def export(
    reach: Reach,
    name: Annotated[str, typer.Argument(help="An adapter's name.")],
    out: Annotated[Path, typer.Argument(metavar="DIR", help="A new directory.")],
    version: Annotated[
        str | None, typer.Option(help="A version's number, or at least 8 digits of its digest; else the active one.")
    ] = None,
) -> None:
    """Copy the files of a version, as PEFT reads them, out of a data folder (with --data)."""
    reach.run_here(lambda backend: backend.export(name, version, out), shown.exported)
