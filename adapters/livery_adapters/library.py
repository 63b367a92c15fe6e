"""The stock of adapters: what comes in is checked, proven, stored and recorded, in that order. One way for all.

The API, the command line, the folder and the merge all take adapters in here:

    library = AdapterLibrary(registry, store, base, limits, prover)
    record = await library.add("pirate", from_directory(Path("pirate")), Intake("api"))   # AdapterRefused says why not
    report = await library.check(from_directory(Path("pirate")))                          # the same, nothing kept
    await library.retire("pirate")
    await library.collect_garbage()

Whatever was acknowledged is in the registry, whatever was not has left no trace but files that the next
`collect_garbage` removes. Nothing is replaced until its successor has been proven. Knows no engine (a `Prover`
does) and no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from livery_adapters.base_model import BaseModel
from livery_adapters.bringing import Bringing
from livery_adapters.coverage import CoverageReport
from livery_adapters.examine import NOT_YET, CheckedFiles, check_base, check_headers, check_labels, check_numbers
from livery_adapters.identity import converted_digest, version_digest
from livery_adapters.in_threads import running, to_its_end
from livery_adapters.incoming import Incoming
from livery_adapters.intake import Fill, Intake, from_directory, from_nothing
from livery_adapters.names import account_of
from livery_adapters.profile import Profile, recorded_profile
from livery_adapters.prover import Candidate, NoProver, Prover
from livery_adapters.refusal import AdapterRefused, Limits
from livery_adapters.registry import (
    NO_QUOTA,
    OPERATOR_TENANT,
    AdapterRecord,
    GenerationMismatch,
    NamedVersion,
    Quota,
    Registry,
    VersionFacts,
    VersionState,
    reader_of,
)
from livery_adapters.store import BlobStore
from livery_adapters.text_side import NoText, TextSide, profile_beside
from livery_adapters.weightless import NONE

__all__ = ["AdapterLibrary", "Fill", "Intake", "from_directory", "from_nothing"]

logger = logging.getLogger(__name__)


class AdapterLibrary:
    """One registry and one blob store, for one base model. Use from one event loop."""

    def __init__(
        self,
        registry: Registry,
        store: BlobStore,
        base: BaseModel,
        limits: Limits,
        prover: Prover | None = None,
        *,
        keep_versions: int = 0,
        text: TextSide | None = None,
    ) -> None:
        """Without a prover, versions are registered unproven. `keep_versions`: history kept per name, 0 for all."""
        self._text: TextSide = text or NoText()
        self.registry = registry
        self.store = store
        self.base = base
        self.limits = limits
        self._prover: Prover = prover or NoProver()
        self._proves = prover is not None
        self._keep_versions = keep_versions
        self._bringing = Bringing(store)
        store.belong_to(registry.identity, registry.weights_in_use)

    # -- in ------------------------------------------------------------------------------------------

    async def check(self, fill: Fill, *, approximate: int = 0) -> CoverageReport:
        """Every check that `add` makes, keeping nothing. Raises AdapterRefused."""
        async with self._incoming() as incoming:
            await fill(incoming)
            headers, weights = await self._complete(incoming, approximate)
            found = await asyncio.to_thread(self._text.look, incoming.beside)
            profile = await asyncio.to_thread(profile_beside, incoming.beside, None)
            await self._text.settle(profile, found, headers.coverage.added_tokens)
            async with self._examined(incoming, headers, weights, approximate, OPERATOR_TENANT) as files:
                return replace(files.coverage, beside=found)

    async def add(self, name: str, fill: Fill, intake: Intake) -> AdapterRecord:
        """Take a version in for `name` and, unless told otherwise, make it the active one.

        Idempotent by content. Of two at once for one name the one recorded last is active, as long as neither
        expects a generation. Without a prover, a version that was never run doesn't replace one that was: it waits
        to be activated. Raises AdapterRefused, and then nothing was stored and what was served before still is;
        RegistryError when the name is somebody else's or its generation isn't the expected one.
        """
        record, _ = await self.add_version(name, fill, intake)
        return record

    async def add_version(self, name: str, fill: Fill, intake: Intake) -> tuple[AdapterRecord, str]:
        """As `add`; also the digest of the version that was taken in, active or not."""
        await asyncio.to_thread(
            self.registry.check_put,
            name,
            intake.source,
            intake.expected_generation,
            owner=intake.owner,
            quota=intake.quota,
        )
        self.store.check_shared(await asyncio.to_thread(self.registry.blob_store))
        async with self._incoming() as incoming:
            origin = await fill(incoming)
            intake.laps.lap("receive")
            async with running(incoming.sync) as synced:
                headers, weights = await self._complete(incoming, intake.approximate)
                if headers.manifest.peft_type == NONE and not intake.over_base:
                    raise AdapterRefused(
                        "source_not_allowed",
                        f"{name!r} would be {self.base.name} itself under a profile, and this key may not ask for "
                        "that; send an adapter with weights, or have the operator allow the key `base`",
                    )
                found, profile = await self._settled(incoming, intake, headers.coverage.added_tokens)
                check_labels(profile, headers.coverage.num_labels)
                intake.laps.lap("check")
                known = await self._known(weights, intake.approximate, profile, found)
                if known is not None:
                    return await self._record(name, incoming, known, origin, intake, "ready"), known.digest
                async with self._examined(incoming, headers, weights, intake.approximate, intake.owner) as files:
                    report = replace(files.coverage, beside=found)
                    facts = self._new(weights, intake, profile, replace(files, coverage=report))
                    state: VersionState = "ready" if self._proves or facts.weightless else "registered"
                    intake.laps.lap("prove")
                    await asyncio.shield(synced)
                    intake.laps.lap("sync")
                    record = await self._record(name, incoming, facts, origin, intake, state)
                    if not facts.weightless:
                        await self._prover.stored(self.candidate(facts, intake.owner))
                    return record, facts.digest

    async def bring(self, weights: str, account: str = OPERATOR_TENANT) -> None:
        """Have a version's files in the data folder where servers share an object store. Accounts take turns.

        Raises AdapterRefused: blobs_unavailable, blob_missing, storage_full, storage_failed.
        """
        await self._bringing.bring(weights, account)

    async def prove(self, version: NamedVersion) -> None:
        """Prove a version that was registered without a model. Raises AdapterRefused; the registry keeps why."""
        facts = version.facts
        await self.bring(facts.weights, account_of(version.name))
        try:
            check_base(facts.digest, facts.base_digest, self.base)
            record = await asyncio.to_thread(self.registry.find, version.name)
            candidate = self.candidate(facts, record.owner if record else OPERATOR_TENANT)
            await self._prover.prove(candidate)
            await self._prover.forget(candidate.digest)
        except AdapterRefused as refused:
            await asyncio.to_thread(
                self.registry.fail, version.name, code=refused.code, message=refused.message, source="", origin=""
            )
            raise
        await asyncio.to_thread(self.registry.mark_ready, version.name, facts.digest)

    def candidate(self, facts: VersionFacts, owner: str = OPERATOR_TENANT) -> Candidate:
        """A stored version as engines are asked for it."""
        return Candidate(
            converted_digest(facts.weights, facts.approximate),
            facts.weights,
            self.store.path(facts.weights),
            facts.approximate,
            tuple(facts.invocation),
            verified=False,
            added_tokens=facts.added_tokens,
            owner=owner,
        )

    # -- change, of a name that is `owner`'s (None: anybody's) -------------------------------------

    async def activate(
        self, name: str, version: str, expected_generation: int | None = None, *, owner: str | None = None
    ) -> AdapterRecord:
        """Serve another version of the name's history, by number or digest prefix.

        One that was never run is proven first. Raises RegistryError, AdapterRefused.
        """
        chosen = await asyncio.to_thread(self.registry.version, name, version, owner=owner)
        check_base(chosen.facts.digest, chosen.facts.base_digest, self.base)
        if chosen.state != "ready" and self._proves:
            await self.prove(chosen)
        return await asyncio.to_thread(
            self.registry.activate, name, chosen.facts.digest, expected_generation, owner=owner
        )

    async def rollback(
        self, name: str, expected_generation: int | None = None, *, owner: str | None = None
    ) -> AdapterRecord:
        """Serve what was active before, passing over what was taken in for another base model.

        One that was never run is proven first. Raises RegistryError when there is nothing before, AdapterRefused.
        """
        base = self.base.digest or None  # a stock that was opened without its base can't compare
        target = await asyncio.to_thread(self.registry.rollback_target, name, base, owner=owner)
        if target.state != "ready" and self._proves:
            await self.prove(target)
        return await asyncio.to_thread(self.registry.rollback, name, expected_generation, base, owner=owner)

    async def set_profile(
        self,
        name: str,
        profile: Profile,
        expected_generation: int | None = None,
        quota: Quota = NO_QUOTA,
        *,
        owner: str | None = None,
    ) -> AdapterRecord:
        """Serve the active version's weights with another profile. Raises RegistryError, AdapterRefused."""
        for tries_left in (2, 1, 0):
            record = await asyncio.to_thread(self.registry.get, name, reader=reader_of(owner))
            settled, active = profile, record.active
            if active is not None:
                check_labels(profile, active.facts.num_labels)
                settled = await self._text.settle(profile, active.facts.beside, active.facts.added_tokens)
            # What was settled is for this version and no other.
            expected = record.generation if expected_generation is None else expected_generation
            put = partial(self.registry.set_profile, name, settled.to_json(), expected, quota, owner=owner)
            try:
                return await asyncio.to_thread(put)
            except GenerationMismatch:
                if expected_generation is not None or not tries_left:
                    raise
        raise AssertionError

    async def retire(
        self, name: str, expected_generation: int | None = None, *, owner: str | None = None
    ) -> AdapterRecord:
        """Take the name out of service; its history goes with it. Raises RegistryError."""
        return await asyncio.to_thread(self.registry.retire, name, expected_generation, owner=owner)

    async def export(self, weights: str, out: Path) -> None:
        """Copy a stored version's two files into a directory. Raises FileExistsError unless it is new or empty."""
        await self.bring(weights)
        await asyncio.to_thread(self.store.export, weights, out)

    async def collect_garbage(self) -> list[str]:
        """Delete stored files that no name's history refers to and no process holds (`BlobStore.hold`).

        Raises AdapterRefused (blobs_of_another), StoreBusy, RegistryError, OSError.
        """
        return await asyncio.to_thread(self.store.collect_garbage, self.registry.weights_in_use, 0.0)

    async def collect_shared_garbage(self) -> list[str]:
        """Delete from the shared object store what nothing has referred to for a day. Raises AdapterRefused."""
        if self.store.shared is None:
            return []
        return await asyncio.to_thread(self.store.shared.collect_garbage, self.registry.weights_in_use)

    # -- inside --------------------------------------------------------------------------------------

    async def _settled(
        self, incoming: Incoming, intake: Intake, added_tokens: int
    ) -> tuple[Mapping[str, object], Profile]:
        """What lies beside an adapter's files, and its profile: those of the version it follows, or its own."""
        follows = intake.follows
        if follows is None:
            found = await asyncio.to_thread(self._text.look, incoming.beside)
            profile = await asyncio.to_thread(profile_beside, incoming.beside, intake.profile)
        else:
            found, profile = follows.beside, intake.profile or recorded_profile(follows.profile)
            if intake.inherits is not None and follows.added_tokens == added_tokens:
                return found, profile  # it was settled with that version
        return found, await self._text.settle(profile, found, added_tokens)

    async def _known(
        self, weights: str, approximate: int, profile: Profile, found: Mapping[str, object]
    ) -> VersionFacts | None:
        """A version of what was run on this base before, whichever name and profile it had: nothing is proven anew."""
        known = await asyncio.to_thread(self.registry.proven_facts, weights, approximate, self.base.digest)
        if known is None or not await asyncio.to_thread(self._held, weights):
            return None
        given = profile.to_json()
        digest = version_digest(weights, approximate, given)
        created = known.created if known.digest == digest else time.time()
        coverage = {**known.coverage, "beside": found}
        return replace(known, digest=digest, profile=given, coverage=coverage, created=created)

    def _new(self, weights: str, intake: Intake, profile: Profile, files: CheckedFiles) -> VersionFacts:
        manifest, given = files.manifest, profile.to_json()
        return VersionFacts(
            digest=version_digest(weights, intake.approximate, given),
            weights=weights,
            approximate=intake.approximate,
            peft_type=manifest.peft_type,
            base_digest=self.base.digest,
            nbytes=manifest.nbytes,
            coverage=files.coverage.to_dict(),
            profile=given,
            parents=intake.parents,
            invocation=manifest.invocation,
            created=time.time(),
        )

    async def _record(
        self, name: str, incoming: Incoming, facts: VersionFacts, origin: str, intake: Intake, state: VersionState
    ) -> AdapterRecord:
        """The files first, then the row that refers to them: garbage isn't collected in between."""

        def publish_and_put() -> AdapterRecord:
            incoming.publish()
            return self.registry.put(
                name,
                facts,
                source=intake.source,
                origin=origin,
                state=state,
                pinned=intake.pinned,
                expected_generation=intake.expected_generation,
                activate=intake.activate,
                keep=self._keep_versions,
                keep_here=intake.keep,
                owner=intake.owner,
                quota=intake.quota,
                inherits=intake.inherits,
                follower=intake.follower,
            )

        record = await to_its_end(publish_and_put)
        intake.laps.lap("record")
        return record

    def _held(self, weights: str) -> bool:
        return self.store.path(weights).is_dir()

    async def _complete(self, incoming: Incoming, approximate: int) -> tuple[CheckedFiles, str]:
        """What the headers of complete files say, and their digest, which takes longer. Raises AdapterRefused."""
        await asyncio.to_thread(incoming.end)
        async with running(incoming.seal) as sealing:
            headers = await asyncio.to_thread(
                check_headers, incoming.path, self.base, self.limits, NOT_YET, approximate
            )
            weights = await asyncio.shield(sealing)
        return headers.of(weights), weights

    @asynccontextmanager
    async def _examined(
        self, incoming: Incoming, headers: CheckedFiles, weights: str, approximate: int, owner: str
    ) -> AsyncIterator[CheckedFiles]:
        """Everything else that is checked; the prover keeps it until the context ends. Raises AdapterRefused.

        Whoever measures an adapter sees a number that is none: here they are looked at only without such a prover, and
        to say more of what it refused.
        """
        if headers.manifest.peft_type == NONE:  # nothing to convert or to run
            yield headers
            return
        converted, invocation = converted_digest(weights, approximate), headers.manifest.invocation
        added = headers.coverage.added_tokens
        candidate = Candidate(
            converted, weights, incoming.path, approximate, invocation, verified=True, added_tokens=added, owner=owner
        )
        try:
            effect = await self._prover.prove(candidate)
        except AdapterRefused:
            await asyncio.to_thread(check_numbers, incoming.path, headers.manifest)  # the plainer reason, if it is one
            raise
        try:
            if effect is None:
                await asyncio.to_thread(check_numbers, incoming.path, headers.manifest)
                yield headers
                return
            if effect.changes_nothing:
                raise AdapterRefused(
                    "zero_effect",
                    "the adapter changes nothing: every one of its modules adds exactly zero. Its training never "
                    "moved the weights, or an initial checkpoint was saved; use a trained one",
                )
            yield CheckedFiles(headers.manifest, headers.coverage.with_effect(effect))
        finally:
            await self._prover.forget(candidate.digest)

    @asynccontextmanager
    async def _incoming(self) -> AsyncIterator[Incoming]:
        """An intake of the store whose disk work happens in worker threads."""
        intake = self.store.incoming()
        try:
            yield await to_its_end(intake.__enter__)
        finally:
            await to_its_end(lambda: intake.__exit__(None, None, None))
