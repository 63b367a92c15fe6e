"""What a server does with an adapter, without a server: the same library, store and registry over the tiny base."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from collections.abc import Awaitable
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from hostile.base import NAME, Weights, base, good
from hostile.case import Case, write
from livery_adapters.effect import AdapterEffect
from livery_adapters.formats import convert
from livery_adapters.library import AdapterLibrary, Intake, from_directory
from livery_adapters.manifest import read_manifest
from livery_adapters.measure import BaseNorms, measure
from livery_adapters.prover import Candidate
from livery_adapters.refusal import DEFAULT_LIMITS, AdapterRefused
from livery_adapters.registry import Registry, RegistryError
from livery_adapters.store import BlobStore

GOOD = "good"
BAD = "bad"
INTAKE = Intake("api")


class ConvertingProver:
    """Converts a version and measures it, as an engine does before its first run."""

    def __init__(self) -> None:
        self._weights = Weights()
        self._norms = BaseNorms(self._weights)

    async def prove(self, candidate: Candidate) -> AdapterEffect:
        manifest = read_manifest(candidate.path, digest=candidate.weights)
        adapter = convert(candidate.path, manifest, self._weights, candidate.approximate)
        return measure(adapter, self._weights, self._norms)

    async def stored(self, candidate: Candidate) -> None:
        pass

    async def forget(self, digest: str) -> None:
        return None


@dataclass(frozen=True)
class Outcome:
    """How one case was taken: refused with this code and message, or (both empty) accepted."""

    case: Case
    code: str = ""
    message: str = ""
    left_behind: tuple[str, ...] = ()
    skipped: str = ""

    @property
    def as_expected(self) -> bool:
        return bool(self.skipped) or (
            self.code == self.case.code and self.case.says in self.message and not self.left_behind
        )


@dataclass
class Shop:
    """A library with one good adapter in it; use it from one event loop."""

    root: Path
    library: AdapterLibrary = field(init=False)
    good_digest: str = field(init=False)

    @classmethod
    async def opened(cls, root: Path) -> Shop:
        shop = cls(root)
        store = BlobStore(root / "data")
        registry = Registry.open(root / "livery.db", frozenset({NAME}))
        shop.library = AdapterLibrary(registry, store, base(), DEFAULT_LIMITS, ConvertingProver())
        write(root / GOOD, *good())
        record = await shop.library.add(GOOD, from_directory(root / GOOD, [root]), INTAKE)
        assert record.active is not None
        shop.good_digest = record.active.facts.weights
        return shop

    async def take(self, case: Case) -> Outcome:
        """Check the case and add it; what is left of it is thrown away."""
        folder = self.root / "case"
        folder.mkdir()
        try:
            return await self._take(case, folder / "allowed")
        finally:
            shutil.rmtree(folder)

    async def _take(self, case: Case, allowed: Path) -> Outcome:
        allowed.mkdir()
        directory = allowed / "adapter"
        reason = cannot_build(case, directory)
        if reason:
            return Outcome(case, skipped=reason)
        checked = await refusal(self.library.check(from_directory(directory, [allowed])))
        added = await refusal(self.library.add(BAD, from_directory(directory, [allowed]), INTAKE))
        assert checked == added, f"check says {checked} and add says {added}"
        left = tuple(self._left_behind(accepted=not added[0]))
        if not added[0]:
            await self.library.retire(BAD)
            await self.library.collect_garbage()
        return Outcome(case, *added, left)

    def _left_behind(self, *, accepted: bool) -> list[str]:
        """What is in the store that shouldn't be there."""
        found = [f"incoming/{path.name}" for path in (self.library.store.root / "incoming").iterdir()]
        if not accepted:
            found += [f"blob {digest[:12]}" for digest in self.library.store.digests() if digest != self.good_digest]
            page = self.library.registry.page("", 100)
            found += [f"name {record.name}" for record in page.records if record.name != GOOD]
        return found

    async def check_good(self) -> None:
        """The good neighbour is still whole and can still be taken."""
        assert self.library.store.verify(self.good_digest)
        await self.library.check(from_directory(self.library.store.path(self.good_digest), [self.root]))


def cannot_build(case: Case, directory: Path) -> str:
    """Build the case, or say why this machine can't have it."""
    try:
        case.build(directory)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EACCES, errno.ENOTSUP):
            return f"this machine doesn't let us build it: {error.strerror}"
        raise
    return "root may read every file" if case.code == "unreadable" and os.geteuid() == 0 else ""


async def refusal(attempt: Awaitable[object]) -> tuple[str, str]:
    """Code and message of what is refused, both empty for what isn't. Anything else that is raised goes through."""
    try:
        await attempt
    except AdapterRefused as refused:
        return refused.code, refused.message
    except RegistryError as error:
        return error.code, str(error)
    return "", ""


def take_all(cases: tuple[Case, ...], root: Path) -> list[Outcome]:
    """Every case, one after the other, in one shop whose good adapter is looked at after each group."""

    async def run() -> list[Outcome]:
        shop = await Shop.opened(root)
        outcomes = []
        for _, group in groupby(cases, lambda case: case.group):
            outcomes += [await shop.take(case) for case in group]
            await shop.check_good()
        return outcomes

    return asyncio.run(run())
