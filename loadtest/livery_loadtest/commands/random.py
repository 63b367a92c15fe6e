"""`livery bench random-adapters`: adapters to serve where there are none, or not enough of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track

from livery_loadtest.commands.ending import stop
from livery_loadtest.peers.launching import model_directory
from livery_loadtest.random_adapters import RandomAdapters
from livery_loadtest.servers import ServerFailed

HELP = """Write random LoRA adapters in PEFT's format, for load only: they say nothing, but cost what real ones do.

Serve them with `livery serve --adapters FOLDER`. Those that are there already, with the same rank, are kept.
"""


def random_adapters(
    folder: Annotated[Path, typer.Argument(help="Where to write: a directory for each of them.")],
    model: Annotated[
        str, typer.Option(help="The base they are for: a directory with safetensors, or a name Livery knows.")
    ] = "smollm2-135m-instruct",
    count: Annotated[int, typer.Option(min=1, help="How many.")] = 8,
    rank: Annotated[int, typer.Option(min=1, help="Their rank, on all linear modules.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Seeds their weights.")] = 0,
) -> None:
    """Write; the command's help is HELP."""
    console = Console(stderr=True)
    try:
        adapters = RandomAdapters(model_directory(model), rank, seed)
        for index in track(range(count), f"writing adapters of rank {rank}", console=console):
            adapters.write(folder, index)
    except (ServerFailed, ValueError, OSError) as failure:
        stop(str(failure))
    console.print(f"{count} adapters of rank {rank} are in {folder}, {adapters.size / 1e6:.1f} MB each")
