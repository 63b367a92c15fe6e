"""Keys in memory: what a ring finds, how soon it follows, and what it costs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from livery.tenancy import (
    Doors,
    Flusher,
    InvalidApiKey,
    KeyRing,
    Limits,
    Meter,
    Principal,
    TenantStore,
    UsageStore,
    keys,
)
from livery.tenancy.meter import Counts, Payer
from livery.tenancy.secrets import digest


def nothing(_: str) -> str | None:
    return None


class Clock:
    """A count of seconds that jumps where a test wants it."""

    def __init__(self) -> None:
        self.now = 17.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def ring(store: TenantStore, clock: Clock) -> AsyncIterator[KeyRing]:
    ring = KeyRing(store, clock)
    await ring.start()
    yield ring
    await ring.stop()


def made(store: TenantStore, tenant: str, **asked: Any) -> tuple[str, bytes]:
    """A new key's id and the key."""
    key, text, _ = store.create_key(tenant, **asked, occupied=nothing)
    return key.id, text.encode()


async def followed(condition: Callable[[], bool]) -> None:
    """Wait for the ring's own loop."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_key_is_its_tenants_with_all_that_was_said_of_both(store: TenantStore, ring: KeyRing) -> None:
    assert not ring.keyed
    tenant = store.create_tenant("acme", weight=2.0, limits={"n": 3}, occupied=nothing)
    id_, key = made(store, "acme", role="owner", allow=("own",), limits={"n": 2})
    await ring.refresh()
    assert ring.keyed
    assert ring.find(key) == Principal(
        "acme", "owner", id_, ("own",), 2.0, Limits(n=2), Limits(n=3), anywhere=True, created=tenant.created
    )
    user = ring.find(made(store, "acme")[1])
    assert user is None  # not before it is read


async def test_what_others_do_is_followed(store: TenantStore, ring: KeyRing) -> None:
    """Here by the same store, which the ring knows as little of as of another process."""
    id_, key = made(store, "acme")
    await followed(lambda: ring.find(key) is not None)
    store.revoke_key(id_)
    await followed(lambda: ring.find(key) is None)
    assert ring.keyed
    _, another = made(store, "acme")
    await followed(lambda: ring.find(another) is not None)
    store.update_tenant("acme", disabled=True)
    await followed(lambda: ring.find(another) is None)
    store.update_tenant("acme", disabled=False)
    await followed(lambda: ring.find(another) is not None)
    store.create_tenant("zeta", occupied=nothing)
    assert not ring.is_tenant("none")
    await followed(lambda: ring.is_tenant("zeta"))


async def test_a_key_expires_by_the_databases_clock_and_a_jump_of_ones_own_ends_with_the_next_look(
    store: TenantStore, ring: KeyRing, clock: Clock
) -> None:
    _, brief = made(store, "acme", expires=store.now() + 600)
    _, lasting = made(store, "acme")
    await ring.refresh()
    begun = clock.now
    for moment, valid in ((0, True), (500, True), (601, False), (1e9, False), (-1e9, True), (30, True)):
        clock.now = begun + moment
        assert (ring.find(brief) is not None) is valid
        assert ring.find(lasting) is not None
    clock.now = begun + 1e9
    assert ring.find(brief) is None
    await ring.refresh()
    assert ring.find(brief) is not None
    clock.now = begun - 1e9
    _, third = made(store, "acme")
    await followed(lambda: ring.find(third) is not None)  # following waits by no clock


async def test_what_is_no_key(store: TenantStore, ring: KeyRing, monkeypatch: pytest.MonkeyPatch) -> None:
    _, key = made(store, "acme")
    await ring.refresh()
    wrong = [b"", key[:-1], key + b"x", key.upper(), b"lv-", key[:11], b"\xff\x00"]
    wrong += [digest(key), digest(key).hex().encode()]  # what is kept of it opens nothing
    for given in wrong:
        assert ring.find(given) is None
    hashed: list[int] = []

    def counting(given: bytes) -> bytes:
        hashed.append(len(given))
        return digest(given)

    monkeypatch.setattr(keys, "digest", counting)
    assert ring.find(key * 10) is None
    assert ring.find(b"x" * (1 << 20)) is None
    assert hashed == []  # nobody pays for a huge one
    assert ring.find(b"x" * 512) is None
    assert hashed == [512]


async def test_a_database_that_does_not_answer_takes_no_key_away(
    store: TenantStore, ring: KeyRing, caplog: pytest.LogCaptureFixture
) -> None:
    _, key = made(store, "acme")
    await ring.refresh()
    with store.database.write() as connection:
        connection.exec_driver_sql("ALTER TABLE tenancy RENAME TO elsewhere")
    await followed(lambda: "the keys can't be read" in caplog.text)
    assert ring.find(key) is not None
    assert ring.keyed
    with store.database.write() as connection:
        connection.exec_driver_sql("ALTER TABLE elsewhere RENAME TO tenancy")
    _, another = made(store, "acme")
    await followed(lambda: ring.find(another) is not None)


async def test_wrong_keys_of_every_kind_fail_alike(store: TenantStore, ring: KeyRing, clock: Clock) -> None:
    doors = Doors("sk-static", ring=ring)
    revoked, gone = made(store, "acme")
    store.revoke_key(revoked)
    _, expired = made(store, "acme", expires=store.now() + 60)
    _, disabled = made(store, "zeta")
    store.update_tenant("zeta", disabled=True)
    _, right = made(store, "acme")
    await ring.refresh()
    clock.now += 3600
    told = set()
    for key in (gone, expired, disabled, right[:-1], right + b"x", b"sk-stati", b"", b"x" * 100_000):
        for scheme in (b"Bearer ", b"bearer ", b"Basic ", b""):
            with pytest.raises(InvalidApiKey) as refused:
                doors.admit("ask", scheme + key)
            told.add(str(refused.value))
    assert len(told) == 1
    assert doors.admit("ask", b"bearer  " + right + b" ").tenant == "acme"
    static = doors.admit("ask", b"Bearer sk-static")
    assert (static.role, static.key) == ("admin", "static")  # which is logged, and says nothing of the key


async def test_ten_thousand_keys_of_a_shared_beginning_are_all_wrong(store: TenantStore, ring: KeyRing) -> None:
    """C13: what is looked up is a digest, in which nothing of a shared beginning is left."""
    _, right = made(store, "acme")
    await ring.refresh()
    doors = Doors(None, ring=ring)
    wrong = 0
    for number in range(10_000):
        key = right[: number % len(right)] + str(number).encode()
        with pytest.raises(InvalidApiKey):
            doors.admit("ask", b"Bearer " + key)
        wrong += 1
    assert wrong == 10_000
    assert doors.admit("ask", b"Bearer " + right).tenant == "acme"


def test_the_database_file_holds_no_key(tmp_path: Path) -> None:
    store = TenantStore.open(tmp_path / "tenants.db")
    secrets = [made(store, "acme", label=f"number {number}")[1] for number in range(20)]
    for key in store.keys()[:10]:
        store.revoke_key(key.id)
    for key in store.keys()[10:]:
        secrets.append(store.rotate_key(key.id, 5)[1].encode())
    store.close()
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"number 19" in kept
    assert len(secrets) == 30
    for secret in secrets:
        assert secret[12:] not in kept


def test_keys_and_usage_wait_for_nobody_elses_thread(store: TenantStore) -> None:
    """Every thread that work without one of its own shares is taken, as by reports and listings."""
    let_go = threading.Event()
    ring, meter = KeyRing(store), Meter()

    async def with_all_threads_taken() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        blocked = loop.run_in_executor(None, let_go.wait)
        try:
            _, key = made(store, "acme")
            meter.count(Payer("acme", "k1", "pirate", "ab"), Counts(requests=1))
            async with asyncio.timeout(20):
                await ring.refresh()
                assert await Flusher(meter, UsageStore(store.database).add, lambda: None).flush()
            assert ring.find(key) is not None
        finally:
            let_go.set()
            await blocked

    asyncio.run(with_all_threads_taken())  # other tests share a loop, which would keep the executor
