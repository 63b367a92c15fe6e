"""`livery adapters`: those of a running server (--url) or of a data folder (--data); here the verbs that look."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from livery.commands import (
    adapters_change,
    adapters_check,
    adapters_stock,
    evaluating,
    extracting,
    merging,
    shown,
    train_data,
    training,
)
from livery.commands.reach import Reach, reaches

app = typer.Typer(
    help="Manage adapters: on a running server (--url, --key) or in a data folder (--data).", no_args_is_help=True
)


class InState(StrEnum):
    """States that a registry keeps; "staging" and "draining" are those of a running server."""

    registered = "registered"
    ready = "ready"
    failed = "failed"
    retired = "retired"


Name = Annotated[str, typer.Argument(help="An adapter's name.")]


@app.command("ls")
@reaches
def ls(
    reach: Reach,
    after: Annotated[str, typer.Option(metavar="NAME", help="Begin behind this name.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most adapters to show.")] = 100,
    state: Annotated[InState | None, typer.Option(help="Only those in this state.")] = None,
    source: Annotated[str | None, typer.Option(help="Only those from here: folder, upload, hub, store, api.")] = None,
    search: Annotated[str | None, typer.Option(help="Only names that hold this.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's; the operator's to ask.")] = None,
) -> None:
    """List adapters by name."""
    reach.run(
        lambda backend: backend.ls(after=after, limit=limit, state=state, source=source, search=search, tenant=tenant),
        shown.listing,
    )


@app.command("show")
@reaches
def show(reach: Reach, name: Name) -> None:
    """Show one adapter and what it changes."""
    reach.run(lambda backend: backend.show(name), shown.record)


@app.command("versions")
@reaches
def versions(
    reach: Reach,
    name: Name,
    after: Annotated[int | None, typer.Option(metavar="VERSION", help="Only what is older than this version.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most versions to show.")] = 100,
) -> None:
    """List the versions of an adapter, newest first."""
    reach.run(lambda backend: backend.versions(name, after=after, limit=limit), shown.history)


app.command("add")(adapters_change.add)
app.command("push")(adapters_change.push)
app.command("check")(adapters_check.check)
app.command("profile")(adapters_change.profile)
app.command("activate")(adapters_change.activate)
app.command("rollback")(adapters_change.rollback)
app.command("alias")(adapters_change.alias)
app.command("aliases")(adapters_change.aliases)
app.command("pin")(adapters_change.pin)
app.command("unpin")(adapters_change.unpin)
app.command("share")(adapters_change.share)
app.command("unshare")(adapters_change.unshare)
app.command("prefetch")(adapters_change.prefetch)
app.command("rm")(adapters_change.rm)
app.command("merge")(merging.merge)
app.command("extract")(extracting.extract)
app.command("eval")(evaluating.evaluate)
app.command("train")(training.train)
app.add_typer(train_data.app, name="train-data")
app.command("gc")(adapters_stock.gc)
app.command("export")(adapters_stock.export)
