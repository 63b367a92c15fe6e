"""What `AdapterLibrary.add` is given: who brings an adapter, how it is to be taken, and what writes its files."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from livery_adapters.fetching import copy_directory
from livery_adapters.incoming import Incoming
from livery_adapters.laps import Laps
from livery_adapters.profile import Profile
from livery_adapters.registry import NO_QUOTA, OPERATOR_TENANT, Quota, VersionFacts
from livery_adapters.tensor_file import CONFIG_NAME
from livery_adapters.weightless import BASE_SOURCE, CONFIG

Fill = Callable[[Incoming], Awaitable[str]]
"""Writes an adapter's two files into an Incoming and returns where they came from, in words for people."""


@dataclass(frozen=True, slots=True)
class Intake:
    """Who brings an adapter, and how it is to be taken. `profile` None: as the profile.yaml beside it says.

    `approximate` is the rank to factorise a type to that has no exact form; `expected_generation` makes it a
    compare-and-set (0: the name must be new). `owner` is the tenant whose name it is, `quota` what that one may keep.
    `over_base`: whether it may be a profile over the base, without weights.
    `keep`: of the name's history only so many of the newest versions stay, 0 for as many as the library keeps.
    `follows`: the active version that this one takes its profile from where none is given; if it has another one by the
    time the version is recorded, the intake is refused. `follower`: whose folder brings it. `laps` are told how long
    each stage took.
    """

    source: str
    approximate: int = 0
    profile: Profile | None = None
    parents: tuple[tuple[str, float], ...] = ()
    pinned: bool | None = None
    expected_generation: int | None = None
    activate: bool = True
    owner: str = OPERATOR_TENANT
    quota: Quota = NO_QUOTA
    over_base: bool = True
    keep: int = 0
    follows: VersionFacts | None = None
    follower: str | None = None
    laps: Laps = field(default_factory=Laps, compare=False)

    @property
    def inherits(self) -> VersionFacts | None:
        """The version whose profile this one gets."""
        return self.follows if self.profile is None else None


async def from_nothing(incoming: Incoming) -> str:
    """Fills in an adapter without weights: what it is comes with its profile."""
    await asyncio.to_thread(incoming.write, CONFIG_NAME, CONFIG)
    return BASE_SOURCE


def from_directory(directory: Path, roots: Sequence[Path], origin: str | None = None) -> Fill:
    """Copies the two files of a directory; other files there are ignored. Links may lead to below `roots` only.

    `origin` is what is remembered of where they came from, the directory if None.
    """

    async def fill(incoming: Incoming) -> str:
        await asyncio.to_thread(copy_directory, directory, incoming, roots)
        return origin or str(directory)

    return fill
