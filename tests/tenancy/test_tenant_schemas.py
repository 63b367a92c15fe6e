"""Databases that older versions wrote are opened with all they hold."""

from __future__ import annotations

import hashlib
import sqlite3
from pathlib import Path

import pytest

from livery.tenancy import Limits, TenantStore, UsageStore
from livery.tenancy.meter import Counts, Flush, Row
from livery.tenancy.migrations import MIGRATIONS
from livery.tenancy.usage import Question

FIXTURES = Path(__file__).parent / "schemas"
USED = {
    Row(480_000, "acme", "key1key1", "acme/pirate", "ab" * 32): Counts(3, 1 << 40, 1 << 33, 70),
    Row(480_001, "default", "", "base", "fa" * 32): Counts(1, 5, 0, 2),
}
FLUSH = Flush("server1", 7, USED)
DIGESTS = [hashlib.sha256(text.encode()).hexdigest() for text in ("one", "two")]


def test_there_is_a_fixture_of_every_schema() -> None:
    newest = int(MIGRATIONS.newest())
    assert sorted(path.stem for path in FIXTURES.glob("*.sql")) == [f"{number:04}" for number in range(1, newest + 1)]


@pytest.mark.parametrize("dump", sorted(FIXTURES.glob("*.sql")), ids=lambda path: path.stem)
def test_every_schema_there_was_is_opened_with_all_it_holds(tmp_path: Path, dump: Path) -> None:
    """The fixtures hold what `make_fixture` below wrote with the code of their time."""
    connection = sqlite3.connect(tmp_path / "tenants.db")
    connection.executescript(dump.read_text())
    connection.close()
    store = TenantStore.open(tmp_path / "tenants.db")
    acme, default, zeta = store.tenants()
    assert (acme.name, acme.weight, acme.limits, acme.disabled) == ("acme", 2.0, Limits(n=4), True)
    assert (default.name, zeta.name) == ("default", "zeta")
    one, two = store.keys()
    assert (one.tenant, one.role, one.allow, one.limits) == ("acme", "owner", ("own", "sql-*"), Limits(n=2))
    assert (one.label, one.expires is None, one.revoked is None) == ("CI", True, False)
    assert (two.tenant, two.role, two.expires) == ("zeta", "user", 4e9)
    assert [one.digest, two.digest] == DIGESTS
    assert store.keyed()
    store.revoke_key(two.id)
    usage = UsageStore(store.database)
    if dump.stem >= "0002":  # the first that has it
        assert _used(usage) == USED
    usage.add(FLUSH)  # which newer ones have already
    assert _used(usage) == USED
    store.close()


def _used(usage: UsageStore) -> dict[Row, Counts]:
    lines = usage.report(Question(by=("hour", "tenant", "key", "adapter", "version")))
    return {Row(*line.group): line.counts for line in lines}  # type: ignore[arg-type]


def make_fixture(folder: Path) -> str:
    """Something of everything, as SQL: how the newest file of `schemas` was made."""
    store = TenantStore.open(folder / "fixture.db")
    store.create_tenant("acme", weight=2.0, limits={"n": 4}, occupied=lambda _: None)
    kept, _, _ = store.create_key(
        "acme", role="owner", allow=("own", "sql-*"), limits={"n": 2}, label="CI", occupied=lambda _: None
    )
    store.revoke_key(kept.id)
    store.create_key("zeta", expires=4e9, occupied=lambda _: None)
    store.update_tenant("acme", disabled=True)
    UsageStore(store.database).add(FLUSH)
    with store.database.write() as connection:  # digests that a test can know
        for (id_, *_), digest in zip(
            connection.exec_driver_sql("SELECT id FROM tenant_keys ORDER BY created").fetchall(), DIGESTS, strict=True
        ):
            connection.exec_driver_sql(f"UPDATE tenant_keys SET digest = '{digest}' WHERE id = '{id_}'")
    store.close()
    with sqlite3.connect(folder / "fixture.db") as connection:
        return "\n".join(connection.iterdump()) + "\n"


def test_the_newest_fixture_is_of_this_schema(tmp_path: Path) -> None:
    def structure(dump: str) -> list[str]:
        return [line for line in dump.splitlines() if not line.startswith("INSERT")]

    assert structure(make_fixture(tmp_path)) == structure((FIXTURES / f"{MIGRATIONS.newest()}.sql").read_text())
