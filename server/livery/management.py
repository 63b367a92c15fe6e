"""Managing adapters: the verbs of the API and the command line, and what they answer.

    management = AdapterManagement(library, SourcePolicy(["hf://my-org/"]), live)
    answer = await management.put("pirate", "hf://my-org/pirate@main", AddOptions())

The same code with and without a running server: `Live` is what only a server knows. Answers are plain
dictionaries, ready for JSON; sizes in bytes, times as Unix times.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from livery.adapter_views import Json, alias_json, page_json, report_json, version_json
from livery.adding import AddOptions
from livery.beside import REPORTING
from livery.intakes import MAX_INTAKES, Intakes
from livery.live import Live, Offline
from livery.origins import Origins, Upload, from_upload, kind_of
from livery.refusals import AdapterExists, AdapterPathNotFound
from livery.tenancy import OPERATOR, Principal, scope
from livery.under_way import UnderWay, pauses
from livery_adapters.fetching import SourcePolicy
from livery_adapters.library import AdapterLibrary, Fill, from_directory
from livery_adapters.profile import PROFILE_NAME, Profile, recorded_profile, write_profile
from livery_adapters.registry import (
    NO_QUOTA,
    AdapterRecord,
    AliasTarget,
    Quota,
    Reader,
    UnknownAdapter,
    View,
    reader_of,
)

MAX_PAGE = 1000
MAX_DRAIN_S = 600.0


class AdapterManagement:
    """Every verb on adapters and aliases, by their names in full. Use from one event loop.

    What a tenant's key may do, and what it calls things, is said in livery.managed. With an `owner` a verb knows that
    tenant's names alone, as they are at that moment; None: everybody's.

    Raises RegistryError (unknown names, conflicts), AdapterRefused (a bad adapter, source or name), TooManyIntakes,
    LimitExceeded.
    """

    def __init__(
        self,
        library: AdapterLibrary,
        policy: SourcePolicy,
        live: Live | None = None,
        *,
        root: Path | None = None,
        is_tenant: Callable[[str], bool] = lambda _: False,
        intakes: int = MAX_INTAKES,
    ) -> None:
        """`root` is the folder that relative paths start from; names that begin with a tenant's are that tenant's."""
        self.library = library
        self._registry = library.registry
        self.live: Live = live or Offline()
        self._root = root
        self._is_tenant = is_tenant
        self._intakes = Intakes(intakes)
        self._origins = Origins(policy, root, self._intakes)

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
        view: View | None = None,
    ) -> Json:
        """One page of adapters by name; `next_after` is where the next one starts, None at the end.

        `tenant`: only those of this one. With a `view`, what it shows, in its order and with its `next_after`.
        """
        read = partial(
            self._registry.page,
            after,
            min(limit, MAX_PAGE),
            state=state,
            source=source,
            search=search,
            owner=tenant,
            view=view,
        )
        page = await REPORTING.run(view.tenant if view else OPERATOR.tenant, read)
        resident, under_way = await self.live.resident(), await self.live.under_way()
        return {
            "object": "list",
            "base": self.library.base.name,
            "data": [self._shown(record, record.name in resident, under_way, whole=False) for record in page.records],
            "next_after": page.next_after,
            "has_more": page.next_after is not None,
        }

    async def show(self, name: str, reader: Reader | None = None) -> Json:
        """One adapter with its whole coverage report; one that was deleted as long as requests are under way.

        To a `reader` only what that one may know is there.
        """
        leaving = (await self.live.under_way()).of(name) > 0
        found = await asyncio.to_thread(self._registry.get, name, include_retired=leaving, reader=reader)
        return await self.told(found)

    async def profile(self, name: str, *, owner: str | None = None) -> Json:
        """The active version's profile, as `set_profile` takes it, and the generation to expect."""
        record = await self._get(name, owner)
        active = record.active.facts if record.active else None
        return {
            "name": name,
            "generation": record.generation,
            "digest": active.digest if active else None,
            "profile": dict(active.profile) if active else {},
        }

    async def versions(
        self, name: str, *, owner: str | None = None, after: int | None = None, limit: int = MAX_PAGE
    ) -> Json:
        """One page of the name's history, newest first: what is older than number `after`."""
        record = await self._get(name, owner)
        read = partial(self._registry.versions, name, owner=owner, after=after, limit=limit + 1)
        history = await REPORTING.run(owner or self.owner_of(name), read)
        active = record.active.facts.digest if record.active else None
        rows = [version_json(version, active=version.facts.digest == active, whole=False) for version in history]
        return page_json(rows, limit, "version") | {"name": name}

    async def check(
        self, source: str, *, approximate: int = 0, local: bool = True, payer: str = OPERATOR.tenant
    ) -> Json:
        """The coverage report of an adapter that isn't taken in."""
        return await self._report(self._origins.fill(source, payer, local=local), approximate, payer)

    async def check_upload(self, files: Upload, *, approximate: int = 0, payer: str = OPERATOR.tenant) -> Json:
        return await self._report(from_upload(files), approximate, payer)

    # -- adapters --------------------------------------------------------------------------------------

    async def put(self, name: str, source: str, options: AddOptions, *, local: bool = True) -> Json:
        """Take in what `source` holds: hf://, s3://, gs://, az://, or (`local`) a directory the operator allowed."""
        fill = self._origins.fill(source, options.payer, local=local)
        return await self.take(name, fill, kind_of(source), options)

    async def take(
        self,
        name: str,
        fill: Fill,
        source: str,
        options: AddOptions,
        parents: Sequence[tuple[str, float]] = (),
    ) -> Json:
        """Check, store, prove, record; the new version is active unless `options` say otherwise."""
        record, _ = await self.taken(name, fill, source, options, parents)
        return await self.told(record)

    async def taken(
        self,
        name: str,
        fill: Fill,
        source: str,
        options: AddOptions,
        parents: Sequence[tuple[str, float]] = (),
    ) -> tuple[AdapterRecord, str]:
        """As `take`: how the name stands, and the digest of the version taken in, active or not.

        When it returns, whoever asks for the name on this server gets what it stands for now.
        """
        intake = options.intake(source, self.owner_of(name), parents)
        with self._intakes.claim(options.payer):
            async with self.live.changing(name, intake.owner):
                taken = await self.library.add_version(name, fill, intake)
            intake.laps.lap("tell")
        return taken

    async def load(self, name: str, path: str, *, in_place: bool) -> None:
        """vLLM's verb: serve a directory below the adapter folder as `name`.

        Raises AdapterExists (unless `in_place`), AdapterPathNotFound, InvalidParameter.
        """
        directory = self._origins.below_root(path)
        record = await asyncio.to_thread(self._registry.find, name)
        if not in_place and record is not None and record.active is not None:
            raise AdapterExists(name)
        if not directory.is_dir():
            raise AdapterPathNotFound(name, path)
        fill = from_directory(directory, [self._root or directory], self._origins.shown(str(directory)))
        await self.take(name, fill, "api", AddOptions())

    async def activate(
        self, name: str, version: str, expected_generation: int | None = None, *, owner: str | None = None
    ) -> Json:
        async with self._changing(name):
            record = await self.library.activate(name, version, expected_generation, owner=owner)
        return await self.told(record)

    async def rollback(self, name: str, expected_generation: int | None = None, *, owner: str | None = None) -> Json:
        async with self._changing(name):
            record = await self.library.rollback(name, expected_generation, owner=owner)
        return await self.told(record)

    async def set_profile(
        self,
        name: str,
        profile: Profile,
        expected_generation: int | None = None,
        quota: Quota = NO_QUOTA,
        *,
        owner: str | None = None,
    ) -> Json:
        """Give the active version's weights another profile: a new version, or one there was."""
        async with self._changing(name):
            record = await self.library.set_profile(name, profile, expected_generation, quota, owner=owner)
        return await self.told(record)

    async def retire(
        self,
        name: str,
        *,
        drain_s: float = 0.0,
        expected_generation: int | None = None,
        owner: str | None = None,
    ) -> Json:
        """No new requests; waits up to `drain_s` seconds for those under way, which finish in any case.

        Once more, while they are still under way, only waits.
        """
        try:
            async with self._changing(name):
                record = await self.library.retire(name, expected_generation, owner=owner)
        except UnknownAdapter:
            if not (await self.live.under_way()).of(name):
                raise
            record = await self._get(name, owner, include_retired=True)
        under_way = await self.live.under_way()
        for pause in pauses(min(drain_s, MAX_DRAIN_S)):
            if not under_way.of(name):
                break
            await asyncio.sleep(pause)
            under_way = await self.live.under_way()
        return {"name": name, "state": self.live.state(record, under_way), "requests": under_way.of(name)}

    async def pin(self, name: str, pinned: bool) -> Json:
        """A pinned adapter is loaded when the server starts and stays in device memory."""
        if pinned:  # what can't be loaded is refused before the pin is written down
            await self.live.prefetch(await self._get(name, None), OPERATOR)
        async with self._changing(name):
            record = await asyncio.to_thread(self._registry.pin, name, pinned)
        return await self.told(record)

    async def prefetch(
        self, name: str, *, shown: str | None = None, principal: Principal = OPERATOR, owner: str | None = None
    ) -> Json:
        """Have the engine read the active version before a request asks for it. `shown` is what messages call it."""
        record = await self._get(name, owner)
        await self.live.prefetch(replace(record, name=shown or name), principal)
        return await self.told(record)

    async def share(self, name: str, tenant: str, *, shared: bool = True, owner: str | None = None) -> Json:
        """Let another tenant use an adapter until that is deleted, or (`shared` False) no longer."""
        change = self._registry.share if shared else self._registry.unshare
        async with self._changing(name):
            found = await asyncio.to_thread(change, name, owner, tenant)
        return {"name": name, "shared_with": list(found)}

    # -- aliases ---------------------------------------------------------------------------------------

    async def aliases(self, tenant: str | None = None, *, after: str = "", limit: int = MAX_PAGE) -> Json:
        """One page of aliases by name; `tenant`: of those of this one."""
        read = partial(self._registry.aliases, tenant, after, limit + 1)
        found = await REPORTING.run(tenant or OPERATOR.tenant, read)
        return page_json([alias_json(alias) for alias in found], limit, "name")

    async def alias(self, name: str, *, owner: str | None = None) -> Json:
        return alias_json(await asyncio.to_thread(self._registry.alias, name, reader_of(owner)))

    async def set_alias(
        self,
        name: str,
        targets: Iterable[tuple[str, float]],
        sticky: Literal["user", "key", "none"],
        expected_generation: int | None = None,
        *,
        owner: str | None = None,
        quota: Quota = NO_QUOTA,
    ) -> Json:
        """Share requests for `name` out by weight; `sticky` keeps a user or a key on one target.

        `owner` None: whom the name says. Targets are named in full, and must be its owner's to use.
        """
        wanted = [AliasTarget(target, weight) for target, weight in targets]
        whose = owner or self.owner_of(name)
        async with self._changing(name):
            alias = await asyncio.to_thread(
                self._registry.set_alias, name, wanted, sticky, expected_generation, owner=whose, quota=quota
            )
        return alias_json(alias)

    async def delete_alias(
        self, name: str, expected_generation: int | None = None, *, owner: str | None = None
    ) -> Json:
        async with self._changing(name):
            await asyncio.to_thread(self._registry.delete_alias, name, expected_generation, owner=owner)
        return {"name": name, "deleted": True}

    # -- the stock -------------------------------------------------------------------------------------

    async def gc(self, *, keep_versions: int | None = None) -> Json:
        """Drop history beyond the newest `keep_versions` of each name, and files that nothing refers to."""
        trimmed = await asyncio.to_thread(self._registry.trim, keep_versions) if keep_versions else []
        removed = await self.library.collect_garbage()
        shared = await self.library.collect_shared_garbage()
        return {"versions_dropped": len(trimmed), "blobs_removed": removed, "shared_blobs_removed": shared}

    async def export(self, name: str, version: str | None, out: Path) -> Json:
        """Copy a version's files and profile, the active one's unless another is named, into a new directory.

        Raises UnknownAdapter, UnknownVersion, and FileExistsError when `out` isn't empty.
        """
        record = await asyncio.to_thread(self._registry.get, name)
        if version is not None:
            chosen = await asyncio.to_thread(self._registry.version, name, version)
        elif record.active is not None:
            chosen = record.active
        else:
            raise UnknownAdapter(name, "it has no active version; name one with --version")
        await self.library.export(chosen.facts.weights, out)
        if chosen.facts.profile:
            written = write_profile(recorded_profile(chosen.facts.profile))
            await asyncio.to_thread((out / PROFILE_NAME).write_text, written, "utf-8")
        return {"name": name, "digest": chosen.facts.digest, "directory": str(out)}

    async def told(self, record: AdapterRecord, *, whole: bool = True) -> Json:
        """One adapter; `whole` False leaves out what is long (adapter_views.LONG)."""
        resident = record.name in await self.live.resident()
        shared = await asyncio.to_thread(self._registry.shared_with, record.name)
        shown = self._shown(record, resident, await self.live.under_way(), whole=whole)
        return shown | {"shared_with": list(shared)}

    def owner_of(self, name: str) -> str:
        """Whom a name in full belongs to."""
        return scope.owner_of(name, self._is_tenant)

    async def under_way(self) -> UnderWay:
        """Requests under way on adapters."""
        return await self.live.under_way()

    # -- inside ----------------------------------------------------------------------------------------

    def _changing(self, name: str) -> AbstractAsyncContextManager[None]:
        return self.live.changing(name, self.owner_of(name))

    async def _get(self, name: str, owner: str | None, *, include_retired: bool = False) -> AdapterRecord:
        return await asyncio.to_thread(
            self._registry.get, name, include_retired=include_retired, reader=reader_of(owner)
        )

    async def _report(self, fill: Fill, approximate: int, payer: str) -> Json:
        with self._intakes.claim(payer):
            report = await self.library.check(fill, approximate=approximate)
        return report_json(report)

    def _shown(self, record: AdapterRecord, resident: bool, under_way: UnderWay, *, whole: bool = True) -> Json:
        shown: Json = {
            "name": record.name,
            "object": "adapter",
            "owner": record.owner,
            "state": self.live.state(record, under_way),
            "generation": record.generation,
            "source": record.source,
            "origin": record.origin,
            "pinned": record.pinned,
            "requests": under_way.of(record.name),
            "resident": resident,
            "error": record.error,
            "error_code": record.error_code,
            "updated": int(record.updated),
        }
        if record.active is not None:
            shown |= version_json(record.active, active=True, whole=whole)
        return shown
