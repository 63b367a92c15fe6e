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
from livery.commands.progress import bar
from livery.commands.reach import REFUSALS, AsJson, Registry, words
from livery.data_folder import DataFolder
from livery.running.parts import without_password
from livery.tenancy import TenantStore
from livery.tenancy import backup as tenant_backups
from livery_adapters import backup as backups
from livery_adapters import registry as registries
from livery_adapters.shared_blobs import SharedBlobs

app = typer.Typer(help="Back up and restore what a server keeps in its data folder.", no_args_is_help=True)

Data = Annotated[Path, typer.Option("--data", metavar="DIR", help="The server's data folder.")]
Shared = Annotated[
    str | None,
    typer.Option("--blob-store", metavar="URL", help="The object store in which servers share adapter files, s3://..."),
]


@app.command("backup")
def backup(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new directory for the backup.")],
    data: Data,
    registry: Registry = None,
    blob_store: Shared = None,
    as_json: AsJson = False,
) -> None:
    """Copy adapters, their names, tenants, keys' hashes and usage into a directory; servers may go on meanwhile.

    Files that the data folder has no copy of come from the object store that its server shares with others.
    """
    _told(lambda: _backup(DataFolder(data.expanduser()), registry, blob_store, out), "is backed up in", as_json)


@app.command("restore")
def restore(
    backup: Annotated[Path, typer.Argument(metavar="IN", help="A directory that `livery data backup` wrote.")],
    data: Data,
    registry: Registry = None,
    blob_store: Shared = None,
    as_json: AsJson = False,
) -> None:
    """Bring a backup back into a data folder that holds nothing yet, and into the object store that servers share."""
    _told(lambda: _restore(backup, DataFolder(data.expanduser()), registry, blob_store), "is restored in", as_json)


def _backup(folder: DataFolder, url: str | None, blob_store: str | None, out: Path) -> Json:
    known = prepare(folder, Place(folder.root, url), Need())
    copied = tenant_backups.Copied()

    def beside(directory: Path) -> None:
        nonlocal copied
        copied = tenant_backups.write(tenants, directory)

    with (
        closing(registries.Registry.open(url or folder.registry_url())) as registry,
        closing(TenantStore.open(folder.tenants_url(url))) as tenants,
        bar("copying adapters", 0, pieces=True) as tell,
    ):
        blob_store = blob_store or registry.blob_store() or (known.blob_store if known else "")
        shared = SharedBlobs(blob_store) if blob_store else None
        summary = backups.backup(registry, folder.adapters, out, tell, beside, shared)
    if folder.base_file.exists():
        shutil.copyfile(folder.base_file, DataFolder(out).base_file)
    hint = f"Files that {folder.root} has no copy of came from {shared}." if shared else ""
    return {"directory": str(out), **asdict(summary), **asdict(copied), "hint": hint}


def _restore(source: Path, folder: DataFolder, url: str | None, blob_store: str | None) -> Json:
    """The store of the servers that were backed up is left alone: who restores names the one that new ones share."""
    folder.make()
    shared = SharedBlobs(blob_store) if blob_store else None
    copied = tenant_backups.Copied()

    def beside() -> None:
        nonlocal copied
        if rows is not None:
            copied = tenant_backups.bring_in(rows, tenants)

    with (
        tenant_backups.staged(source) as rows,
        closing(TenantStore.open(folder.tenants_url(url))) as tenants,
        bar("copying adapters", 0, pieces=True) as tell,
    ):
        tenant_backups.check_empty(tenants, rows)
        summary = backups.restore(source, url or folder.registry_url(), folder.adapters, tell, beside, shared)
    known, hint = DataFolder(source).base(), f"The files are in {shared} too." if shared else ""
    if known is not None:
        if known.blob_store and not shared:
            hint = (
                f"Servers shared files in {known.blob_store}; now they are in {folder.root} alone. Servers with other "
                "folders find them once you restore with --blob-store URL."
            )
        there = msgspec.structs.replace(known, registry=without_password(url), blob_store=blob_store or "")
        folder.write_base(there)
    return {"directory": str(folder.root), **asdict(summary), **asdict(copied), "hint": hint}


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
        if answer["hint"]:
            shown.say(answer["hint"])
