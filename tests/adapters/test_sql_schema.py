"""Opening what is there: older schemas, newer ones, something else, damage; and what a SQLite file is opened with."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import text

from adapters.sql_facts import assert_consistent, facts_of
from livery_adapters.registry import (
    AliasTarget,
    Registry,
    RegistryError,
    RegistryTooNew,
    RegistryUnavailable,
    RegistryUnreadable,
    migrations,
)
from livery_adapters.registry.database import Database
from livery_adapters.registry.schema import metadata

FIXTURES = Path(__file__).parent / "schemas"

NEWEST = migrations.newest()
AFTER = f"{int(NEWEST) + 1:04}"
NEXT = f"""
import sqlalchemy as sa
from alembic import op

revision = "{AFTER}"
down_revision = "{NEWEST}"


def upgrade() -> None:
    op.add_column("adapters", sa.Column("colour", sa.Text, nullable=False, server_default="black"))
"""


@pytest.fixture
def next_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this were the next version of the code."""
    folder = tmp_path / "versions"
    folder.mkdir()
    (folder / "vnext.py").write_text(NEXT)
    monkeypatch.setattr(migrations, "FOLDERS", [*migrations.FOLDERS, str(folder)])


def test_the_migrations_make_the_tables_of_the_code(registry: Registry) -> None:
    with registry.database.read() as connection:
        context = MigrationContext.configure(
            connection, opts={"version_table": migrations.VERSION_TABLE, "compare_type": True}
        )
        assert compare_metadata(context, metadata) == []


def test_the_migrations_make_the_same_sqlite_tables_as_the_code(tmp_path: Path) -> None:
    Registry.open(tmp_path / "migrated.db").close()
    made = Database(tmp_path / "made.db")
    with made.write() as connection:
        metadata.create_all(connection)
    made.close()

    def tables(name: str) -> dict[str, str]:
        with sqlite3.connect(tmp_path / name) as connection:
            rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
        return {name: re.sub(r"\s+", " ", sql) for name, sql in rows if name != migrations.VERSION_TABLE}

    assert tables("migrated.db") == tables("made.db")


def test_there_is_a_fixture_of_every_schema() -> None:
    newest = int(migrations.newest())
    assert sorted(path.stem for path in FIXTURES.glob("*.sql")) == [f"{number:04}" for number in range(1, newest + 1)]


@pytest.mark.parametrize("dump", sorted(FIXTURES.glob("*.sql")), ids=lambda path: path.stem)
def test_every_schema_there_was_is_opened_with_all_it_holds(tmp_path: Path, dump: Path) -> None:
    """The fixtures hold what `make_fixture` below wrote with the code of their time."""
    connection = sqlite3.connect(tmp_path / "registry.db")
    connection.executescript(dump.read_text())
    connection.close()
    registry = Registry.open(tmp_path / "registry.db")
    assert_consistent(registry)
    assert [record.name for record in registry.page(owner="default").records] == ["broken", "corsair", "pirate"]
    pirate = registry.get("pirate")
    assert pirate.active is not None
    assert pirate.active.facts == facts_of("two")
    assert (pirate.generation, pirate.pinned, pirate.source, pirate.origin) == (2, True, "hub", "hf://me/pirate@4f2c")
    assert registry.version("pirate", "1").facts == facts_of("one", profile={"temperature": 0.5})
    assert registry.get("corsair").state == "registered"
    assert registry.get("broken").error_code == "incomplete"
    assert registry.get("retired", include_retired=True).generation == 2
    assert registry.alias("crew").targets == (AliasTarget("pirate", 9), AliasTarget("corsair", 1))
    assert registry.rollback("pirate").generation == 3
    assert registry.changes(1)[1] is not None
    assert registry.alias("crew").owner == "default"
    if dump.stem >= "0002":
        assert registry.get("acme/parrot").owner == "acme"
        assert registry.alias("acme/birds").owner == "acme"
        assert registry.shared_with("acme/parrot") == ("bob",)
    assert (registry.identity() in dump.read_text()) == (dump.stem >= "0004")
    assert registry.blob_store() == ("s3://bucket/livery" if dump.stem >= "0005" else None)
    claimed = dump.stem >= "0003"
    assert {name: given.claimed for name, given in registry.given("here").items()} == {
        "broken": False,
        "corsair": claimed,
        "retired": False,
    }
    registry.close()


def make_fixture(folder: Path) -> str:
    """A registry with something of everything, as SQL: how the newest file of `schemas` was made."""
    registry = Registry.open(folder / "fixture.db")
    one = facts_of("one", profile={"temperature": 0.5})
    registry.put("pirate", one, source="hub", origin="hf://me/pirate@77aa", pinned=True)
    registry.put("pirate", facts_of("two"), source="hub", origin="hf://me/pirate@4f2c")
    registry.put("corsair", facts_of("two"), source="folder", origin="corsair#1", state="registered", follower="here")
    registry.put("retired", facts_of("three"), source="folder", origin="retired#1")
    registry.retire("retired")
    registry.fail("broken", code="incomplete", message="half there", source="folder", origin="broken#1")
    registry.set_alias("crew", [AliasTarget("pirate", 9), AliasTarget("corsair", 1)], "user")
    registry.put("acme/parrot", facts_of("three"), source="api", origin="upload", owner="acme")
    registry.share("acme/parrot", "acme", "bob")
    registry.set_alias("acme/birds", [AliasTarget("acme/parrot"), AliasTarget("pirate")], "none", owner="acme")
    registry.use_blob_store("s3://bucket/livery")
    registry.close()
    with sqlite3.connect(folder / "fixture.db") as connection:
        return re.sub(r" +\n", "\n", "\n".join(connection.iterdump()) + "\n")


