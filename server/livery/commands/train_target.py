"""Where a trained adapter goes: a running server or a data folder, under a name, behind an alias."""

from __future__ import annotations

import shlex
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from livery.adapter_views import Json
from livery.adding import AddOptions
from livery.commands import shown
from livery.commands.adapters_change import read_profile
from livery.commands.asking import CommandFailed
from livery.commands.backends import DEFAULT_URL, Backend, HttpBackend, is_remote, open_server
from livery.commands.offline import Need, Place, open_local
from livery.commands.reach import Reach, ask
from livery.data_folder import DataFolder
from livery_adapters.identity import version_digest
from livery_adapters.names import validate_name
from livery_adapters.profile import EMPTY, PROFILE_NAME, Profile, ProfileInvalid, recorded_profile
from livery_adapters.refusal import DEFAULT_LIMITS, TAKEN_IN, AdapterRefused
from livery_adapters.registry import RegistryError, UnknownAdapter

_UNIX = "unix:"


@dataclass(frozen=True, slots=True)
class Active:
    """What a name serves, as of one look. `digest` None: nothing; `generation` 0: there is no such name."""

    digest: str | None = None
    generation: int = 0
    version: int | None = None
    profile: Profile = EMPTY


@dataclass(frozen=True, slots=True)
class Kept:
    """The profile that a trained version gets: one that lies beside its weights, or else the active version's."""

    profile: Profile
    own: bool
    active: Active

    @classmethod
    def of(cls, adapter: Path, active: Active) -> Kept:
        """Raises CommandFailed for a profile.yaml that can't be read."""
        file = adapter / PROFILE_NAME
        return cls(read_profile(file), True, active) if file.is_file() else cls(active.profile, False, active)

    def is_active(self, weights: str) -> bool:
        """Whether the name serves these weights under this profile."""
        return self.active.digest == version_digest(weights, 0, self.profile.to_json())

    def doubts(self, base: str) -> list[str]:
        """What of it may not fit weights that were trained with the base's own text."""
        differs = {"chat_template": self.profile.chat_template, "added_tokens": self.profile.added_tokens}
        names = " and ".join(name for name, value in differs.items() if value)
        if not names:
            return []
        whose = PROFILE_NAME if self.own else f"the profile of version {self.active.version}"
        return [
            f"{whose} has {names} of its own, with which a server writes chats, and this run wrote its examples as "
            f"{base} does"
        ]

    def told(self) -> Json:
        """`fields` it sets, and which version's it is; None: its own. `dropped` are those that its own one replaces."""
        before = self.active.profile if self.own else self.profile
        return {
            "fields": list(self.profile.to_json()),
            "of_version": None if self.own else self.active.version,
            "dropped": [] if before == self.profile else list(before.to_json()),
        }


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

    def check(self, base: str, digest: str, rank: int) -> None:
        """Ask for something small before hours of training an adapter of this rank, over the base of this digest.

        Raises CommandFailed.
        """
        for name in filter(None, (self.name, self.alias)):
            try:
                validate_name(name)
            except AdapterRefused as refused:
                raise CommandFailed(f"{name!r}: {refused}") from refused
        if not self._remote and DataFolder(self._folder).base() is None:
            return  # a folder that will be made, or that has served nothing yet

        async def looked(backend: Backend) -> Json:
            await backend.ls(after="", limit=1, state=None, source=None, search=None)
            return await backend.limits()

        most = ask(self._opened(base), looked).get("max_rank")
        if most is None and rank > DEFAULT_LIMITS.max_rank:
            shown.complain(
                f"whether {self.where} takes rank {rank} isn't known: it is too old to say its --max-rank, "
                f"by default {DEFAULT_LIMITS.max_rank}"
            )
        if most is not None and rank > most:
            raise CommandFailed(
                f"the adapter is to have rank {rank}, and {self.where} takes up to {most}: start that server with "
                f"--max-rank {rank}, or train one of a lower rank"
            )
        if not self.is_over(base, digest):
            shown.complain(
                f"whether {self.where} serves {base} can't be told, as it shows this key no base: what is trained will "
                "be added, and not activated"
            )

    def is_over(self, base: str, digest: str) -> bool:
        """Whether what is served there is the base of this digest; False where a server doesn't tell this key.

        Shapes alone don't show that an adapter is for another model. Raises CommandFailed where it is another's.
        """
        if not self._remote:
            return True  # compared wherever the folder is opened

        async def looked(backend: HttpBackend) -> Json:
            return {"digest": await backend.base_digest()}

        found = ask(self._server(), looked)["digest"]
        if found and found != digest:
            raise CommandFailed(
                f"base is {base} ({digest[:12]}), and {self.where} serves another one ({found[:12]}): train on that "
                "server's base, or add to a server of this one; where both are forms of one model, leave --add-to out "
                "and add it with livery adapters add"
            )
        return bool(found)

    def active(self, base: str) -> Active:
        """What the name serves now. Raises CommandFailed."""

        async def looked(backend: Backend) -> Json:
            try:
                return await backend.show(self.name)
            except (AdapterRefused, RegistryError) as refused:
                if refused.code == UnknownAdapter.code:
                    return {}
                raise

        found = ask(self._opened(base), looked)
        if not found:
            return Active()
        try:
            profile = recorded_profile(found.get("profile") or {})
        except ProfileInvalid as invalid:
            raise CommandFailed(
                f"the profile that {self.name} has now can't be read ({invalid}), and the new version is to keep it: "
                f"give it another one with livery adapters profile {self.name} FILE"
            ) from None
        return Active(found.get("digest"), found["generation"], found.get("version"), profile)

    def add(self, base: str, adapter: Path, kept: Kept, *, activate: bool) -> Json:
        """Take it in under this profile and, with `activate`, serve it and lead the alias to it, unless the name was
        changed since it was looked at.

        Raises CommandFailed, which says how to try again.
        """
        profile = None if kept.own or kept.profile == EMPTY else kept.profile
        options = AddOptions(activate=activate, expected_generation=kept.active.generation, profile=profile)

        async def added(backend: Backend) -> Json:
            record = await backend.add(self.name, str(adapter), options)
            return await self._alias_too(backend, activate, record) | {"profile": kept.told()}

        instead = f", and with a {PROFILE_NAME} there under that one, not under that of version {kept.active.version}"
        return self._tried(base, adapter, added, "" if profile is None else instead)

    def activate(self, base: str, adapter: Path, digest: str, generation: int) -> Json:
        """Serve a version that was added, and lead the alias to it, unless the name was changed since `generation`.

        Raises CommandFailed, which says how to try again.
        """

        async def activated(backend: Backend) -> Json:
            return await self._alias_too(backend, True, await backend.activate(self.name, digest, generation))

        return self._tried(base, adapter, activated)

    async def _alias_too(self, backend: Backend, active: bool, record: Json) -> Json:
        found: Json = {"name": self.name, "activated": active, "adapter": record}
        if self.alias and active:
            found["alias"] = await backend.set_alias(self.alias, [(self.name, 1.0)], "user")
        return found

    def _tried(self, base: str, adapter: Path, verb: Callable[[Backend], Awaitable[Json]], more: str = "") -> Json:
        try:
            return ask(self._opened(base), verb)
        except CommandFailed as failed:
            raise CommandFailed(
                f"{failed}. The adapter is whole in {adapter}: the same command again adds it without training{more}"
            ) from failed

    @property
    def reach(self) -> Reach:
        """As other commands are told where it is."""
        if self._remote:
            return Reach(self.where, self.key, None, None, as_json=False)
        return Reach(DEFAULT_URL, None, self._folder, None, as_json=False)

    def commands(self, version: int, *, better: bool, quantization: str = "auto") -> str:
        """What a user types to serve a version all the same, or (`better`) where it is better than the active one.

        `quantization` is how the base is to be held where it is loaded for that.
        """
        where = ["--url" if self._remote else "--data", self.where]
        gate = ["--if-better-than", "active", "--metric", "perplexity", "--on", "FILE"] if better else []
        if better and not self._remote and quantization != "auto":
            gate += ["--quantization", quantization]
        typed = shlex.join(["livery", "adapters", "activate", self.name, str(version), *gate, *where])
        if self.alias is None:
            return typed
        return f"{typed} && {shlex.join(['livery', 'adapters', 'alias', self.alias, self.name, *where])}"

    @property
    def _remote(self) -> bool:
        return is_remote(self.where) or self.where.startswith(_UNIX)

    @property
    def _folder(self) -> Path:
        return Path(self.where).expanduser()

    def _server(self) -> AbstractAsyncContextManager[HttpBackend]:
        return open_server(self.where, self.key)

    def _opened(self, base: str) -> AbstractAsyncContextManager[Any]:
        if self._remote:
            return self._server()
        return open_local(Place(self._folder, None, base), Need(base=True, creates=True), TAKEN_IN)
