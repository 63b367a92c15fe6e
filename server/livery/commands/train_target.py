"""Where a trained adapter goes: a running server or a data folder, under a name, behind an alias."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from livery.adapter_views import Json
from livery.adding import AddOptions
from livery.commands.asking import CommandFailed
from livery.commands.backends import Backend, is_remote, open_server
from livery.commands.offline import Need, Place, open_local
from livery.commands.reach import ask
from livery.data_folder import DataFolder
from livery_adapters.names import validate_name
from livery_adapters.refusal import AdapterRefused

_UNIX = "unix:"


@dataclass(frozen=True, slots=True)
class Target:
    """A server's URL or a data folder, the adapter's name there, and an alias that is to lead to it."""

    where: str
    name: str
    alias: str | None
    key: str | None

    @classmethod
    def of(cls, where: str | None, name: str | None, alias: str | None, key: str | None) -> Target | None:
        """None where nothing is to be added. Raises typer.BadParameter."""
        if where is None:
            if name is not None or alias is not None:
                raise typer.BadParameter("--as and --alias go with --add-to, which says where to add it")
            return None
        if name is None:
            raise typer.BadParameter("--add-to needs --as NAME, the name that requests call it by")
        if alias == name:
            raise typer.BadParameter(f"--alias and --as are both {name!r}: an alias is another name")
        return cls(where, name, alias, key)

    def check(self, base: str) -> None:
        """Ask for something small before hours of training. Raises CommandFailed."""
        for name in filter(None, (self.name, self.alias)):
            try:
                validate_name(name)
            except AdapterRefused as refused:
                raise CommandFailed(f"{name!r}: {refused}") from refused
        if not self._remote and DataFolder(self._folder).base() is None:
            return  # a folder that will be made, or that has served nothing yet

        async def looked(backend: Backend) -> Json:
            return await backend.ls(after="", limit=1, state=None, source=None, search=None)

        ask(self._opened(base), looked)

    def add(self, base: str, adapter: Path, *, activate: bool) -> Json:
        """Take it in and, with `activate`, serve it and lead the alias to it.

        Raises CommandFailed, which says how to try again.
        """

        async def added(backend: Backend) -> Json:
            record = await backend.add(self.name, str(adapter), AddOptions(activate=activate))
            found: Json = {"name": self.name, "activated": activate, "adapter": record}
            if self.alias and activate:
                found["alias"] = await backend.set_alias(self.alias, [(self.name, 1.0)], "user")
            return found

        try:
            return ask(self._opened(base), added)
        except CommandFailed as failed:
            raise CommandFailed(
                f"{failed}. The adapter is whole in {adapter}: the same command again adds it without training"
            ) from failed

    @property
    def _remote(self) -> bool:
        return is_remote(self.where) or self.where.startswith(_UNIX)

    @property
    def _folder(self) -> Path:
        return Path(self.where).expanduser()

    def _opened(self, base: str) -> AbstractAsyncContextManager[Any]:
        if self._remote:
            return open_server(self.where, self.key)
        return open_local(Place(self._folder, None, base), Need(base=True, creates=True))
