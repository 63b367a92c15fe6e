"""The options with which a command says where adapters are, and the way from there to an answer."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import ByteSize, Field, TypeAdapter, ValidationError

from livery.adapter_views import Json
from livery.commands.asking import CommandFailed
from livery.commands.backends import DEFAULT_URL, Backend, open_server
from livery.commands.offline import LocalBackend, Need, Place, open_local
from livery.data_folder import DataFolderUnusable
from livery.refusals import ServiceRefusal
from livery.tenancy import TenancyError
from livery_adapters.refusal import DEFAULT_LIMITS, AdapterRefused, Limits
from livery_adapters.registry import RegistryError
from livery_adapters.store import StoreBusy

# What a verb refuses or can't do: a line for the user, never a traceback.
REFUSALS = (AdapterRefused, RegistryError, ServiceRefusal, TenancyError, DataFolderUnusable, StoreBusy, OSError)

Show = Callable[[Json], None]
Opened = TypeVar("Opened")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Data = Annotated[Path | None, typer.Option(metavar="DIR", help="A server's data folder: no server is asked.")]
Registry = Annotated[
    str | None,
    typer.Option(metavar="URL", envvar="LIVERY_REGISTRY", help="With --data: the registry, where it isn't in there."),
]


def nbytes(value: str | int) -> int:
    """A number of bytes as settings take it: 8GiB, or 1048576. Raises typer.BadParameter."""
    try:
        return int(_BYTES.validate_python(value))
    except ValidationError:
        raise typer.BadParameter(f"{value!r} is no number of bytes; write it as in 8GiB") from None


_BYTES = TypeAdapter(Annotated[ByteSize, Field(ge=1)])
# What a folder lets in that no server looks after; a server has its own limits.
MaxRank = Annotated[int, typer.Option(min=1, help="Without a server: highest rank allowed.")]
MaxAdapterBytes = Annotated[
    int,
    typer.Option(
        parser=nbytes,
        metavar="BYTES",
        show_default=ByteSize(DEFAULT_LIMITS.max_weight_bytes).human_readable(),
        help="Without a server: most bytes of the weights, as in 8GiB.",
    ),
]
OPTIONS = {
    "url": Annotated[
        str | None,
        typer.Option(metavar="URL", help=f"Where the server is; else LIVERY_URL or {DEFAULT_URL}."),
    ],
    "key": Annotated[str | None, typer.Option(metavar="KEY", envvar="LIVERY_API_KEY", help="The server's API key.")],
    "data": Data,
    "registry": Registry,
}


@dataclass(frozen=True, slots=True)
class Reach:
    """Where a command looks, and how it answers. `data` is set where no server is asked."""

    url: str
    key: str | None
    data: Path | None
    registry: str | None
    as_json: bool
    url_given: bool = True  # by option or variable

    def run(
        self,
        verb: Callable[[Backend], Awaitable[Json]],
        show: Show,
        need: Need = Need(),  # noqa: B008  (frozen)
        *,
        model: str | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        """Ask for one verb and print the answer. Raises CommandFailed."""
        if self.data is None:
            self.print(ask(open_server(self.url, self.key), verb), show)
        else:
            self.print(ask(open_local(self.place(model), need, limits), verb), show)

    def run_here(
        self,
        verb: Callable[[LocalBackend], Awaitable[Json]],
        show: Show,
        need: Need = Need(),  # noqa: B008  (frozen)
        *,
        model: str | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        """As `run`, for what only a data folder can do. Raises CommandFailed."""
        self.print(ask(open_local(self.place(model), need, limits), verb), show)

    def place(self, model: str | None = None) -> Place:
        """The data folder. Raises typer.BadParameter without --data."""
        if self.data is None:
            raise typer.BadParameter("this works on a data folder only: give the server's with --data DIR")
        return Place(self.data.expanduser(), self.registry, model)

    def print(self, answer: Json, show: Show) -> None:
        tell(answer, show, as_json=self.as_json)


def tell(answer: Json, show: Show, *, as_json: bool) -> None:
    """Print an answer."""
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
    else:
        show(answer)


def ask(opened: AbstractAsyncContextManager[Opened], verb: Callable[[Opened], Awaitable[Json]]) -> Json:
    """One verb on whatever is opened for it. Raises CommandFailed with what was refused."""

    async def asked() -> Json:
        async with opened as backend:
            return await verb(backend)

    try:
        return asyncio.run(asked())
    except REFUSALS as refusal:
        raise CommandFailed(words(refusal)) from refusal


def words(refusal: Exception) -> str:
    """A refusal as a line for people."""
    if isinstance(refusal, OSError) and refusal.strerror:
        where = f"{refusal.filename}: " if refusal.filename else ""
        return f"{where}{refusal.strerror}"
    return str(refusal)


def reaches(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose first parameter is a Reach, from one with the options that make it."""

    def reach(url: str | None, key: str | None, data: Path | None, registry: str | None, as_json: bool) -> Reach:
        if url is not None and data is not None:
            raise typer.BadParameter("--url asks a server and --data a folder: give one of them")
        if registry is not None and data is None and not os.environ.get("LIVERY_REGISTRY"):
            raise typer.BadParameter("--registry goes with --data DIR, the folder with the adapters' files")
        found = url or os.environ.get("LIVERY_URL")
        return Reach(found or DEFAULT_URL, key, data, registry, as_json, found is not None)

    return with_options(command, OPTIONS, reach)


def with_options(
    command: Callable[..., None], options: Mapping[str, Any], make: Callable[..., object]
) -> Callable[..., None]:
    """A command with `options` and --json, whose first parameter is what `make` makes of their values."""

    def run(**given: Any) -> None:  # noqa: ANN401  (typer fills these in by the signature below)
        made = make(**{name: given.pop(name) for name in (*options, "as_json")})
        command(made, **given)

    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
    for name, annotation in options.items():
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation))
    parameters.append(inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=AsJson))
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__doc__ = command.__doc__
    return run
