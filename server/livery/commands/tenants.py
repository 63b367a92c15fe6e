"""`livery tenants`: tenants and what they share, on a server's admin API (--url) or in a data folder (--data)."""

from __future__ import annotations

from typing import Annotated

import typer

from livery.commands import shown_tenants as shown
from livery.commands.keys import Limit, parse_limits
from livery.commands.tenants_reach import TenantsReach, reaches_tenants

app = typer.Typer(
    help="Tenants: on a running server (--url, --key) or in a data folder (--data).", no_args_is_help=True
)

Name = Annotated[str, typer.Argument(help="A tenant's name.")]
Adapter = Annotated[str, typer.Argument(metavar="ADAPTER", help="An adapter's name below OWNER/.")]
Weight = typer.Option(metavar="NUMBER", help="Its share of the engine beside others who are waiting as well.")


@app.command("create")
@reaches_tenants
def create(reach: TenantsReach, name: Name, weight: Annotated[float, Weight] = 1.0, limit: Limit = None) -> None:
    """Make a tenant; `livery keys create` makes it as well."""
    limits = parse_limits(limit)
    reach.run(lambda tenants: tenants.create_tenant(name, weight=weight, limits=limits), shown.tenant, creates=True)


@app.command("ls")
@reaches_tenants
def ls(reach: TenantsReach) -> None:
    """List the tenants."""
    reach.run(lambda tenants: tenants.tenants(), shown.tenants)


@app.command("show")
@reaches_tenants
def show(reach: TenantsReach, name: Name) -> None:
    """Show one tenant."""
    reach.run(lambda tenants: tenants.tenant(name), shown.tenant)


@app.command("set")
@reaches_tenants
def set_(
    reach: TenantsReach,
    name: Name,
    weight: Annotated[float | None, Weight] = None,
    limit: Limit = None,
    disabled: Annotated[
        bool | None, typer.Option("--disabled/--enabled", help="Whether its keys are taken for wrong ones.")
    ] = None,
) -> None:
    """Change a tenant's weight or limits, or disable it."""
    if weight is None and disabled is None and not limit:
        raise typer.BadParameter("say what to change: --weight, --limit, --disabled or --enabled")
    limits = parse_limits(limit)
    reach.run(
        lambda tenants: tenants.update_tenant(name, weight=weight, limits=limits, disabled=disabled), shown.tenant
    )


@app.command("rm")
@reaches_tenants
def rm(reach: TenantsReach, name: Name) -> None:
    """Delete a tenant that has no adapters; its keys and shares go with it."""
    reach.run(lambda tenants: tenants.delete_tenant(name), shown.deleted)


@app.command("share")
@reaches_tenants
def share(reach: TenantsReach, owner: Name, adapter: Adapter, grantee: Name) -> None:
    """Let another tenant ask for an adapter, as OWNER/ADAPTER."""
    reach.run(lambda tenants: tenants.share(owner, adapter, grantee), shown.share)


@app.command("unshare")
@reaches_tenants
def unshare(reach: TenantsReach, owner: Name, adapter: Adapter, grantee: Name) -> None:
    """Share an adapter no longer."""
    reach.run(lambda tenants: tenants.unshare(owner, adapter, grantee), shown.unshared)


@app.command("shares")
@reaches_tenants
def shares(
    reach: TenantsReach,
    owner: Annotated[str | None, typer.Option(metavar="NAME", help="Only what this tenant shares.")] = None,
    grantee: Annotated[str | None, typer.Option(metavar="NAME", help="Only what is shared with this one.")] = None,
) -> None:
    """List what tenants share with each other."""
    reach.run(lambda tenants: tenants.shares(owner=owner, grantee=grantee), shown.shares)
