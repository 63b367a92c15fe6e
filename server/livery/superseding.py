"""Which requests under way run on a version that a later one has taken the place of, where they are told to end.

    asked = {"policy": (digest, 7)}                    # by the names in full that it asked, but for pinned versions
    with running.beginning():                          # from before its versions are chosen, which may take a while
        running.begin(lease, account, asked)
    running.supersede(Superseded("policy", newer, 8))  # whoever got what the name stood for before ends
    running.end(lease, asked)

What they do about it is theirs: see Lease.when_superseded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import msgspec

from livery.lease import Lease

Asked = Mapping[str, tuple[str, int]]  # names in full: the digest that each stood for, and its generation then


class Superseded(msgspec.Struct, frozen=True):
    """A name in full stands for the version with this digest, at this generation of it, and requests are to end that
    got another one before.

    `account`: only this tenant's (Principal); None: all.
    """

    name: str
    digest: str
    generation: int
    account: str | None = None


class Running:
    """Leases of requests under way, of one process. Use from one event loop."""

    def __init__(self) -> None:
        self._leases: dict[str, dict[Lease, tuple[str, str, int]]] = {}  # by name: account, digest, generation
        self._meanwhile: dict[object, list[Superseded]] = {}  # of requests that choose their versions: what was told

    @contextmanager
    def beginning(self) -> Iterator[None]:
        """Around a request's choice of versions and its beginning: what is superseded meanwhile counts for it too.

        What is told before the choice needs none of that: whoever chooses then gets the later version.
        """
        request, told = object(), list[Superseded]()
        self._meanwhile[request] = told
        try:
            yield
        finally:
            del self._meanwhile[request]
        for one in told:
            self._end(one)

    def begin(self, lease: Lease, account: str, asked: Asked) -> None:
        """A tenant's request runs on what it asked for by name alone."""
        for name, (digest, generation) in asked.items():
            self._leases.setdefault(name, {})[lease] = account, digest, generation

    def end(self, lease: Lease, asked: Asked) -> None:
        """One that began is over."""
        for name in asked:
            leases = self._leases[name]
            del leases[lease]
            if not leases:
                del self._leases[name]

    def supersede(self, told: Superseded) -> None:
        """Have requests on what came before end with what they have. What came later may be running by now."""
        for meanwhile in self._meanwhile.values():
            meanwhile.append(told)
        self._end(told)

    def _end(self, told: Superseded) -> None:
        for lease, (account, digest, generation) in list(self._leases.get(told.name, {}).items()):
            if digest != told.digest and generation < told.generation and told.account in (None, account):
                lease.supersede()
