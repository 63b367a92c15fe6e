"""What a PostgreSQL server refuses for a while costs changes, and neither a server's tasks nor what is served."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from time import monotonic

import httpx
import psycopg
import pytest
from sqlalchemy import text

from api.conftest import serve, tokenizer
from api.live_server import BASE, LiveServer, Serve, Setup
from api.peft_files import make_adapter
from livery_adapters.registry import Registry, RegistryUnavailable
from livery_adapters.registry.database import Database

__all__ = ["serve", "tokenizer"]  # fixtures
_numbers = itertools.count(1)
ROLE = "some_livery"


@pytest.fixture
def admin(server: str) -> Iterator[psycopg.Connection]:
    """Whom every database of the server obeys, in one of its own that belongs to ROLE."""
    name = f"refusing{next(_numbers)}"
    with psycopg.connect(server, autocommit=True) as outside:
        if not outside.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [ROLE]).fetchone():
            outside.execute(f"CREATE ROLE {ROLE} LOGIN")
        outside.execute(f"CREATE DATABASE {name} OWNER {ROLE}")
        with psycopg.connect(server.replace("/postgres?", f"/{name}?"), autocommit=True) as connection:
            yield connection
        outside.execute(f"DROP DATABASE {name} WITH (FORCE)")


def url_of(admin: psycopg.Connection) -> str:
    return f"postgresql://{ROLE}@/{admin.info.dbname}?host={admin.info.host}"


def until(condition: Callable[[], bool]) -> None:
    end = monotonic() + 60
    while not condition():
        assert monotonic() < end


def put_alias(live: LiveServer, name: str = "captain", target: str = BASE) -> httpx.Response:
    return httpx.put(f"{live.url}/v1/aliases/{name}", json={"targets": [{"adapter": target}]}, timeout=60)


def ask(live: LiveServer, model: str) -> int:
    body = {"model": model, "prompt": "Ahoy", "max_tokens": 2}
    return httpx.post(f"{live.url}/v1/completions", json=body, timeout=60).status_code


def check_alive(live: LiveServer) -> None:
    assert live.service.adapters.vitals.ended == []
    assert [httpx.get(live.url + path, timeout=60).status_code for path in ("/ready", "/health")] == [200, 200]


def test_while_the_database_takes_no_changes_all_is_served_and_changes_are_taken_afterwards(
    admin: psycopg.Connection, serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A managed PostgreSQL that is full, or a name that leads to the writer of before."""
    (tmp_path / "adapters").mkdir()
    make_adapter(tmp_path / "adapters" / "first", seed=1)
    live = serve(Setup(registry=url_of(admin)), tmp_path)
    assert ask(live, "first") == 200
    admin.execute(f"ALTER DATABASE {admin.info.dbname} SET default_transaction_read_only = on")
    admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", [ROLE])
    refused = put_alias(live)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "registry_unavailable")
    assert "name the server that takes changes" in caplog.text
    make_adapter(tmp_path / "second", seed=2).rename(live.adapter_root / "second")
    until(lambda: "adapter second of the folder is not taken now" in caplog.text)
    assert ask(live, "first") == 200
    check_alive(live)
    # One that starts just now, with another folder of data and the same adapters.
    (tmp_path / "late" / "adapters").mkdir(parents=True)
    make_adapter(tmp_path / "late" / "adapters" / "first", seed=1)
    late = serve(Setup(registry=url_of(admin)), tmp_path / "late")
    assert ask(late, BASE) == 200
    check_alive(late)
    admin.execute(f"ALTER DATABASE {admin.info.dbname} RESET default_transaction_read_only")
    until(lambda: put_alias(live).status_code == 200)
    until(lambda: ask(live, "second") == 200)
    check_alive(live)
    check_alive(late)


@pytest.mark.parametrize(
    ("breaking", "mending", "remedy"),
    [
        ("REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {role}", "GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}",
         "give the URL's user the rights"),
        ("ALTER SCHEMA public RENAME TO elsewhere", "ALTER SCHEMA elsewhere RENAME TO public", "check the search_path"),
    ],
)  # fmt: skip
def test_tables_that_were_out_of_reach_are_followed_again(
    admin: psycopg.Connection, serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    breaking: str, mending: str, remedy: str,
) -> None:  # fmt: skip
    (tmp_path / "adapters").mkdir()
    make_adapter(tmp_path / "adapters" / "first", seed=1)
    live = serve(Setup(registry=url_of(admin)), tmp_path)
    assert put_alias(live, target="first").status_code == 200
    assert ask(live, "captain") == 200
    with caplog.at_level(logging.ERROR, "livery.adapters"):
        admin.execute(breaking.format(role=ROLE))
        until(lambda: any("can't be read" in said.message and remedy in said.message for said in caplog.records))
    assert ask(live, "captain") == 200, "what is known goes on being served"
    assert put_alias(live).status_code == 503
    check_alive(live)
    admin.execute(mending.format(role=ROLE))
    with closing(Registry.open(url_of(admin))) as another:
        another.delete_alias("captain")
    until(lambda: ask(live, "captain") == 404)  # the change is seen
    check_alive(live)


def test_connections_that_take_no_changes_are_not_kept(admin: psycopg.Connection) -> None:
    """What a connection was made with stays, also when the server has room again."""
    admin.execute(f"ALTER DATABASE {admin.info.dbname} SET default_transaction_read_only = on")
    with closing(Database(url_of(admin))) as database:
        with database.read(), database.read():
            pass  # two are in the pool
        with pytest.raises(RegistryUnavailable, match="read-only transaction"), database.write() as connection:
            connection.execute(text("CREATE TABLE made (number INTEGER)"))
        admin.execute(f"ALTER DATABASE {admin.info.dbname} RESET default_transaction_read_only")
        for number in range(3):
            with database.write() as connection:
                connection.execute(text(f"CREATE TABLE made{number} (number INTEGER)"))


def test_a_pooler_that_loses_prepared_statements_is_named(admin: psycopg.Connection) -> None:
    with closing(Database(url_of(admin))) as database:
        with pytest.raises(RegistryUnavailable, match="by session"), database.read() as connection:
            for _ in range(10):  # psycopg prepares what is asked often
                connection.execute(text("SELECT 1"))
            connection.execute(text("DO 'BEGIN EXECUTE ''DEALLOCATE ALL''; END'"))
            connection.execute(text("SELECT 1"))
        with database.read() as connection:
            assert connection.execute(text("SELECT 1")).scalar_one() == 1


def test_a_writer_sees_what_was_committed_while_it_waited_whatever_the_server_is_set_to(
    admin: psycopg.Connection,
) -> None:
    admin.execute(f"ALTER DATABASE {admin.info.dbname} SET default_transaction_isolation = 'serializable'")
    with closing(Database(url_of(admin))) as database:
        for begin, level in ((database.write, "read committed"), (database.read, "repeatable read")):
            with begin() as connection:
                assert connection.execute(text("SHOW transaction_isolation")).scalar_one() == level
