"""What the registry knows, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from livery_adapters.names import OPERATOR_TENANT
from livery_adapters.weightless import NONE

State = Literal["registered", "staging", "ready", "draining", "failed", "retired"]
VersionState = Literal["ready", "registered"]
Sticky = Literal["user", "key", "none"]


@dataclass(frozen=True, slots=True)
class VersionFacts:
    """An immutable version: its digest says all that a response under it depends on.

    `weights` is the digest of the two files and the key of their blob. `approximate` is the rank the adapter was
    factorised to, 0 when it is applied as it is. `coverage` (the report of the checks) and `profile` (template,
    prompt, default sampling) are JSON values. `parents` are version digest and weight of what it was merged from;
    `invocation` the tokens from which on an activated LoRA applies. `created` is in seconds since 1970.
    """

    digest: str
    weights: str
    approximate: int
    peft_type: str
    base_digest: str
    nbytes: int
    coverage: Mapping[str, object]
    profile: Mapping[str, object]
    parents: tuple[tuple[str, float], ...]
    invocation: tuple[int, ...]
    created: float

    @property
    def weightless(self) -> bool:
        """Whether it is a profile over the base, which changes no weight of it."""
        return self.peft_type == NONE

    @property
    def num_labels(self) -> int:
        """How many classes its head tells apart; 0 where it doesn't classify."""
        return int(str(self.coverage.get("num_labels") or 0))

    @property
    def beside(self) -> Mapping[str, object]:
        """What lay beside its files and differs from the base's (`livery_adapters.beside.compare`)."""
        found = self.coverage.get("beside")
        return found if isinstance(found, Mapping) else {}

    @property
    def added_tokens(self) -> int:
        """How many tokens it has beyond the base's vocabulary."""
        return int(str(self.coverage.get("added_tokens") or 0))


@dataclass(frozen=True, slots=True)
class NamedVersion:
    """A version in the history of a name. `number` counts from 1 per name and is never given twice.

    `registered` versions have passed every check but were never run; `ready` ones were.
    """

    name: str
    number: int
    facts: VersionFacts
    added: float
    state: VersionState


@dataclass(frozen=True, slots=True)
class AdapterRecord:
    """How one name stands.

    `generation` counts the changes of what the name stands for; 0: it never had a version. `source` is who gave the
    name its versions ("folder", "api", ...), `origin` where the last one came from and `origin_digest` the digest of
    its files. With an active version, `error` is why its successor wasn't taken. The registry itself never says
    "staging" or "draining": those are states of a server. `owner` is the tenant it belongs to: `default`, the
    operator, or the name begins with OWNER/.
    """

    name: str
    generation: int
    state: State
    active: NamedVersion | None
    source: str
    origin: str
    origin_digest: str | None
    pinned: bool
    error: str | None
    error_code: str | None
    created: float
    updated: float
    owner: str = OPERATOR_TENANT


@dataclass(frozen=True, slots=True)
class Card:
    """A name that takes requests: an adapter with its active version's digest, or an alias with an empty one."""

    name: str
    digest: str
    created: float
    owner: str = OPERATOR_TENANT


@dataclass(frozen=True, slots=True)
class Given:
    """What a followed folder gave last under a name: how that looked, "" where it wasn't taken.

    `claimed`: it is the asking follower's, else nobody's so far. `listed`: the name isn't retired.
    """

    origin: str
    claimed: bool
    listed: bool


@dataclass(frozen=True, slots=True)
class Page:
    """Records in the order of their names; `next_after` is where the next page begins, None at the end."""

    records: tuple[AdapterRecord, ...]
    next_after: str | None


@dataclass(frozen=True, slots=True)
class AliasTarget:
    """An adapter, or the base model, and its share of the requests; weights need not sum to one."""

    name: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Alias:
    """A name that shares its requests out; `sticky` says what keeps somebody on one target."""

    name: str
    targets: tuple[AliasTarget, ...]
    sticky: Sticky
    generation: int
    updated: float
    owner: str = OPERATOR_TENANT


@dataclass(frozen=True, slots=True)
class Reader:
    """Who asks for a name: its owner, or a tenant that it is shared with. Of another's name nothing is found."""

    how: Literal["owner", "shared"]
    tenant: str


def reader_of(owner: str | None) -> Reader | None:
    """An owner as one who asks; None for one who sees everything."""
    return None if owner is None else Reader("owner", owner)


@dataclass(frozen=True, slots=True)
class View:
    """Whose eyes a list is for: names of its own, which it knows without OWNER/, the operator's, and shared ones.

    Where one of the three is False, only those in `names`, as the tenant knows them; a `*` at the end stands for any
    rest. A name of its own hides another one that it would know by the same name.
    """

    tenant: str
    own: bool = True
    public: bool = True
    shared: bool = True
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """What a tenant keeps: adapters with a version, versions of them, bytes of their files, each counted once."""

    adapters: int = 0
    aliases: int = 0
    versions: int = 0
    nbytes: int = 0


@dataclass(frozen=True, slots=True)
class Quota:
    """The most that a tenant may keep, None for any number. There may be as many aliases as adapters."""

    adapters: int | None = None
    versions: int | None = None
    nbytes: int | None = None


NO_QUOTA = Quota()
