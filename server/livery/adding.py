"""How an adapter is to be taken in, as whoever brings it says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from livery.tenancy import OPERATOR
from livery_adapters.laps import Laps
from livery_adapters.library import Intake
from livery_adapters.profile import Profile
from livery_adapters.registry import NO_QUOTA, Quota, VersionFacts

Running = Literal["finish", "abort"]
"""What becomes of requests that run on the version before: they finish on it, or end with what they have."""


@dataclass(frozen=True, slots=True)
class AddOptions:
    """How an adapter is to be taken in; see Intake. `profile` replaces the profile.yaml that comes with it."""

    pinned: bool | None = None
    expected_generation: int | None = None
    approximate: int = 0
    activate: bool = True
    profile: Profile | None = None
    owner: str | None = None  # None: whom the name says
    quota: Quota = NO_QUOTA
    account: str | None = None  # whose requests may be told to end, None: everybody's
    payer: str = OPERATOR.tenant  # the tenant that asks for it, on whose account it is on its way
    over_base: bool = True  # may it be a profile over the base, for all who may ask for the name
    keep: int = 0
    running: Running = "finish"
    follows: VersionFacts | None = None
    laps: Laps = field(default_factory=Laps, compare=False)

    def intake(self, source: str, owner: str, parents: Sequence[tuple[str, float]]) -> Intake:
        """For the library; `owner` is whom the name says that it belongs to."""
        return Intake(
            source,
            approximate=self.approximate,
            profile=self.profile,
            parents=tuple(parents),
            pinned=self.pinned,
            expected_generation=self.expected_generation,
            activate=self.activate,
            owner=self.owner or owner,
            quota=self.quota,
            over_base=self.over_base,
            keep=self.keep,
            follows=self.follows,
            laps=self.laps,
        )
