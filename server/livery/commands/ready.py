"""`livery ready`: whether a server is, by its URL or by what it wrote down of where it listens."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from livery.commands.asking import CommandFailed
from livery.commands.backends import DEFAULT_URL
from livery.ready import VARIABLE, Address, NotReady, check


def ready(
    url: Annotated[
        str | None,
        typer.Option(metavar="URL", help=f"Where the server is; else the file, LIVERY_URL or {DEFAULT_URL}."),
    ] = None,
    address_file: Annotated[
        Path | None, typer.Option(metavar="FILE", envvar=VARIABLE, help="What the server has as its --address-file.")
    ] = None,
) -> None:
    """Ask a server whether it is ready: exit status 0, or 1 with the reason. Needs no key, and passes proxies by."""
    try:
        if url is None and address_file is not None:
            check(Address.read(address_file.expanduser()))
        else:
            check(Address.parse(url or os.environ.get("LIVERY_URL") or DEFAULT_URL))
    except NotReady as why:
        raise CommandFailed(str(why)) from None
    typer.echo("ready")
