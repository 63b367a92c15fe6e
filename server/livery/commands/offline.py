"""Managing adapters in a data folder without a server: the server's own code over the same registry and files.

A server that runs on the same folder sees each change within a second. Imports torch only to learn the shapes of
a base that no server has written down yet.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from livery.adapter_text import AdapterText
from livery.adapter_views import Json, limits_json, report_json
from livery.adding import AddOptions
from livery.commands.asking import CommandFailed
from livery.commands.backends import EVERYWHERE, is_remote, local_directory, pieces
from livery.commands.held import PLAINLY, Held
from livery.commands.shown import stage
from livery.data_folder import DataFolder, KnownBase
from livery.foreign_templates import TemplateWorkers
from livery.management import AdapterManagement
from livery.models import ModelNotFound, base_digest, resolve_model
from livery.pushing import Weights, pushed
from livery.running.parts import without_password
from livery.tenancy import OPERATOR, Principal, TenantStore, scope
from livery.text import Tokenizer
from livery.tokenizer_files import TokenizerRefused
from livery_adapters.base_model import BaseModel, BaseShapes
from livery_adapters.fetching import SourcePolicy
from livery_adapters.library import AdapterLibrary, Fill, from_directory
from livery_adapters.profile import PROFILE_NAME, Profile
from livery_adapters.refusal import DEFAULT_LIMITS, Limits
from livery_adapters.registry import Registry
from livery_adapters.shared_blobs import SharedBlobs
from livery_adapters.store import BlobStore
from livery_adapters.types.base import vocabulary_of

if TYPE_CHECKING:
    from livery.commands.proof import OfflineProver

ALL_SOURCES = ("hf://", "s3://", "gs://", "az://", "file:///")
NOTHING = BaseModel("", "", BaseShapes({}))  # for verbs that don't look at the base


@dataclass(frozen=True, slots=True)
class Place:
    """A data folder as a command names it: --data, --registry and --model."""

    data: Path
    registry: str | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Need:
    """What a verb can't do without. `base`: the base model. `creates`: it may be the first in an empty folder.

    `proves`: versions are tried on the model in this process before they are recorded; `held` says how it holds it.
    """

    base: bool = False
    creates: bool = False
    proves: bool = False
    held: Held = PLAINLY


class LocalBackend(AdapterManagement):
    """The server's management, with the operator's own rights on sources. Made by `open_local`.

    `prover` is set where versions are tried in this process.
    """

    def __init__(
        self,
        library: AdapterLibrary,
        policy: SourcePolicy,
        prover: OfflineProver | None = None,
        is_tenant: Callable[[str], bool] = lambda _: False,
    ) -> None:
        super().__init__(library, policy, is_tenant=is_tenant)
        self.prover = prover

    async def inspect(self, source: str, approximate: int) -> Json:
        """The coverage report of a directory, or of what a URL holds."""
        if is_remote(source):
            return await self.check(source, approximate=approximate)
        report = await self.library.check(directory_fill(source), approximate=approximate)
        return report_json(report)

    async def limits(self) -> Json:
        """What was allowed when the folder was opened."""
        return limits_json(self.library.limits)

    async def add(self, name: str, source: str, options: AddOptions) -> Json:
        """Take in a directory, or what a URL holds."""
        if is_remote(source):
            return await self.put(name, source, options)
        return await pushed(self, name, directory_fill(source), options, shown=name)

    async def push(self, name: str, file: Path, options: AddOptions) -> Json:
        """Take in new weights for the configuration and profile of the active version."""
        with file.open("rb") as stream:
            weights = Weights(pieces(stream), os.fstat(stream.fileno()).st_size)
            return await pushed(self, name, weights, options, shown=name)

    async def prefetch(
        self, name: str, *, shown: str | None = None, principal: Principal = OPERATOR, owner: str | None = None
    ) -> Json:
        """Nobody has a memory to read it into. Raises CommandFailed."""
        raise CommandFailed(
            f"prefetch {shown or name} asks a running server to read it, and --data asks none; use --url, or `pin`, "
            "which has it loaded whenever a server starts"
        )


class OfflineText:
    """The text of a base by its name, read when something is to be compared with it."""

    def __init__(self, known: KnownBase) -> None:
        self._known = known
        self._text: AdapterText | None = None

    def close(self) -> None:
        if self._text is not None:
            self._text.close()

    def look(self, beside: Mapping[str, bytes]) -> Mapping[str, object]:
        """See livery_adapters.text_side.TextSide; where the base isn't to be found, nothing is compared."""
        if not beside.keys() - {PROFILE_NAME}:
            return {}
        try:
            return self._opened().look(beside)
        except (ModelNotFound, TokenizerRefused, OSError):
            return {}

    async def settle(self, profile: Profile, found: Mapping[str, object], added_tokens: int = 0) -> Profile:
        """See livery_adapters.text_side.TextSide."""
        if profile.chat_template is None and profile.tokenizer == "base" and not profile.added_tokens:
            return profile
        return await (await asyncio.to_thread(self._opened)).settle(profile, found, added_tokens)

    def _opened(self) -> AdapterText:
        """Raises ModelNotFound, TokenizerRefused."""
        if self._text is None:
            tokenizer = Tokenizer.from_directory(resolve_model(self._known.model).path)
            self._text = AdapterText(tokenizer, vocabulary_of(self._known.shapes) or 0, TemplateWorkers())
        return self._text