def test_the_newest_fixture_is_what_this_code_writes(tmp_path: Path) -> None:
    def structure(dump: str) -> list[str]:
        return [line for line in dump.splitlines() if not line.startswith("INSERT")]

    assert structure(make_fixture(tmp_path)) == structure((FIXTURES / f"{migrations.newest()}.sql").read_text())


def test_an_older_schema_is_migrated_with_all_it_holds(
    new_url: Callable[[], str], request: pytest.FixtureRequest
) -> None:
    url = new_url()
    registry = Registry.open(url)
    registry.put("pirate", facts_of("one"), source="api", origin="")
    registry.close()
    request.getfixturevalue("next_schema")
    registry = Registry.open(url)
    with registry.database.read() as connection:
        assert migrations.current(connection, "") == AFTER
        assert connection.execute(text("SELECT colour FROM adapters")).scalars().all() == ["black"]
    registry.close()


def test_a_migration_that_fails_leaves_the_older_schema(
    new_url: Callable[[], str], tmp_path: Path, next_schema: None
) -> None:
    url = new_url()
    step = tmp_path / "versions" / "vnext.py"
    step.write_text(NEXT + '    raise RuntimeError("on the way")\n')
    with pytest.raises(RuntimeError, match="on the way"):
        Registry.open(url)
    step.unlink()
    registry = Registry.open(url)
    with registry.database.read() as connection:
        assert migrations.current(connection, "") == NEWEST
    registry.put("pirate", facts_of("one"), source="api", origin="")
    registry.close()


def test_a_newer_schema_is_refused_and_left_alone(
    new_url: Callable[[], str], next_schema: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = new_url()
    Registry.open(url).close()
    monkeypatch.setattr(migrations, "FOLDERS", migrations.FOLDERS[:1])
    with pytest.raises(RegistryTooNew, match="install") as refused:
        Registry.open(url)
    assert (refused.value.found, refused.value.known) == (AFTER, NEWEST)
    database = Database(url)
    with database.read() as connection:
        assert migrations.current(connection, "") == AFTER
    database.close()


def test_another_programs_database_is_refused_and_left_alone(new_url: Callable[[], str]) -> None:
    url = new_url()
    database = Database(url)
    with database.write() as connection:
        connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32))"))
        connection.execute(text("INSERT INTO alembic_version VALUES ('0001')"))
    with pytest.raises(RegistryUnreadable, match="something else"):
        Registry.open(url)
    with database.read() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all() == ["0001"]
    database.close()


# -- SQLite files --------------------------------------------------------------------------------------


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    path.write_text("adapters: pirate\n" * 100)
    with pytest.raises(RegistryUnreadable, match=r"registry\.db.*backup"):
        Registry.open(path)
    assert path.read_text().startswith("adapters")


def test_a_damaged_file_is_told_from_a_mistake(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    registry = Registry.open(path)
    for number in range(50):
        registry.put(f"pirate{number}", facts_of(str(number)), source="api", origin="")
    registry.close()
    data = bytearray(path.read_bytes())
    data[4096 * 3 :] = b"\xff" * (len(data) - 4096 * 3)
    path.write_bytes(data)
    registry = Registry.open(path)
    with pytest.raises(RegistryUnreadable, match="damaged"):
        registry.page()
    registry.close()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "registry.db").mkdir()
    with pytest.raises(RegistryUnavailable, match=r"registry\.db"):
        Registry.open(tmp_path / "registry.db")


def test_a_sqlite_file_is_opened_for_durability(tmp_path: Path) -> None:
    registry = Registry.open(tmp_path / "deeper" / "registry.db")
    with registry.database.read() as connection:
        for pragma, value in (
            ("journal_mode", "wal"),
            ("synchronous", 2),
            ("foreign_keys", 1),
            ("busy_timeout", 30000),
        ):
            assert connection.exec_driver_sql(f"PRAGMA {pragma}").scalar_one() == value
    registry.close()


@pytest.mark.parametrize("url", ["mysql://host/name", "sqlite://", "postgresql:///x:y:z@[", "://"])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(RegistryError):
        Registry.open(url)


def test_messages_keep_passwords(tmp_path: Path) -> None:
    database = Database("postgresql://me:secret@127.0.0.1:1/none?connect_timeout=1")
    with pytest.raises(RegistryUnavailable) as refused, database.read():
        pass
    assert "secret" not in str(refused.value)
    assert "127.0.0.1" in str(refused.value)
