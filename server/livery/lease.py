"""What a request holds while it runs, and whom an alias keeps where."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from livery.engine.base import AdapterRef
from livery_adapters.registry import Alias, VersionFacts


@dataclass(frozen=True, slots=True)
class Caller:
    """Whom an alias keeps on one target: the client's `user` field, and its API key's digest."""

    user: str | None = None
    key: str | None = None


ANYONE = Caller()


class Lease:
    """A request's hold on what it runs under. Release it once; more calls do nothing.

    `name` is the adapter's own, whatever alias led there; `digest` that of its version, `ref` the engine's view.
    """

    __slots__ = ("_release", "digest", "facts", "name", "ref")

    def __init__(
        self, name: str, digest: str, ref: AdapterRef, facts: VersionFacts | None, release: Callable[[], None]
    ) -> None:
        self.name = name
        self.digest = digest
        self.ref = ref
        self.facts = facts  # None for a composition
        self._release: Callable[[], None] | None = release

    def release(self) -> None:
        if self._release is not None:
            done, self._release = self._release, None
            done()


def target_of(alias: Alias, caller: Caller) -> str:
    """One of an alias's targets, by weight: the same for the same caller where the alias says so."""
    key = {"user": caller.user, "key": caller.key, "none": None}[alias.sticky]
    if key is None:
        point = secrets.randbelow(1 << 53) / (1 << 53)
    else:
        point = int.from_bytes(hashlib.sha256(f"{alias.name}\0{key}".encode()).digest()[:7]) / (1 << 56)
    total = sum(target.weight for target in alias.targets)
    for target in alias.targets:
        point -= target.weight / total
        if point < 0:
            return target.name
    return alias.targets[-1].name