def directory_fill(source: str) -> Fill:
    """Takes in a directory of the user's own, links followed. Raises CommandFailed."""
    return from_directory(local_directory(source), [EVERYWHERE])


@asynccontextmanager
async def open_local(
    place: Place,
    need: Need = Need(),
    limits: Limits = DEFAULT_LIMITS,
) -> AsyncIterator[LocalBackend]:
    """Open a data folder.

    Raises CommandFailed, DataFolderUnusable, RegistryError, ModelNotFound, ModelRefused, AdapterRefused (its files are
    another registry's).
    """
    folder = DataFolder(place.data)
    known = await asyncio.to_thread(prepare, folder, place, need)
    url = place.registry or folder.registry_url()
    reserved = frozenset({known.name}) if known else frozenset()

    def is_tenant(name: str) -> bool:
        return name in _tenants(folder, place.registry)

    registry = await asyncio.to_thread(Registry.open, url, reserved, lambda name: scope.owner_of(name, is_tenant))
    text: OfflineText | None = None
    try:
        where = await asyncio.to_thread(registry.blob_store) or (known.blob_store if known else "")
        shared = SharedBlobs(where) if where else None
        store = await asyncio.to_thread(BlobStore, folder.adapters, limits, shared)
        base = known.as_base() if known else NOTHING
        prover = await asyncio.to_thread(_prover, known, need.held) if known and need.proves else None
        text = OfflineText(known) if known else None
        library = AdapterLibrary(registry, store, base, limits, prover, text=text)
        await asyncio.to_thread(store.check_owner)
        if need.creates and place.registry is not None:
            await asyncio.to_thread(_check_files_here, registry, store)
        tenants = await asyncio.to_thread(_tenants, folder, place.registry)
        yield LocalBackend(library, SourcePolicy(ALL_SOURCES), prover, tenants.__contains__)
    finally:
        if text:
            text.close()
        await asyncio.to_thread(registry.close)


def _check_files_here(registry: Registry, store: BlobStore) -> None:
    """Raises CommandFailed where servers of the registry wouldn't find what is added to this folder."""
    if store.shared is not None:
        return
    listed = registry.weights_in_use()
    if listed and listed.isdisjoint(store.digests()):
        raise CommandFailed(
            f"{store.root} has none of the files of the {len(listed)} versions that the registry has, so no server "
            "would find there what is added: give the servers' own folder with --data, or ask one of them with --url"
        )


def _tenants(folder: DataFolder, registry: str | None) -> frozenset[str]:
    """Whose the names are that begin with a tenant's. Raises RegistryError."""
    if registry is None and not folder.tenants.exists():
        return frozenset()
    store = TenantStore.open(folder.tenants_url(registry))
    try:
        return frozenset(tenant.name for tenant in store.tenants())
    finally:
        store.close()


def prepare(folder: DataFolder, place: Place, need: Need) -> KnownBase | None:
    """The base of a folder that is ready to be opened; None where it isn't known and not needed.

    Raises CommandFailed, DataFolderUnusable, ModelNotFound, ModelRefused.
    """
    if not need.creates and not folder.root.is_dir():
        raise CommandFailed(f"--data {folder.root} is not a folder; give the one that `livery serve --data` has")
    known = folder.base()
    if known is None and need.base and place.model is None:
        raise CommandFailed(
            f"no server has run on {folder.root} yet, so its base model isn't known; name it with --model"
        )
    if need.creates:
        folder.make()
    if place.registry is None:
        folder.check_here("adapters", folder.database, creates=need.creates)
    if place.model is not None:
        return _named(folder, place.model, known, place.registry)
    return known


def _named(folder: DataFolder, model: str, known: KnownBase | None, registry: str | None) -> KnownBase:
    """The base given with --model, which must be the folder's own; a folder without one has this one from now on."""
    resolved = resolve_model(model)
    digest = base_digest(resolved.path)
    if known is not None and known.digest == digest:
        return msgspec.structs.replace(known, model=model)
    if known is not None:
        raise CommandFailed(
            f"{folder.root} belongs to {known.name} ({known.digest[:12]}) and --model {model} is another base "
            f"({digest[:12]}); leave --model out, or use another --data"
        )
    from livery.engine.model import base_shapes  # needs torch

    found = KnownBase(resolved.name, digest, model, base_shapes(str(resolved.path)), without_password(registry))
    folder.write_base(found)
    return found


def _prover(known: KnownBase, held: Held) -> OfflineProver:
    from livery.commands.proof import OfflineProver  # needs torch

    resolved = resolve_model(known.model)
    if base_digest(resolved.path) != known.digest:
        raise CommandFailed(
            f"{known.model} is no longer the model this folder's adapters are for ({known.digest[:12]}); name that one "
            "with --model"
        )
    return OfflineProver(resolved.path, known.digest, stage, held)
