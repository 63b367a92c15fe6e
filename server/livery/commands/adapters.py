"""`livery adapters`: what a running server serves, and whether a directory would be served."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import httpx
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from livery.models import resolve_model
from livery_adapters.base_model import BaseModel
from livery_adapters.finite import check_finite
from livery_adapters.ingest import check_directory
from livery_adapters.manifest import read_manifest
from livery_adapters.refusal import AdapterRefused, Limits

app = typer.Typer(help="List and check adapters.", no_args_is_help=True)

Url = Annotated[str, typer.Option(envvar="LIVERY_URL", help="Where the server is.")]
Key = Annotated[str | None, typer.Option(envvar="LIVERY_API_KEY", help="The server's API key.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DEFAULT_URL = "http://127.0.0.1:8000"
TIMEOUT_S = 10.0


class ServerUnusable(Exception):
    """A server can't be asked; the message says where it was looked for and what it said."""


@app.command("ls")
def ls(url: Url = DEFAULT_URL, key: Key = None, as_json: AsJson = False) -> None:
    """List the adapters of a running server."""
    answer = _ask(url, "/v1/adapters", key)
    if as_json:
        typer.echo(json.dumps(answer["data"], indent=2))
        return
    table = Table(title=f"Adapters over {escape(answer['base'])}", title_justify="left")
    for column in ("name", "state", "version", "ranks", "size", "in memory", "running"):
        table.add_column(column, overflow="fold")
    for adapter in answer["data"]:
        table.add_row(*_row(adapter))
    console = Console(soft_wrap=True)
    console.print(table)
    for adapter in answer["data"]:
        notes = [adapter["error"]] if adapter["error"] else list(adapter.get("coverage", {}).get("warnings", ()))
        for note in notes:
            console.print(f"{escape(adapter['name'])}: {escape(note)}", highlight=False)


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="An adapter's name.")],
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Show one adapter of a running server."""
    adapter = _ask(url, f"/v1/adapters/{quote(name, safe='')}", key)
    if as_json:
        typer.echo(json.dumps(adapter, indent=2))
    else:
        coverage = adapter.pop("coverage", {})
        _print_facts({**adapter, **coverage})


@app.command("check")
def check(
    path: Annotated[Path, typer.Argument(help="A directory that PEFT's save_pretrained wrote.")],
    model: Annotated[str | None, typer.Option(help="The base model it is for; without, only its files.")] = None,
    max_rank: Annotated[int, typer.Option(min=1, help="Highest rank allowed, with --model.")] = 256,
    as_json: AsJson = False,
) -> None:
    """Say whether a directory can be served, and why not. Exit status 1 when it can't."""
    try:
        report = _check(path, model, Limits(max_rank=max_rank))
    except AdapterRefused as refused:
        if as_json:
            typer.echo(json.dumps({"ok": False, "code": refused.code, "message": refused.message}, indent=2))
        else:
            Console(soft_wrap=True).print(f"[red]refused[/] ({refused.code}): {escape(refused.message)}")
        raise typer.Exit(1) from None
    if as_json:
        typer.echo(json.dumps({"ok": True, **report}, indent=2))
    else:
        Console().print(f"[green]ok[/] {escape(str(path))}")
        _print_facts(report)


def _check(path: Path, model: str | None, limits: Limits) -> dict[str, Any]:
    """The report on a directory; against a base where one is named. Raises AdapterRefused."""
    path = Path(os.path.abspath(path))  # `.` has no name that a message could give; links stay links
    if model is None:
        manifest = read_manifest(path, limits)
        check_finite(path, manifest)
        return {
            "digest": manifest.digest,
            "peft_type": manifest.peft_type,
            "base_in_config": manifest.base_name,
            "adapted": len(manifest.targets),
            "max_rank": manifest.max_rank,
            "nbytes": manifest.nbytes,
            "config": dict(manifest.facts),
            "note": "not checked against a base; add --model",
        }
    # Imported here: it needs torch, and no other command of this module does.
    from livery.engine.model import base_shapes

    resolved = resolve_model(model)
    base = BaseModel(resolved.name, "", base_shapes(str(resolved.path)))
    return check_directory(path, base, limits).coverage.to_dict()


def _ask(url: str, path: str, key: str | None) -> Any:  # noqa: ANN401  (JSON)
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        answer = httpx.get(url.rstrip("/") + path, headers=headers, timeout=TIMEOUT_S)
        body = answer.json()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ServerUnusable(
            f"no answer from {url} ({error}); is `livery serve` running there? --url or LIVERY_URL names another"
        ) from None
    except ValueError:
        raise ServerUnusable(f"{url} answers, but not like a Livery server; give its address with --url") from None
    if answer.status_code == httpx.codes.OK and _fits(path, body):
        return body
    match body:
        case {"error": {"message": str(message)}}:
            raise ServerUnusable(f"{url} says: {message}")
        case _:
            raise ServerUnusable(
                f"{url} answers {path} with status {answer.status_code} and not like a Livery server; "
                "give its address with --url"
            )


def _fits(path: str, body: object) -> bool:
    """Whether an answer is what a Livery server says there: the list of adapters, or one of them."""
    match body:
        case {"base": str(), "data": list()}:
            return path == "/v1/adapters"
        case {"name": str(), "state": str()}:
            return path != "/v1/adapters"
    return False


def _row(adapter: dict[str, Any]) -> list[str]:
    coverage = adapter.get("coverage", {})
    return [
        escape(adapter["name"]),
        adapter["state"],
        adapter.get("digest", "")[:12],
        ", ".join(map(str, coverage.get("ranks", ()))),
        f"{coverage['nbytes'] / 1e6:.1f} MB" if coverage else "",
        "yes" if adapter["resident"] else "no",
        str(adapter["requests"]),
    ]


def _print_facts(facts: dict[str, Any]) -> None:
    table = Table(show_header=False, box=None)
    for name, value in facts.items():
        if value not in (None, [], (), ""):
            table.add_row(name, escape(value if isinstance(value, str) else json.dumps(value)))
    Console(width=max(80, _terminal_width())).print(table)


def _terminal_width() -> int:
    try:
        return os.get_terminal_size().columns
    except OSError:  # not a terminal: nothing is cut
        return 400
