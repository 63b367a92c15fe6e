"""`livery data`: everything a server keeps, as one portable directory, and back; from SQLite to PostgreSQL too."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from livery.adapter_views import Json
from livery.commands import shown
from livery.commands.asking import CommandFailed
from livery.commands.offline import Need, Place, prepare
from livery.commands.parts import without_password
from livery.commands.progress import bar
from livery.commands.reach import REFUSALS, AsJson, Registry, words
from livery.data_folder import DataFolder
from livery.tenancy import TenantStore
from livery.tenancy import backup as tenant_backups
from livery_adapters import backup as backups
from livery_adapters import registry as registries

app = typer.Typer(help="Back up and restore what a server keeps in its data folder.", no_args_is_help=True)

Data = Annotated[Path, typer.Option("--data", metavar="DIR", help="The server's data folder.")]


@app.command("backup")
def backup(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new directory for the backup.")],
    data: Data,
    registry: Registry = None,
    as_json: AsJson = False,
) -> None:
    """Copy adapters, their names, tenants, keys' hashes and usage into a directory; servers may go on meanwhile."""
    _told(lambda: _backup(DataFolder(data.expanduser()), registry, out), "is backed up in", as_json)


@app.command("restore")
def restore(
    backup: Annotated[Path, typer.Argument(metavar="IN", help="A directory that `livery data backup` wrote.")],
    data: Data,
    registry: Registry = None,
    as_json: AsJson = False,
) -> None:
    """Bring a backup back into a data folder that holds nothing yet."""
    _told(lambda: _restore(backup, DataFolder(data.expanduser()), registry), "is restored in", as_json)


def _backup(folder: DataFolder, url: str | None, out: Path) -> Json:
    prepare(folder, Place(folder.root, url), Need())
    copied = tenant_backups.Copied()

    def beside(directory: Path) -> None:
        nonlocal copied
        copied = tenant_backups.write(tenants, directory)

    with (
        closing(registries.Registry.open(url or folder.registry_url())) as registry,
        closing(TenantStore.open(folder.tenants_url(url))) as tenants,
        bar("copying adapters", 0, pieces=True) as tell,
    ):
        summary = backups.backup(registry, folder.adapters, out, tell, beside)
    if folder.base_file.exists():
        shutil.copyfile(folder.base_file, DataFolder(out).base_file)
    return {"directory": str(out), **asdict(summary), **asdict(copied)}


def _restore(source: Path, folder: DataFolder, url: str | None) -> Json:
    folder.make()
    with (
        tenant_backups.staged(source) as rows,
        closing(TenantStore.open(folder.tenants_url(url))) as tenants,
        bar("copying adapters", 0, pieces=True) as tell,
    ):
        tenant_backups.check_empty(tenants)
        summary = backups.restore(source, url or folder.registry_url(), folder.adapters, tell)
        copied = tenant_backups.bring_in(rows, tenants) if rows is not None else tenant_backups.Copied()
    known = DataFolder(source).base()
    if known is not None:
        folder.write_base(msgspec.structs.replace(known, registry=without_password(url)))
    return {"directory": str(folder.root), **asdict(summary), **asdict(copied)}


def _told(action: Callable[[], Json], became: str, as_json: bool) -> None:
    """Do it and say what became of it. Raises CommandFailed."""
    try:
        answer = action()
    except REFUSALS as refusal:
        raise CommandFailed(words(refusal)) from refusal
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
    else:
        adapters = f"{answer['adapters']} adapters, {answer['versions']} versions, files of {answer['blobs']}"
        others = f"{answer['tenants']} tenants, {answer['keys']} keys, {answer['usage_rows']} rows of usage"
        shown.say(f"{adapters}; {others}: all {became} {answer['directory']}")
