"""The command `livery`: its tree, and how a failure looks. What the commands do is in `livery.commands`."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from livery import __version__
from livery.commands import adapters, data, doctor, keys, tenants, top
from livery.commands.asking import CommandFailed
from livery.commands.options import takes_fields, takes_settings
from livery.commands.plan import plan
from livery.commands.ready import ready
from livery.commands.serve import serve
from livery.commands.usage import usage
from livery.data_folder import DataFolderUnusable
from livery.engine.base import EngineDead, ModelRefused
from livery.models import ModelNotFound
from livery.running.engine_knobs import CHOICE_KNOBS, ENGINE_KNOBS
from livery.settings import SettingsError
from livery.tenancy import OpenDoor
from livery.tokenizer_files import TokenizerRefused
from livery.workers.pool import WorkersUnable
from livery_adapters.registry import RegistryError

EXPECTED = (
    SettingsError,
    OpenDoor,
    ModelNotFound,
    ModelRefused,
    EngineDead,
    TokenizerRefused,
    DataFolderUnusable,
    RegistryError,
    WorkersUnable,
)

app = typer.Typer(
    name="livery",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("serve")(takes_settings(serve))
app.command("doctor")(takes_settings(doctor.doctor, (*CHOICE_KNOBS, *ENGINE_KNOBS), {"model": "any"}))
app.command("top")(top.top)
app.command("ready")(ready)
app.add_typer(adapters.app, name="adapters")
app.add_typer(keys.app, name="keys")
app.add_typer(tenants.app, name="tenants")
app.command("usage")(usage)
app.command("plan")(takes_fields(plan))
app.add_typer(data.app, name="data")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def livery(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """One base model, many liveries: serve fine-tuned adapters by name."""


@app.command("version")
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def main() -> None:
    """Entry point of the console command; what a user can get wrong ends in one line.

    Status 1: what was asked for was refused or failed. 2: what was asked for can't be.
    """
    if sys.argv[1:2] in ([], ["bench"], ["--help"]):
        _mount_bench()
    try:
        app()
    except (CommandFailed, *EXPECTED) as error:
        Console(stderr=True, soft_wrap=True).print(f"[red]error:[/] {escape(str(error))}")
        sys.exit(1 if isinstance(error, CommandFailed) else 2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output left, as `| head` does; what is still buffered must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _mount_bench() -> None:
    """The benchmarks load only when they are asked for: no other command needs them."""
    from livery.commands.bench_engine import engine
    from livery.commands.bench_http import http
    from livery_loadtest.cli import app as bench

    bench.command("engine")(engine)
    bench.command("http")(http)
    app.add_typer(bench, name="bench")
