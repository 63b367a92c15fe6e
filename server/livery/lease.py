"""Who asks, what a request holds while it runs, and whom an alias keeps where."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from msgspec import structs

from livery.engine.base import AdapterRef, Asker
from livery.refusals import InvalidParameter
from livery.tenancy import NO_LIMITS, OPERATOR, Limits, Principal
from livery.tenancy.gate import Counted
from livery_adapters.composition import added_up, composition_digest, unweighted
from livery_adapters.layout import Task
from livery_adapters.registry import Alias, AliasTarget, NamedVersion, VersionFacts


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the client's `user` field, whose key it brings, and what it holds of that one's limits already.

    Without a claim the request is counted where it is admitted. `since` is when it came (time.perf_counter); None: it
    came when its prompts had been encoded.
    """

    user: str | None = None
    principal: Principal = OPERATOR
    claim: Counted | None = field(default=None, compare=False, repr=False)
    since: float | None = field(default=None, compare=False, repr=False)

    @property
    def key(self) -> str | None:
        """What the key is known by, None where no key is asked for."""
        return self.principal.key

    @property
    def tenant(self) -> str:
        """Whom the key belongs to."""
        return self.principal.tenant

    @property
    def resident_bytes(self) -> int:
        """The most device memory that its tenant's adapters may take, as the engine takes it: 0 is no limit."""
        return self.asker.limit

    @property
    def asker(self) -> Asker:
        """Its tenant, as the engine takes one that asks for an adapter."""
        return asker_of(self.tenant, self.principal.weight, self.principal.tenant_limits)


ANYONE = Caller()


def asker_of(tenant: str, weight: float = 1.0, limits: Limits = NO_LIMITS) -> Asker:
    """A tenant, as the engine takes one that asks for an adapter."""
    limit = limits.resident_bytes
    return Asker(tenant, weight, 0 if limit is None else max(1, limit))


class Lease:
    """A request's hold on what it runs under. Release it once; more calls do nothing.

    `name` is the adapter's own, whatever alias led there, as the caller knows it, and `full_name` what it is called
    among those of all tenants; `digest` is that of its version, `ref` the engine's view, None
    where it is a profile over the base. `own` says that the caller may
    know everything about it. `counted` is the adapter and the version that usage is counted for (counted_as).
    """

    __slots__ = (
        "_release",
        "_when_superseded",
        "counted",
        "digest",
        "facts",
        "full_name",
        "name",
        "own",
        "ref",
        "superseded",
        "task",
    )

    def __init__(
        self,
        name: str,
        digest: str,
        ref: AdapterRef | None,
        facts: VersionFacts | None,
        task: Task,
        full_name: str,
        *,
        own: bool,
        counted: tuple[str, str] | None = None,
    ) -> None:
        self.name = name
        self.counted = counted or (full_name, digest)
        self.own = own
        self.full_name = full_name
        self.digest = digest
        self.ref = ref
        self.facts = facts  # None for a composition
        self.task = task  # what it was trained for
        self.superseded = False  # a later version took its place, and it was to end
        self._release: Callable[[], None] | None = None
        self._when_superseded: Callable[[], None] | None = None

    @property
    def num_labels(self) -> int:
        """How many classes it tells apart; 0 where it doesn't classify."""
        return self.facts.num_labels if self.facts else 0

    @property
    def added_tokens(self) -> int:
        """How many tokens it has beyond the base's vocabulary."""
        return self.facts.added_tokens if self.facts else 0

    def until(self, release: Callable[[], None]) -> Lease:
        """The lease, whose release calls this."""
        self._release = release
        return self

    def when_superseded(self, end: Callable[[], None]) -> None:
        """Have this end what runs under the lease, once it is superseded: now, where it is already."""
        self._when_superseded = end
        if self.superseded:
            end()

    def supersede(self) -> None:
        """A later version took the place of its own: what runs under it is to end."""
        if not self.superseded:
            self.superseded = True
            if self._when_superseded is not None:
                self._when_superseded()

    def release(self) -> None:
        self._when_superseded = None
        if self._release is not None:
            done, self._release = self._release, None
            done()


def task_of(facts: VersionFacts) -> Task:
    """What a version was trained for; those taken in before this was asked generate."""
    task = facts.coverage.get("task")
    return "embed" if task == "embed" else "classify" if task == "classify" else "generate"


def common_task(versions: Sequence[NamedVersion]) -> Task:
    """What versions that are to be added up were trained for. Raises InvalidParameter where they have no sum."""
    bare = next((version for version in versions if version.facts.weightless), None)
    if bare is not None:
        raise InvalidParameter(
            f"{bare.name} is a profile over the base and has no weights to add to others; ask for it alone, or give "
            "one of the others that profile.",
            "model",
        )
    late = next((version for version in versions if version.facts.invocation), None)
    if late is not None:
        raise InvalidParameter(
            f"{late.name} is an activated adapter (aLoRA): it acts on part of a prompt and can't be added to others; "
            "ask for it alone.",
            "model",
        )
    grown = next((version for version in versions if version.facts.added_tokens), None)
    if grown is not None:
        raise InvalidParameter(
            f"{grown.name} has tokens of its own beyond the base's and can't be added to others; ask for it alone.",
            "model",
        )
    tasks = {task_of(version.facts): version.name for version in versions}
    if len(tasks) > 1:
        raise InvalidParameter(
            f"{' and '.join(tasks.values())} were trained for different tasks ({', '.join(tasks)}) and can't be added "
            "up; ask for one of them.",
            "model",
        )
    return next(iter(tasks))


def target_of(alias: Alias, targets: Sequence[AliasTarget], caller: Caller) -> str:
    """One of these targets of an alias, by weight: the same for the same caller where the alias says so."""
    key = {"user": caller.user, "key": caller.key, "none": None}[alias.sticky]
    if key is None:
        point = secrets.randbelow(1 << 53) / (1 << 53)
    else:
        drawn = f"{alias.name}\0{len(alias.targets) - len(targets)}\0{key}"
        point = int.from_bytes(hashlib.sha256(drawn.encode()).digest()[:7]) / (1 << 56)
    total = sum(target.weight for target in targets)
    for target in targets:
        point -= target.weight / total
        if point < 0:
            return target.name
    return targets[-1].name


def counted_as(parts: Iterable[tuple[str, str]]) -> tuple[str, str]:
    """The adapter and the version that usage of a sum is counted for, from its adapters' names in full and versions.

    Weights and the way it is written are left out: whoever chooses them would choose how much is kept. One adapter's
    multiples are that adapter.
    """
    adapters = dict.fromkeys(parts)
    versions = dict.fromkeys(digest for _, digest in adapters)
    return unweighted(name for name, _ in adapters), composition_digest((digest, 1.0) for digest in versions)


def summed(written: str, parts: Sequence[tuple[AdapterRef, float]]) -> tuple[AdapterRef, bool]:
    """What the engine is asked for a weighted sum, and whether it is one: `0.5*a+0.5*a` is `a`.

    Raises InvalidParameter where nothing is left of it.
    """
    refs = {ref.digest: ref for ref, _ in parts}
    terms = added_up([(ref.digest, weight) for ref, weight in parts])
    if not terms:
        raise InvalidParameter(f"The weights of {written[:200]} come to nothing; the base answers that.", "model")
    if len(terms) == 1 and terms[0][1] == 1:
        return refs[terms[0][0]], False
    weighted = [structs.replace(refs[digest].parts[0], weight=weight) for digest, weight in terms]
    return AdapterRef(composition_digest(terms), tuple(weighted)), True
