"""The adapters this server serves: names to versions to what the engine is asked for.

A request leases the version its name stands for and keeps it to the end. What names stand for is read from the
registry when somebody asks, remembered, and forgotten when this process or another one changes it. The engine
loads a version when a request comes for it. Knows no HTTP and no text.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial

from sqlalchemy.exc import SQLAlchemyError

from livery.beside import REPORTING
from livery.engine.base import (
    AdapterLoadFailed,
    AdapterRef,
    Asker,
    Engine,
    EngineError,
    EngineInfo,
)
from livery.holds import Holds
from livery.lease import ANYONE, Caller, Lease, asker_of, common_task, counted_as, summed, task_of
from livery.meaning import Choice, Meanings, Meant, cards_for
from livery.proving import EngineProver, reference
from livery.refusals import AdapterNotFetched, AdapterNotReady, AdapterUnusable, UnknownModel
from livery.standing import REMEMBERED
from livery.superseding import Running, Superseded
from livery.sweeping import Sweeper
from livery.tenancy import Principal
from livery.under_way import UnderWay
from livery.vitals import Vitals
from livery.warming import Warmer
from livery_adapters.base_model import BaseModel
from livery_adapters.composition import format_composition, parse_composition
from livery_adapters.library import AdapterLibrary
from livery_adapters.names import MIN_DIGEST_PREFIX, account_of
from livery_adapters.refusal import AdapterRefused, Limits
from livery_adapters.registry import OPERATOR_TENANT, AdapterRecord, Card, NamedVersion, Registry, RegistryError
from livery_adapters.registry.briefs import Brief
from livery_adapters.registry.errors import RegistryUnavailable
from livery_adapters.store import BlobStore
from livery_adapters.text_side import TextSide

log = logging.getLogger("livery.adapters")

POLL_S = 0.5  # how soon a change made by another process is seen
PROVE_AGAIN_S = 30.0  # not each request tries a version that could not be proven
STATS_TIMEOUT_S = 2.0
FILES_GONE = "its files are gone from the data folder; add it again"
# What keeps files from coming that another try may not meet, and that is no fault of the adapter's.
PASSING = {
    "blobs_unavailable": "the object store that has them can't be read",
    "storage_full": "it has no room for them",
    "storage_failed": "it can't store them",
}

Chosen = tuple[Meant, Choice, float]  # a version by what was asked, and its weight in a sum


class ServedAdapters:
    """Adapters by name for one engine. Use from one event loop."""

    def __init__(
        self,
        engine: Engine,
        info: EngineInfo,
        base: BaseModel,
        registry: Registry,
        store: BlobStore,
        limits: Limits,
        *,
        keep_versions: int = 0,
        text: TextSide | None = None,
        vitals: Vitals | None = None,
        asker_of: Callable[[str], Asker] = asker_of,
    ) -> None:
        """`asker_of` says how the engine takes a tenant."""
        self.base = base
        self.registry = registry
        self._engine = engine
        self._under_way = UnderWay()
        self._running = Running()
        self._meanings = Meanings(registry, base.name)
        self.staging = self._meanings.staging
        self._seen = 0  # changes of the registry
        self._holds = Holds(store.hold, lambda digest: self._sweeper.idle(digest))
        self.files_of = self._holds.files_of
        self._proofs: dict[str, asyncio.Task[None]] = {}
        self._unproven: OrderedDict[str, tuple[float, str]] = OrderedDict()  # digest -> not again before, why
        self.vitals = vitals or Vitals()
        hold = partial(self._holds.keep, stored=False)
        prover = EngineProver(engine, info, hold, self._holds.let_go, asker_of)
        self.library = AdapterLibrary(registry, store, base, limits, prover, keep_versions=keep_versions, text=text)
        self._warmer = Warmer(engine, self.library, self.prefetch)
        self._sweeper = Sweeper(engine, self.library, self._holds, self._warmer.look)

    async def start(self) -> None:
        """Note where the registry stands and follow changes from then on; pinned adapters are loaded meanwhile."""
        self._seen, _ = await asyncio.to_thread(self.registry.changes, -1)
        self.vitals.run("registry-follower", self._follow())
        self.vitals.run("adapter-sweeper", self._sweeper.run())
        self.vitals.run("pinned-adapters", self._warmer.run())
        self._sweeper.changed(None)

    async def stop(self) -> None:
        """Stop following the registry; what is served stays served."""
        await self.vitals.stop("registry-follower", "adapter-sweeper", "pinned-adapters")
        proofs = list(self._proofs.values())
        for proof in proofs:
            proof.cancel()
        await asyncio.gather(*proofs, return_exceptions=True)

    # -- requests --------------------------------------------------------------------------------------

    async def lease(self, name: str, caller: Caller = ANYONE) -> Lease | None:
        """Hold what `name` stands for: an adapter, an alias, a pinned version or a composition.

        None where an alias leads to the base model. Raises UnknownModel, AdapterUnusable, AdapterNotReady, or
        AdapterRefused for a bad composition.
        """
        with self._running.beginning():
            return await self._lease(name, caller)

    async def _lease(self, name: str, caller: Caller) -> Lease | None:
        parts = parse_composition(name)
        if parts is not None:
            meant = [(await self._meanings.part(part, caller), weight) for part, weight in parts]
        else:
            only = await self._meanings.of(name, caller)
            if only is None:
                return None
            meant = [(only, 1.0)]
        before: Sequence[Chosen] = ()
        while True:
            chosen = [(one, await self._choose(one), weight) for one, weight in meant]
            try:
                if parts is None:
                    return self._hold_version(*chosen[0][:2], caller)
                return self._hold_composition(name, chosen, caller)
            except FileNotFoundError as error:  # another process replaced or deleted it a moment ago
                self._forget_names([one.full for one, _ in meant])
                if before:
                    raise await asyncio.to_thread(self._lost, name, before, chosen) from error
                before = chosen

    def _lost(self, name: str, before: Sequence[Chosen], now: Sequence[Chosen]) -> AdapterUnusable | AdapterNotReady:
        """Why what was chosen twice couldn't be held: the files of a version that is still meant are gone, or each time
        one was replaced meanwhile. Blocks.
        """
        for (_, stale, _), (meant, fresh, _) in zip(before, now, strict=True):
            facts = fresh.version.facts
            kept = facts.weightless or self.library.store.path(facts.weights).is_dir()
            if not kept and facts.digest == stale.version.facts.digest:
                return AdapterUnusable(meant.shown, FILES_GONE, own=meant.own)
        return AdapterNotReady(name)

    async def version(self, name: str, caller: Caller = ANYONE) -> NamedVersion:
        """The version a request for `name` would get now; of an alias the first target's. Raises UnknownModel."""
        with suppress(AdapterNotReady, AdapterUnusable):
            meant = await self._meanings.of(name, Caller("", replace(caller.principal, key="")))
            if meant is not None:
                return (await self._choose(meant)).version
        raise UnknownModel(name)

    # -- looking ---------------------------------------------------------------------------------------

    @property
    def under_way(self) -> UnderWay:
        """Requests of this process under way by adapter."""
        return self._under_way

    def state(self, record: AdapterRecord | Brief, under_way: UnderWay) -> str:
        """The record's state as this server sees it, by what is under way on all of it: what is on its way in or out
        shows only here.
        """
        if record.active is None and (record.name, record.owner) in self.staging:
            return "staging"
        if record.state == "retired" and under_way.of(record.name):
            return "draining"
        return record.state

    async def resident(self) -> frozenset[str]:
        """Names whose active version is in device memory; none while the engine doesn't answer."""
        with suppress(EngineError, TimeoutError):
            async with asyncio.timeout(STATS_TIMEOUT_S):
                stats = await self._engine.stats()
            return frozenset(await self.names_of(stats.resident_adapters))
        return frozenset()

    async def cards(self, principal: Principal = ANYONE.principal) -> list[Card]:
        """Every name that the caller may ask, aliases too, as it knows them and by that."""
        return await REPORTING.run(principal.tenant, partial(cards_for, self.registry, principal))

    async def names_of(self, digests: Iterable[str]) -> tuple[str, ...]:
        """The names that stand for converted digests the engine reports; those that no name stands for are left out."""
        weights = self.files_of(digests)
        return tuple(await asyncio.to_thread(self.registry.names_serving, weights)) if weights else ()

    # -- changes ---------------------------------------------------------------------------------------

    @asynccontextmanager
    async def changing(self, name: str, owner: str = OPERATOR_TENANT) -> AsyncIterator[None]:
        """Around every change of a name made here: when it ends, whoever asks next sees the change.

        Until its first version is there, those who may use `owner`'s names are told that it is on its way. Where the
        database didn't answer, what the name stood for goes on being served; a change made all the same is followed.
        """
        changed = [name]
        try:
            with self.staging.begin(name, owner):
                yield
        except RegistryUnavailable:
            changed.clear()
            raise
        finally:
            self._forget_names(changed)

    def renew(self, names: Collection[str]) -> None:
        """These were changed by another process: whoever asks next sees the change."""
        self._forget_names(names)

    def supersede(self, told: Superseded) -> None:
        """Have requests of this process end that run on versions of a name before the one it stands for."""
        self._running.supersede(told)

    async def prefetch(self, record: AdapterRecord, principal: Principal = ANYONE.principal) -> None:
        """Have the engine read the active version now, if it has weights. Raises AdapterUnusable, EngineError."""
        if record.active is None:
            raise AdapterUnusable(record.name, record.error or record.state)
        version = await self._proven(record.active, record.name)
        if version.facts.weightless:
            return
        ref = self._reference(version)
        try:
            self._holds.keep(ref)  # until it is read; and so the sweeper knows of it, and drops it with its last name
        except FileNotFoundError as error:
            raise AdapterUnusable(record.name, FILES_GONE) from error
        try:
            await self._engine.load_adapter(ref, Caller(principal=principal).asker)
        except AdapterLoadFailed as failed:
            raise AdapterUnusable(record.name, str(failed)) from failed
        finally:
            self._holds.let_go(ref.digest)

    async def settle(self) -> None:
        """Wait until what nobody uses any more has left the engine and the disk, and what is pinned was tried."""
        await self._sweeper.settle()
        await self._warmer.settle()

    # -- from a name to a version ------------------------------------------------------------------------

    async def _choose(self, meant: Meant) -> Choice:
        version, generation = await self._meanings.active(meant)
        if meant.pin is not None:
            version = await self._pinned(meant, meant.pin, version)
        if version.facts.base_digest != self.base.digest:
            reason = f"it was taken in for another base model than {self.base.name}; add it again"
            raise AdapterUnusable(meant.shown, reason)
        return Choice(await self._proven(version, meant.shown, own=meant.own), generation)

    async def _pinned(self, meant: Meant, wanted: str, active: NamedVersion) -> NamedVersion:
        """Raises UnknownModel: to who isn't its owner a name has no other version than the active one."""
        if not meant.own:
            if len(wanted) >= MIN_DIGEST_PREFIX and active.facts.digest.startswith(wanted):
                return active
            raise UnknownModel(meant.asked)
        if len(wanted) < MIN_DIGEST_PREFIX and not wanted.isdecimal():
            raise UnknownModel(meant.asked, f"a version is pinned by at least {MIN_DIGEST_PREFIX} digits of its digest")
        if active.facts.digest.startswith(wanted) and len(wanted) >= MIN_DIGEST_PREFIX:
            return active
        try:
            return await asyncio.to_thread(self.registry.version, meant.full, wanted)
        except (RegistryError, LookupError):
            reason = f"no version {wanted[:64]} is kept; the active one is {active.facts.digest[:12]}"
            raise UnknownModel(meant.asked, reason) from None

    async def _proven(self, version: NamedVersion, shown: str, *, own: bool = True) -> NamedVersion:
        """The version, its files here; one registered without a model is proven once, when it is first asked for."""
        await self._bring(version, shown, own=own)
        if version.state == "ready":
            return version
        digest = version.facts.digest
        until, reason = self._unproven.get(digest, (0.0, ""))
        if time.monotonic() < until:
            raise AdapterUnusable(shown, reason, own=own)
        if digest not in self._proofs:
            self._proofs[digest] = asyncio.create_task(self.library.prove(version))
            self._proofs[digest].add_done_callback(lambda _: self._proofs.pop(digest, None))
        try:
            await asyncio.shield(self._proofs[digest])
        except AdapterRefused as refused:
            self._unproven[digest] = time.monotonic() + PROVE_AGAIN_S, refused.message
            if len(self._unproven) > REMEMBERED:
                self._unproven.popitem(last=False)
            raise AdapterUnusable(shown, refused.message, own=own) from refused
        finally:
            self._forget_names([version.name])
        return replace(version, state="ready")

    async def _bring(self, version: NamedVersion, shown: str, *, own: bool) -> None:
        """Raises AdapterNotFetched, AdapterUnusable."""
        try:
            await self.library.bring(version.facts.weights, account_of(version.name))
        except AdapterRefused as refused:
            log.warning("%s", refused.message)
            if refused.code in PASSING:
                raise AdapterNotFetched(shown, PASSING[refused.code]) from refused
            raise AdapterUnusable(shown, refused.message, own=own) from refused

    # -- leases ----------------------------------------------------------------------------------------

    def _reference(self, version: NamedVersion) -> AdapterRef:
        return reference(self.library.candidate(version.facts))

    def _hold_version(self, meant: Meant, choice: Choice, caller: Caller) -> Lease:
        """Raises FileNotFoundError when its files are gone."""
        facts = choice.version.facts
        ref, task = None if facts.weightless else self._reference(choice.version), task_of(facts)
        lease = Lease(meant.shown, facts.digest, ref, facts, task, meant.full, own=meant.own)
        return self._hold(lease, [(meant, choice)], caller)

    def _hold_composition(self, name: str, chosen: Sequence[Chosen], caller: Caller) -> Lease:
        """Raises FileNotFoundError when the files of one are gone."""
        task = common_task([replace(choice.version, name=meant.shown) for meant, choice, _ in chosen])
        ref, composed = summed(name, [(self._reference(choice.version), weight) for _, choice, weight in chosen])
        in_full = format_composition([(meant.part, weight) for meant, _, weight in chosen])
        own = all(meant.own for meant, _, _ in chosen)
        counted = counted_as((meant.full, choice.version.facts.digest) for meant, choice, _ in chosen)
        lease = Lease(name, ref.digest, ref, None, task, in_full, own=own, counted=counted)
        return self._hold(lease, [(meant, choice) for meant, choice, _ in chosen], caller, composed=composed)

    def _hold(
        self, lease: Lease, chosen: Sequence[tuple[Meant, Choice]], caller: Caller, *, composed: bool = False
    ) -> Lease:
        """Hold what a lease is on, versions of these adapters. Raises FileNotFoundError."""
        ref = lease.ref
        if ref is not None:
            self._holds.keep(ref, composed=composed)
        account, names = caller.principal.account, [meant.full for meant, _ in chosen]
        plain = [(meant.full, choice) for meant, choice in chosen if meant.pin is None]
        asked = {name: (choice.version.facts.digest, choice.generation) for name, choice in plain}
        self._under_way.begin(account, names)
        self._running.begin(lease, account, asked)

        def release() -> None:
            if ref is not None:
                self._holds.let_go(ref.digest)
            self._under_way.end(account, names)
            self._running.end(lease, asked)

        return lease.until(release)

    # -- following changes -----------------------------------------------------------------------------

    def _forget_names(self, names: Collection[str] | None) -> None:
        self._meanings.forget(names)
        self._sweeper.changed(names)

    async def _follow(self) -> None:
        """See what other processes change."""
        while True:
            await asyncio.sleep(POLL_S)
            try:
                seen, names = await asyncio.to_thread(self.registry.changes, self._seen)
            except (RegistryError, SQLAlchemyError, OSError) as error:
                log.error("the registry can't be read (%s); what is known goes on being served", error)
                continue
            if seen != self._seen:
                self._seen = seen
                self._forget_names(names)
