"""Which requests under way run on a version that a later one has taken the place of, where they are told to end.

running = Running()
running.begin(lease, account, {"policy": digest})     # by the names in full that it asked, but for pinned versions
running.supersede(Superseded("policy", newer, None))  # every one on another version of the name ends
running.end(lease, {"policy": digest})
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from livery.lease import Lease


class Superseded(msgspec.Struct, frozen=True):
    """A name in full stands for the version with this digest, and requests on others of it are to end.

    `account`: only this tenant's (Principal); None: all.
    """

    name: str
    digest: str
    account: str | None = None


class Running:
    """Leases of requests under way, of one process. Use from one event loop."""

    def __init__(self) -> None:
        self._leases: dict[str, dict[Lease, tuple[str, str]]] = {}  # by name: account, digest

    def begin(self, lease: Lease, account: str, versions: Mapping[str, str]) -> None:
        """A tenant's request runs on these versions of names in full, which it asked for by name alone."""
        for name, digest in versions.items():
            self._leases.setdefault(name, {})[lease] = account, digest

    def end(self, lease: Lease, versions: Mapping[str, str]) -> None:
        """One that began is over."""
        for name in versions:
            leases = self._leases[name]
            del leases[lease]
            if not leases:
                del self._leases[name]

    def supersede(self, told: Superseded) -> None:
        """Have requests on other versions of a name end with what they have."""
        for lease, (account, digest) in list(self._leases.get(told.name, {}).items()):
            if digest != told.digest and told.account in (None, account):
                lease.supersede()
