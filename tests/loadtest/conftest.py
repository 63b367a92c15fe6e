"""Running servers for the load client to measure."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from loadtest.known_server import (
    CHANGING,
    CUT,
    FAILING,
    MISNAMED,
    REFUSED,
    SILENT_USAGE,
    UNFINISHED,
    KnownServer,
    serving,
)


@pytest.fixture
def pair() -> Iterator[tuple[KnownServer, KnownServer]]:
    """Two servers with a base and two adapters each; the bases have different names."""
    left = KnownServer("left", ["base-l", "pirate", "json"])
    right = KnownServer("right", ["base-r", "pirate", "json"])
    with serving(left, right):
        yield left, right


@pytest.fixture
def faulty() -> Iterator[KnownServer]:
    """A server with one good adapter and every kind of bad one."""
    models = ["base", "pirate", REFUSED, CUT, FAILING, SILENT_USAGE, UNFINISHED, CHANGING, MISNAMED]
    server = KnownServer("faulty", models)
    with serving(server):
        yield server
