"""Who shows that a version can be applied before anything points to it: the server's engine, or the model itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from livery_adapters.effect import AdapterEffect
from livery_adapters.names import OPERATOR_TENANT


@dataclass(frozen=True, slots=True)
class Candidate:
    """A version to be proven: its converted digest, its files, what it asks for.

    `added_tokens` are rows beyond the base's. `verified`: this process hashed the files as it wrote them. Of stored
    files it may have been another one, long ago. `owner` is the tenant whose name it is for.
    """

    digest: str
    weights: str
    path: Path
    approximate: int
    invocation: tuple[int, ...]
    verified: bool
    added_tokens: int = 0
    owner: str = OPERATOR_TENANT


class Prover(Protocol):
    """Shows that a version can be applied. The server asks its engine, the command line the model itself."""

    async def prove(self, candidate: Candidate) -> AdapterEffect | None:
        """Convert it and run it once. Raises AdapterRefused with what went wrong. None: the effect isn't known.

        What was proven is kept ready until `forget` is called, once for each time it was proven.
        """
        ...

    async def stored(self, candidate: Candidate) -> None:
        """A version that was proven is recorded, and its files are where the candidate says from now on."""
        ...

    async def forget(self, digest: str) -> None:
        """The candidate is recorded by now, or isn't wanted: it may go unless something uses it."""
        ...


class NoProver:
    """For whoever has no model at hand: the version stays `registered` until a server proves it."""

    async def prove(self, candidate: Candidate) -> AdapterEffect | None:
        return None

    async def stored(self, candidate: Candidate) -> None:
        pass

    async def forget(self, digest: str) -> None:
        return None
