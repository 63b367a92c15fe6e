"""Which adapters exist: names, their versions, their states, and who is using what.

In memory, for one event loop: no method blocks or awaits, so each is atomic, and there is one writer.

    registry = AdapterRegistry(on_idle=lambda version: ..., reserved={"smollm2-135m-instruct"})
    registry.add("pirate", version, source="folder")    # known, not yet served
    registry.activate("pirate", version.digest)         # from now on `pirate` is this version
    with registry.lease("pirate") as lease:             # UnknownAdapter if there is none
        lease.version.digest                            # stays usable until the lease is released
    registry.retire("pirate")                           # no new leases; gone when the last one ends

A version that no lease holds and no name serves or stages is idle: `on_idle` is told once, and whoever owns
engine and blobs may drop it (livery_adapters.ingest does). Bytes, engines and HTTP are not known here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal

from livery_adapters.coverage import CoverageReport
from livery_adapters.layout import AdapterManifest
from livery_adapters.names import MIN_DIGEST_PREFIX, RESERVED_VERBS, validate_name

__all__ = [
    "INCOMPLETE_CODES",
    "MIN_DIGEST_PREFIX",
    "RESERVED_VERBS",
    "AdapterRecord",
    "AdapterRegistry",
    "AdapterVersion",
    "Lease",
    "State",
    "UnknownAdapter",
    "validate_name",
]

State = Literal["active", "loading", "draining", "failed", "incomplete"]

# A file is missing or short: somebody may still be copying.
INCOMPLETE_CODES = frozenset({"incomplete", "missing_config", "missing_weights"})


class UnknownAdapter(LookupError):
    """No adapter of this name can be used. `reason` says why where one is known."""

    def __init__(self, name: str, reason: str | None = None) -> None:
        super().__init__(f"no adapter named {name!r}" + (f": {reason}" if reason else ""))
        self.name = name
        self.reason = reason


@dataclass(frozen=True, slots=True)
class AdapterVersion:
    """An immutable version. `path` holds its verified files; `created` is in seconds since 1970."""

    digest: str
    manifest: AdapterManifest
    coverage: CoverageReport
    path: Path
    created: float


@dataclass(frozen=True, slots=True)
class AdapterRecord:
    """How one name stands. With a version, `error` is that of a replacement that was not taken."""

    name: str
    state: State
    version: AdapterVersion | None
    source: str
    leases: int = 0
    error: str | None = None
    error_code: str | None = None


class Lease:
    """A request's hold on one version. Release it once; a context manager does, and more calls do nothing."""

    def __init__(self, name: str, version: AdapterVersion, release: Callable[[Lease], None]) -> None:
        self.name = name
        self.version = version
        self._release = release
        self._held = True

    def release(self) -> None:
        if self._held:
            self._held = False
            self._release(self)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


@dataclass(slots=True)
class _Entry:
    """All there is about one name. `leased` holds every version of it that requests still use."""

    source: str
    active: AdapterVersion | None = None
    staged: AdapterVersion | None = None
    staged_source: str = ""
    draining: bool = False
    error: str | None = None
    error_code: str | None = None
    leased: dict[str, AdapterVersion] = field(default_factory=dict)
    leases: Counter[str] = field(default_factory=Counter)


