"""Who uses which version: requests hold leases, names and staging keep references. For one event loop.

leases = Leases(on_idle=forget)
leases.keep(digest)                  # a name stands for it
with leases.hold(digest): ...        # a request runs under it
leases.drop(digest)                  # the last reference gone: forget(digest) is called once
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from types import TracebackType


class Lease:
    """A request's hold on one version. Release it once; more calls do nothing."""

    __slots__ = ("_release", "digest")

    def __init__(self, digest: str, release: Callable[[str], None]) -> None:
        self.digest = digest
        self._release: Callable[[str], None] | None = release

    def release(self) -> None:
        release, self._release = self._release, None
        if release is not None:
            release(self.digest)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Leases:
    """Counts uses per version digest and tells `on_idle(digest)` when the last one of a version ends."""

    def __init__(self, on_idle: Callable[[str], None]) -> None:
        self._on_idle = on_idle
        self._uses: Counter[str] = Counter()

    def hold(self, digest: str) -> Lease:
        """Use the version until the lease is released."""
        self.keep(digest)
        return Lease(digest, self.drop)

    def keep(self, digest: str) -> None:
        """Count one more use; every `keep` needs its `drop`."""
        self._uses[digest] += 1

    def drop(self, digest: str) -> None:
        """Count one use less. Raises ValueError when there is none."""
        if not self._uses[digest]:
            raise ValueError(f"version {digest[:12]} is not in use")
        self._uses[digest] -= 1
        if not self._uses[digest]:
            del self._uses[digest]
            self._on_idle(digest)

    def in_use(self, digest: str) -> int:
        """How many uses there are now."""
        return self._uses[digest]
