"""From the name that a caller asks for to the adapter it means, among those that it may ask.

What isn't there, what is another tenant's and what a key may not ask look the same, and are looked for alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from livery.lease import Caller, target_of
from livery.refusals import AdapterNotReady, AdapterUnusable, UnknownModel
from livery.staging import Staging
from livery.standing import KnownNames, Standing
from livery.tenancy import Principal, scope
from livery_adapters.registry import Alias, Card, NamedVersion, Registry


@dataclass(frozen=True, slots=True)
class Meant:
    """The adapter that somebody means: its name in full and as they know it. `asked` is all they wrote, `pin` the
    version they want, None for the active one; `own` says that it is theirs to know everything about.
    """

    asked: str
    shown: str
    candidate: scope.Candidate
    own: bool
    pin: str | None = None

    @property
    def full(self) -> str:
        return self.candidate.full

    @property
    def part(self) -> str:
        """As part of a composition."""
        return f"{self.full}@{self.pin}" if self.pin else self.full


class Choice(NamedTuple):
    """A version that a request gets, and the generation of its name by which that was decided."""

    version: NamedVersion
    generation: int


class Meanings:
    """Names as callers mean them, remembered. `base` is the base model's name. Use from one event loop."""

    def __init__(self, registry: Registry, base: str) -> None:
        self._base = base
        self._names = KnownNames(registry)
        self.staging = Staging(self.forget)

    async def of(self, name: str, caller: Caller) -> Meant | None:
        """The adapter that a caller gets for a name: of an alias one of its targets, None for the base model.

        Raises UnknownModel, in the same words for what isn't there and what the caller may not ask; AdapterNotReady.
        """
        plain, at, pin = name.partition("@")
        principal = caller.principal
        candidates = scope.candidates(principal, plain)
        coming = self._is_coming(plain, candidates, principal)  # asked first: it may be there before it is looked up
        found, candidate = await self._first(candidates)
        if found is None and coming:
            raise AdapterNotReady(plain)
        if found is None or not scope.allows(principal, scope.kind_of(principal, found.owner), plain):
            raise UnknownModel(name)
        if isinstance(found, Standing):
            return Meant(name, plain, candidate, scope.owns(principal, found.owner), pin if at else None)
        if at:
            raise UnknownModel(name, f"{plain} is an alias; pin a version of one of its adapters")
        return await self._target(name, found, caller)

    async def part(self, name: str, caller: Caller) -> Meant:
        """An adapter to add to others. Raises as `of` does."""
        meant = await self.of(name, caller)
        if meant is None:
            raise UnknownModel(name, "it is an alias that led to the base model, which can't be added to adapters")
        return meant

    async def active(self, meant: Meant) -> Choice:
        """The version that it stands for now. Raises UnknownModel, AdapterNotReady, AdapterUnusable."""
        found = await self._names.entry(*meant.candidate)
        if not isinstance(found, Standing):
            raise UnknownModel(meant.asked)
        if found.active is not None:
            return Choice(found.active, found.generation)
        if (meant.full, found.owner) in self.staging:
            raise AdapterNotReady(meant.shown)
        raise AdapterUnusable(meant.shown, found.error, own=meant.own)

    def forget(self, names: Iterable[str] | None) -> None:
        """These names in full changed, or (None) any may have."""
        self._names.forget(names)

    async def _target(self, name: str, alias: Alias, caller: Caller) -> Meant | None:
        """The target of an alias that this caller gets, of those that the alias's owner may use."""
        targets = list(alias.targets)
        while targets:  # whom a target that is gone would have got goes to the others, and nobody else moves
            chosen = target_of(alias, targets, caller)
            if chosen == self._base:
                return None
            found, candidate = await self._first(scope.within(alias.owner, chosen))
            if isinstance(found, Standing):
                shown = scope.shown(caller.principal, chosen)
                return Meant(shown, shown, candidate, scope.owns(caller.principal, found.owner))
            targets = [target for target in targets if target.name != chosen]
        raise UnknownModel(name, "it is an alias, and none of its adapters is there any more")

    async def _first(self, candidates: Sequence[scope.Candidate]) -> tuple[Standing | Alias | None, scope.Candidate]:
        """The first candidate that is there, and what it stands for; where none is, all were looked for."""
        for candidate in candidates:
            found = await self._names.entry(candidate.full, candidate.reader)
            if found is not None:
                return found, candidate
        return None, candidates[-1]

    def _is_coming(self, shown: str, candidates: Sequence[scope.Candidate], principal: Principal) -> bool:
        """Whether one of them is a name that the principal may ask and whose first version is on its way in."""
        return any(
            scope.allows(principal, scope.kind_of(principal, owner), shown)
            for name, owner in self.staging
            if any(candidate.full == name and candidate.may_be(owner) for candidate in candidates)
        )


def cards_for(registry: Registry, principal: Principal) -> list[Card]:
    """Every name that a caller may ask, as it knows them and by that. Blocks."""
    found = [
        (scope.shown(principal, card.name), scope.kind_of(principal, card.owner), card)
        for card in registry.cards(scope.view(principal))
    ]
    seen = [replace(card, name=shown) for shown, kind, card in found if scope.allows(principal, kind, shown)]
    return sorted(seen, key=lambda card: card.name)
