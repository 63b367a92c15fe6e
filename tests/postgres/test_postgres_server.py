"""What only a PostgreSQL server can do. The files beside this one ask it all that is asked of SQLite."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import psycopg
import pytest
from sqlalchemy import text

from adapters.sql_facts import facts_of
from livery_adapters.registry import Registry, RegistryUnavailable, patient
from livery_adapters.registry.database import Database
from postgres.server import hung, programs, running


def test_the_server_would_order_names_otherwise(server: str) -> None:
    """Or else the tests of pages would prove nothing here."""
    with psycopg.connect(server) as connection:
        assert connection.execute("SELECT 'a' < 'B'").fetchone() == (True,)


def test_a_server_that_went_away_is_named_and_one_that_came_back_is_used(new_url: Callable[[], str]) -> None:
    binaries = programs()
    assert binaries is not None
    with running(binaries) as url:
        registry = Registry.open(url)
        registry.put("pirate", facts_of("one"), source="api", origin="")
        with psycopg.connect(url, autocommit=True) as admin:  # every connection of the pool is cut
            admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
        assert registry.find("pirate") is not None
    with pytest.raises(RegistryUnavailable, match="database server runs"):
        registry.find("pirate")
    registry.close()


def test_a_server_that_says_nothing_is_not_waited_for_and_one_that_speaks_again_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It refuses nobody: connections are taken, as by a machine that is hung."""
    monkeypatch.setattr(patient, "PING_S", 0.5)
    binaries = programs()
    assert binaries is not None
    with running(binaries) as url, closing(Registry.open(f"{url}&connect_timeout=2")) as registry:
        registry.put("pirate", facts_of("one"), source="api", origin="")
        with hung(url), pytest.raises(RegistryUnavailable, match="database server runs"):
            registry.find("pirate")
        assert registry.find("pirate") is not None
    monkeypatch.setattr(patient, "STATEMENT_S", 0.5)
    with running(binaries) as url, closing(Database(url)) as database:
        with pytest.raises(RegistryUnavailable, match="said nothing for"), database.write() as connection, hung(url):
            connection.execute(text("SELECT 1"))
        with database.read() as connection:
            assert connection.execute(text("SELECT 1")).scalar_one() == 1
