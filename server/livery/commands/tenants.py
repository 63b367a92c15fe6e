"""`livery tenants`: tenants, on a server's admin API (--url) or in a data folder (--data)."""

from __future__ import annotations

from typing import Annotated

import typer

from livery.commands import shown_tenants as shown
from livery.commands.keys import Limit, parse_limits
from livery.commands.tenants_reach import TenantsReach, every_page, reaches_tenants

app = typer.Typer(
    help="Tenants: on a running server (--url, --key) or in a data folder (--data).", no_args_is_help=True
)

Name = Annotated[str, typer.Argument(help="A tenant's name.")]
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
    reach.run(lambda tenants: every_page(tenants.tenants), shown.tenants)


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
