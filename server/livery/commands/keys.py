"""`livery keys`: the keys of tenants, on a server's admin API (--url) or in a data folder (--data)."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

import typer

from livery.adapter_views import Json
from livery.commands import shown_tenants as shown
from livery.commands.tenants_reach import TenantsReach, every_page, reaches_tenants
from livery.tenancy import EVERYTHING
from livery_adapters.names import OPERATOR_TENANT

app = typer.Typer(
    help="Keys of tenants: on a running server (--url, --key) or in a data folder (--data).", no_args_is_help=True
)

KeyId = Annotated[str, typer.Argument(metavar="ID", help="A key's id: the eight characters behind lv-.")]
Limit = Annotated[
    list[str] | None,
    typer.Option("--limit", metavar="NAME=NUMBER", help="A limit, as in requests_per_minute=60; NAME=none: no limit."),
]


@app.command("create")
@reaches_tenants
def create(
    reach: TenantsReach,
    tenant: Annotated[
        str, typer.Option(metavar="NAME", help="Whose key it is; a new name makes the tenant too.")
    ] = OPERATOR_TENANT,
    role: Annotated[
        Literal["user", "owner", "admin"],
        typer.Option(help="user asks models, owner also manages the tenant's adapters, admin manages everything."),
    ] = "user",
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WORDS",
            help=f"What it may ask: {', '.join(EVERYTHING)}, names, beginnings with *; comma-separated. Else all.",
        ),
    ] = None,
    limit: Limit = None,
    label: Annotated[str, typer.Option(help="What it is for, shown in lists.")] = "",
    expires: Annotated[str | None, typer.Option(metavar="WHEN", help="30d, 12h, or a date such as 2027-01-31.")] = None,
) -> None:
    """Make a key and print it, which happens once: only its hash is kept."""
    words = [word.strip() for given in allow or [",".join(EVERYTHING)] for word in given.split(",") if word.strip()]
    limits = parse_limits(limit)
    reach.run(
        lambda tenants: tenants.create_key(tenant, role=role, allow=words, limits=limits, label=label, expires=expires),
        lambda answer: _new(answer, reach.place),
        creates=True,
    )


@app.command("ls")
@reaches_tenants
def ls(
    reach: TenantsReach,
    tenant: Annotated[str | None, typer.Option(metavar="NAME", help="Only this tenant's.")] = None,
) -> None:
    """List keys, those that were revoked or have expired too."""
    reach.run(lambda tenants: every_page(lambda after: tenants.keys(tenant, after)), shown.keys)


@app.command("revoke")
@reaches_tenants
def revoke(reach: TenantsReach, key_id: KeyId) -> None:
    """Make a key worthless, on running servers within a second."""
    reach.run(lambda tenants: tenants.revoke_key(key_id), shown.revoked)


@app.command("rotate")
@reaches_tenants
def rotate(
    reach: TenantsReach,
    key_id: KeyId,
    grace: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="How long the old key is still good; 0: it ends now.")
    ] = 0.0,
) -> None:
    """Make another key with the same rights and print it; the old one ends."""
    reach.run(lambda tenants: tenants.rotate_key(key_id, grace_s=grace), lambda answer: _new(answer, reach.place))


def parse_limits(given: list[str] | None) -> dict[str, int | None]:
    """NAME=NUMBER or NAME=none. Raises typer.BadParameter."""
    limits: dict[str, int | None] = {}
    for text in given or ():
        name, _, number = text.partition("=")
        if number == "none":
            limits[name] = None
        elif number.isascii() and number.isdigit() and len(number) <= 16:
            limits[name] = int(number)
        else:
            raise typer.BadParameter(f"{text!r} is not NAME=NUMBER, as in requests_per_minute=60, or NAME=none")
    return limits


def _new(answer: Json, place: str) -> None:
    """The key alone on standard output, so that a script can take it; what else is to be said beside it."""
    typer.echo(answer["key"])
    print(shown.about_key(answer, place), file=sys.stderr)
