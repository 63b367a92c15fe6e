"""The verbs of management as one caller may use them: by the names it knows, on what is its own.

    managed = ManagedAdapters(management, principal)
    answer = await managed.put("pirate", "hf://me/pirate", AddOptions())    # acme/pirate, to a key of acme

A tenant changes its own adapters and aliases, by keys with the role owner, and never learns whether others have any:
what isn't its own isn't there. A key with the role admin changes everything, by names in full. Roles are looked at
before names.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

from livery.adapter_views import Json, told_to_others
from livery.adding import AddOptions
from livery.management import MAX_PAGE, AdapterManagement
from livery.origins import Upload, from_upload
from livery.pushing import Weights, pushed
from livery.refusals import AdapterNotFound
from livery.tenancy import Principal, scope
from livery.tenancy.checks import TENANT_NAME
from livery.under_way import UnderWay
from livery_adapters.profile import Profile
from livery_adapters.registry import AboutName, InvalidAlias, InvalidShare, UnknownAdapter, UnknownAlias


class ManagedAdapters:
    """One caller's view of an AdapterManagement, with its verbs. Use from one event loop.

    Raises what that raises, and RoleNotAllowed.
    """

    def __init__(self, management: AdapterManagement, principal: Principal) -> None:
        self._management = management
        self._principal = principal
        self._admin = principal.role == "admin"
        self._payer = principal.tenant
        self._owner = None if self._admin else principal.tenant

    # -- looking ---------------------------------------------------------------------------------------

    async def ls(
        self,
        *,
        after: str = "",
        limit: int = 100,
        state: str | None = None,
        source: str | None = None,
        search: str | None = None,
        tenant: str | None = None,
    ) -> Json:
        """One page of what the caller may use, by the names it knows; `tenant` is an admin's choice."""
        self._check(tenant is not None)
        answer = await self._management.ls(
            after=after,
            limit=limit,
            state=state,
            source=source,
            search=search,
            tenant=tenant,
            view=scope.view(self._principal),
        )
        under_way = await self._management.under_way()
        return answer | {"data": [self._known(adapter, under_way) for adapter in answer["data"]]}

    async def show(self, name: str) -> Json:
        """An adapter that the caller may use; what isn't its own in few words."""
        self._check()
        for candidate in scope.candidates(self._principal, name):
            try:
                answer = await self._management.show(candidate.full, candidate.reader)
            except UnknownAdapter:
                continue
            kind = scope.kind_of(self._principal, answer["owner"])
            if self._admin or kind == "own" or scope.allows(self._principal, kind, name):
                return await self._told(answer)
            break
        raise UnknownAdapter(name)

    async def profile(self, name: str) -> Json:
        with self._own(name) as full:
            return await self._management.profile(full, owner=self._owner) | {"name": name}

    async def versions(self, name: str, *, after: int | None = None, limit: int = MAX_PAGE) -> Json:
        with self._own(name) as full:
            found = await self._management.versions(full, owner=self._owner, after=after, limit=limit)
            return found | {"name": name}

    async def check(self, source: str, *, approximate: int = 0) -> Json:
        """The coverage report of an adapter that isn't taken in."""
        self._check()
        return await self._management.check(source, approximate=approximate, local=self._admin, payer=self._payer)

    async def check_upload(self, files: Upload, *, approximate: int = 0) -> Json:
        self._check()
        return await self._management.check_upload(files, approximate=approximate, payer=self._payer)

    # -- adapters --------------------------------------------------------------------------------------

    async def put(self, name: str, source: str, options: AddOptions) -> Json:
        """Take in what `source` holds; tenants name no directories of this machine."""
        with self._own(name, options.pinned is not None) as full:
            return await self._told(await self._management.put(full, source, self._bounded(options), local=self._admin))

    async def upload(self, name: str, body: Upload | Weights, options: AddOptions) -> Json:
        """Take in two files as they arrive, or weights alone for the configuration of the active version."""
        with self._own(name, options.pinned is not None) as full:
            fill = body if isinstance(body, Weights) else from_upload(body)
            return await self._told(await pushed(self._management, full, fill, self._bounded(options), shown=name))

    async def load(self, name: str, path: str, *, in_place: bool) -> None:
        """vLLM's verb: serve a directory below the operator's adapter folder, who alone may say so."""
        self.check_operator()
        await self._management.load(name, path, in_place=in_place)

    async def unload(self, name: str) -> None:
        """vLLM's verb. Raises AdapterNotFound."""
        try:
            await self.retire(name)
        except UnknownAdapter:
            raise AdapterNotFound(name) from None

    async def activate(self, name: str, version: str, expected_generation: int | None = None) -> Json:
        with self._own(name) as full:
            answer = await self._management.activate(full, version, expected_generation, owner=self._owner)
            return await self._told(answer)

    async def rollback(self, name: str, expected_generation: int | None = None) -> Json:
        with self._own(name) as full:
            return await self._told(await self._management.rollback(full, expected_generation, owner=self._owner))

    async def set_profile(self, name: str, profile: Profile, expected_generation: int | None = None) -> Json:
        with self._own(name) as full:
            answer = await self._management.set_profile(
                full, profile, expected_generation, scope.quota(self._principal), owner=self._owner
            )
            return await self._told(answer)

    async def retire(self, name: str, *, drain_s: float = 0.0, expected_generation: int | None = None) -> Json:
        """No new requests, and nobody has a share in what may get the name later."""
        with self._own(name) as full:
            answer = await self._management.retire(
                full, drain_s=drain_s, expected_generation=expected_generation, owner=self._owner
            )
            under_way = await self._management.under_way()
            return answer | {"name": name, "requests": self._requests(under_way, full)}

    async def pin(self, name: str, pinned: bool) -> Json:
        """Keep an adapter in device memory: the operator's to give."""
        with self._own(name, True) as full:
            return await self._told(await self._management.pin(full, pinned))

    async def prefetch(self, name: str) -> Json:
        with self._own(name) as full:
            answer = await self._management.prefetch(full, shown=name, principal=self._principal, owner=self._owner)
            return await self._told(answer)

    async def share(self, name: str, tenant: str, *, shared: bool = True) -> Json:
        """Let another tenant use an adapter of the caller's, or no longer. Whether there is such a one isn't told."""
        with self._own(name) as full:
            if not TENANT_NAME.fullmatch(tenant):
                raise InvalidShare(name, f"{tenant[:80]!r} is no tenant's name: those have a-z, 0-9 and -, at most 39")
            answer = await self._management.share(full, tenant, shared=shared, owner=self._owner)
            return answer | {"name": name}

    # -- aliases ---------------------------------------------------------------------------------------

    async def aliases(self, tenant: str | None = None, *, after: str = "", limit: int = MAX_PAGE) -> Json:
        """One page of the caller's own aliases by name; `tenant` is an admin's choice."""
        self._check(tenant is not None)
        behind = after and scope.in_full(self._principal, after)
        answer = await self._management.aliases(self._owner or tenant, after=behind, limit=limit)
        rows = [self._alias(alias) for alias in answer["data"]]
        return answer | {"data": rows, "next_after": rows[-1]["name"] if answer["has_more"] else None}

    async def alias(self, name: str) -> Json:
        with self._own(name, alias=True) as full:
            return self._alias(await self._management.alias(full, owner=self._owner))

    async def set_alias(
        self,
        name: str,
        targets: Iterable[tuple[str, float]],
        sticky: Literal["user", "key", "none"],
        expected_generation: int | None = None,
    ) -> Json:
        """Share requests out over adapters that the caller may use itself."""
        with self._own(name, alias=True, makes=True) as full:
            wanted = [(await self._target(name, target), weight) for target, weight in targets]
            quota = scope.quota(self._principal)
            answer = await self._management.set_alias(
                full, wanted, sticky, expected_generation, owner=self._owner, quota=quota
            )
            return self._alias(answer)

    async def delete_alias(self, name: str, expected_generation: int | None = None) -> Json:
        with self._own(name, alias=True) as full:
            answer = await self._management.delete_alias(full, expected_generation, owner=self._owner)
            return answer | {"name": name}

    def check_operator(self) -> None:
        """Raises RoleNotAllowed for everybody else."""
        self._check(True)

    # -- inside ----------------------------------------------------------------------------------------

    def _check(self, operators: bool = False) -> None:
        """Raises RoleNotAllowed."""
        scope.check_role(self._principal, "operate" if operators else "manage")

    @contextmanager
    def _own(self, name: str, operators: bool = False, *, alias: bool = False, makes: bool = False) -> Iterator[str]:
        """The full form of a name of the caller's own; what goes wrong is told by the name it knows.

        Raises RoleNotAllowed first, and for a name that would be another tenant's what unknown ones raise.
        """
        self._check(operators)
        full = scope.in_full(self._principal, name)
        if not self._admin and self._management.owner_of(full) != self._principal.tenant:
            raise UnknownAlias(name) if alias else UnknownAdapter(name)
        try:
            yield full
        except AboutName as error:
            if error.name == full:
                error.name = name
            raise

    def _bounded(self, options: AddOptions) -> AddOptions:
        asker, base = self._principal, self._management.library.base.name
        return replace(
            options,
            owner=self._owner,
            account=None if self._admin else asker.account,
            quota=scope.quota(asker),
            payer=self._payer,
            over_base=self._admin or scope.allows(asker, "base", base),
        )

    async def _target(self, alias: str, name: str) -> str:
        """The full name of an adapter that an alias is to lead to. Raises InvalidAlias."""
        base = self._management.library.base.name
        if self._admin or (name == base and scope.allows(self._principal, "base", name)):
            return name
        registry = self._management.library.registry
        for candidate in scope.candidates(self._principal, name):
            found = await asyncio.to_thread(registry.find, candidate.full, reader=candidate.reader)
            if found is not None:
                if scope.allows(self._principal, scope.kind_of(self._principal, found.owner), name):
                    return candidate.full
                break
        raise InvalidAlias(alias, f"{name[:160]!r} is no adapter; add it first (an alias can't be a target)")

    async def _told(self, adapter: Json) -> Json:
        """An adapter as the caller knows it."""
        return self._known(adapter, await self._management.under_way())

    def _known(self, adapter: Json, under_way: UnderWay) -> Json:
        full = adapter["name"]
        shown = {"name": scope.shown(self._principal, full), "requests": self._requests(under_way, full)}
        own = self._admin or adapter["owner"] == self._principal.tenant
        return adapter | shown if own else told_to_others(adapter | shown)

    def _requests(self, under_way: UnderWay, full: str) -> int:
        """Requests on an adapter that the caller may know of: its tenant's, or all to an admin."""
        return under_way.of(full, None if self._admin else self._principal.account)

    def _alias(self, alias: Json) -> Json:
        targets = [target | {"adapter": scope.shown(self._principal, target["adapter"])} for target in alias["targets"]]
        return alias | {"name": scope.shown(self._principal, alias["name"]), "targets": targets}