class AdapterRegistry:
    """The only writer of names, versions and states. See the module's docstring for the verbs."""

    def __init__(self, on_idle: Callable[[AdapterVersion], None], reserved: Collection[str] = ()) -> None:
        self._on_idle = on_idle
        self.reserved = frozenset(reserved)
        self._entries: dict[str, _Entry] = {}
        self._uses: Counter[str] = Counter()  # digest -> names that serve or stage it + leases

    # -- versions of a name ----------------------------------------------------------------------------

    def add(self, name: str, version: AdapterVersion, source: str) -> None:
        """Stage a version for a name, in place of one staged before. Raises AdapterRefused (invalid_name)."""
        validate_name(name, self.reserved)
        entry = self._entries.setdefault(name, _Entry(source))
        self._hold(version)
        self._unstage(entry)
        entry.staged, entry.staged_source = version, source

    def activate(self, name: str, digest: str) -> AdapterRecord:
        """Serve the staged version under its name; requests under way finish on the one before."""
        entry = self._entries.get(name)
        version = entry.staged if entry else None
        if entry is None or version is None or version.digest != digest:
            raise UnknownAdapter(name, f"version {digest[:12]} is not staged")
        before, entry.active, entry.staged = entry.active, version, None
        entry.source, entry.draining = entry.staged_source, False
        entry.error = entry.error_code = None
        if before is not None:
            self._drop(before)
        return self._record(name, entry)

    def renew(self, name: str, source: str) -> None:
        """The active version was found to be what `source` has now: errors of others before it are past."""
        entry = self._entries.get(name)
        if entry is None or entry.active is None:
            raise UnknownAdapter(name)
        entry.source = source
        entry.error = entry.error_code = None

    def withdraw(self, name: str, digest: str) -> None:
        """Forget a staged version that turned out unusable. Does nothing when it is no longer staged."""
        entry = self._entries.get(name)
        if entry is not None and entry.staged is not None and entry.staged.digest == digest:
            self._unstage(entry)
            self._forget_if_empty(name, entry)

    def fail(self, name: str, error: str, source: str, *, code: str = "failed") -> None:
        """Record why a version of `name` was not taken. An active version goes on serving."""
        entry = self._entries.setdefault(name, _Entry(source))
        entry.error, entry.error_code = error, code

    def retire(self, name: str) -> bool:
        """No new leases; the name disappears when the last one ends. False when there is no such name."""
        entry = self._entries.get(name)
        if entry is None:
            return False
        version, entry.active = entry.active, None
        entry.draining = True
        entry.error = entry.error_code = None
        self._unstage(entry)
        self._forget_if_empty(name, entry)
        if version is not None:
            self._drop(version)
        return True

    # -- requests --------------------------------------------------------------------------------------

    def lease(self, name: str) -> Lease:
        """Hold the active version of `name`, or the one `name@<digest prefix>` pins. Raises UnknownAdapter."""
        version_name, version = self._resolve(name)
        entry = self._entries[version_name]
        entry.leased[version.digest] = version
        entry.leases[version.digest] += 1
        self._hold(version)
        return Lease(version_name, version, self._release)

    def _release(self, lease: Lease) -> None:
        entry, digest = self._entries[lease.name], lease.version.digest
        entry.leases[digest] -= 1
        if not entry.leases[digest]:
            del entry.leases[digest], entry.leased[digest]
            self._forget_if_empty(lease.name, entry)
        self._drop(lease.version)

    def _resolve(self, name: str) -> tuple[str, AdapterVersion]:
        plain, at, prefix = name.partition("@")
        entry = self._entries.get(plain)
        if entry is None or entry.active is None:
            raise UnknownAdapter(name, entry.error if entry else None)
        if not at:
            return plain, entry.active
        if len(prefix) < MIN_DIGEST_PREFIX:
            raise UnknownAdapter(name, f"a version is pinned by at least {MIN_DIGEST_PREFIX} digits of its digest")
        known = {entry.active.digest: entry.active, **entry.leased}
        found = [version for digest, version in known.items() if digest.startswith(prefix)]
        if len(found) != 1:
            raise UnknownAdapter(
                name, f"version {prefix[:64]} is not served; the active one is {entry.active.digest[:12]}"
            )
        return plain, found[0]

    # -- looking ---------------------------------------------------------------------------------------

    def get(self, name: str) -> AdapterRecord:
        """How `name` stands. Raises UnknownAdapter."""
        entry = self._entries.get(name)
        if entry is None:
            raise UnknownAdapter(name)
        return self._record(name, entry)

    def records(self) -> list[AdapterRecord]:
        """Every name, sorted."""
        return [self._record(name, self._entries[name]) for name in sorted(self._entries)]

    def uses(self, digest: str) -> int:
        """How many names serve or stage this version, plus the leases on it. Zero: it is idle."""
        return self._uses[digest]

    # -- bookkeeping -----------------------------------------------------------------------------------

    def _record(self, name: str, entry: _Entry) -> AdapterRecord:
        return AdapterRecord(
            name=name,
            state=_state(entry),
            version=entry.active,
            source=entry.source,
            leases=entry.leases.total(),
            error=entry.error,
            error_code=entry.error_code,
        )

    def _unstage(self, entry: _Entry) -> None:
        version, entry.staged = entry.staged, None
        if version is not None:
            self._drop(version)

    def _forget_if_empty(self, name: str, entry: _Entry) -> None:
        if entry.active is None and entry.staged is None and not entry.leases:
            entry.draining = False
            if not entry.error:
                self._entries.pop(name, None)

    def _hold(self, version: AdapterVersion) -> None:
        self._uses[version.digest] += 1

    def _drop(self, version: AdapterVersion) -> None:
        self._uses[version.digest] -= 1
        if not self._uses[version.digest]:
            del self._uses[version.digest]
            self._on_idle(version)


def _state(entry: _Entry) -> State:
    if entry.active is not None:
        return "active"
    if entry.staged is not None:
        return "loading"
    if entry.draining:
        return "draining"
    return "incomplete" if entry.error_code in INCOMPLETE_CODES else "failed"
