"""Usage: counted per hour and owner, written once whatever goes wrong on the way, and reported by groups."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import pytest

from livery.tenancy import TenantStore, UsageExpiry, UsageStore
from livery.tenancy.meter import Counts, Flush, Flusher, Meter, Payer, Row
from livery.tenancy.records import account_of
from livery.tenancy.usage import MOST_DELETED, Line, Question
from livery.vitals import Vitals
from livery_adapters.registry import RegistryUnavailable

HOUR = 480_000  # in 2024
PAYER = Payer("acme", "k1", "acme/pirate", "ab" * 32)


@pytest.fixture
def usage(store: TenantStore) -> UsageStore:
    return UsageStore(store.database)


def lines(usage: UsageStore, *by: str, **asked: object) -> list[Line]:
    return list(usage.report(Question(by=by, **asked)))  # type: ignore[arg-type]


def total(usage: UsageStore) -> Counts:
    return lines(usage)[0].counts


class Open:
    """Requests under way that have something to count at every look."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.counted = Counts()

    def __call__(self) -> None:
        new = Counts(1, 10, 4, 3)
        self.meter.count(PAYER, new)
        self.counted.add(new)


def at(hour: float) -> Callable[[], float]:
    return lambda: hour * 3600


def test_what_is_written_after_its_tenant_was_deleted_isnt_the_next_ones(store: TenantStore, usage: UsageStore) -> None:
    def flush(number: int, account: str) -> None:
        rows = {Row(HOUR, account, "k1", "acme/pirate", "ab"): Counts(1, 10, 4, 3)}
        usage.add(Flush("one", number, rows))

    first = store.create_tenant("acme", occupied=lambda _: None)
    account = account_of("acme", first.created)
    flush(1, account)
    assert [line.group for line in lines(usage, "tenant")] == [("acme",)]
    store.delete_tenant("acme", occupied=lambda _: None)
    flush(2, account)  # was under way
    second = store.create_tenant("acme", occupied=lambda _: None)
    flush(3, account)  # a stream that outlived all of this
    flush(4, account_of("acme", second.created))
    flush(5, "default")
    counted = {line.group[0]: line.counts.requests for line in lines(usage, "tenant")}
    assert counted == {"acme": 1, account: 3, "default": 1}
    assert len(lines(usage, "tenant", tenant="acme")) == 1


async def test_what_is_flushed_once_is_never_added_twice(usage: UsageStore) -> None:
    meter = Meter(at(HOUR))
    look = Open(meter)
    script = iter(["before", "after", "after", "before", "", "after", "", ""])

    def write(flush: Flush) -> None:
        """Now and then the database is gone before it takes a flush, or before it says that it did."""
        fate = next(script)
        if fate == "before":
            raise RegistryUnavailable("down")
        usage.add(flush)
        if fate == "after":
            raise RegistryUnavailable("down after the commit")

    flusher = Flusher(meter, write, look)
    taken = [await flusher.flush() for _ in range(8)]
    assert taken == [False, False, False, False, True, False, True, True]
    assert total(usage) == look.counted
    assert len(meter) == 0


async def test_flushes_go_on_beside_the_loop_and_the_rest_goes_at_the_end(usage: UsageStore) -> None:
    meter = Meter(at(HOUR))
    flushed = asyncio.Event()
    loop = asyncio.get_running_loop()

    def write(flush: Flush) -> None:
        usage.add(flush)
        loop.call_soon_threadsafe(flushed.set)

    flusher = Flusher(meter, write, lambda: None, every_s=0.01)
    flusher.start()
    meter.count(PAYER, Counts(1))
    await flushed.wait()
    meter.count(PAYER, Counts(1))
    await flusher.stop()
    assert total(usage).requests == 2


async def test_what_a_server_could_not_write_at_its_end_is_said(caplog: pytest.LogCaptureFixture) -> None:
    def write(_: Flush) -> None:
        raise RegistryUnavailable("down")

    meter = Meter(at(HOUR))
    flusher = Flusher(meter, write, lambda: None)
    meter.count(PAYER, Counts(1, 5))
    assert not await flusher.flush()
    meter.count(PAYER, Counts(1, 7))
    await flusher.stop()
    assert "lost: Counts(requests=2, prompt_tokens=12" in caplog.text


def test_rows_that_wait_are_bounded_and_nothing_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    meter = Meter(at(HOUR), most_rows=10)
    with caplog.at_level(logging.WARNING):
        for number in range(100):
            meter.count(Payer(f"t{number % 30}", f"k{number}", "base", ""), Counts(1, number))
    rows = meter.take()
    assert len(rows) == 21  # ten exact ones, ten by tenant, one for all
    assert sum(counts.requests for counts in rows.values()) == 100
    assert sum(counts.prompt_tokens for counts in rows.values()) == sum(range(100))
    assert Row(HOUR, "_other", "_other", "_other", "") in rows
    assert "isn't told apart by key and adapter" in caplog.text


def test_hours_are_told_apart_as_they_come() -> None:
    now = [HOUR * 3600.0 - 1]
    meter = Meter(lambda: now[0])
    meter.count(PAYER, Counts(1))
    now[0] += 1
    meter.count(PAYER, Counts(1))
    assert [row.hour for row in meter.take()] == [HOUR - 1, HOUR]


def test_servers_add_up_and_reports_group_and_page(usage: UsageStore) -> None:
    day = HOUR // 24
    for server in ("one", "two"):
        rows = {
            Row(24 * day + hour, tenant, key, adapter, digest): Counts(1, 10, 2, 5)
            for hour in (0, 23, 24)
            for tenant, key in (("acme", "k1"), ("acme", "k2"), ("Zeta", "k3"))
            for adapter, digest in (("base", "00"), ("pirate", "01"), ("pirate", "02"))
        }
        for _ in range(2):
            usage.add(Flush(server, 1, rows))
        usage.add(Flush(server, 1, rows))
    assert total(usage) == Counts(54, 540, 108, 270)
    assert [line.group for line in lines(usage, "tenant")] == [("Zeta",), ("acme",)]
    by_day = lines(usage, "day", "key", tenant="acme")
    assert [(line.group, line.counts.requests) for line in by_day] == [
        ((day, "k1"), 12),
        ((day, "k2"), 12),
        ((day + 1, "k1"), 6),
        ((day + 1, "k2"), 6),
    ]
    assert [line.counts.requests for line in lines(usage, "version", adapters=("pirate", "acme/pirate"))] == [18, 18]
    assert [line.group for line in lines(usage, "hour", start=24 * day + 1, end=24 * day + 24)] == [(24 * day + 23,)]
    assert lines(usage, "hour", start=24 * day + 25) == []
    assert lines(usage, start=24 * day + 25)[0].counts == Counts()
    pages, after = [], ()
    while found := lines(usage, "tenant", "adapter", "hour", limit=4, after=after):
        pages += found[:4]
        after = found[:4][-1].group
    assert pages == lines(usage, "tenant", "adapter", "hour")
    assert len(pages) == 12


def counted_in(*hours: int, payers: int = 1) -> dict[Row, Counts]:
    return {Row(hour, f"t{number}", "k1", "base", ""): Counts(1) for hour in hours for number in range(payers)}


async def test_hours_older_than_some_days_are_deleted_in_bounded_steps(usage: UsageStore) -> None:
    cut = HOUR - 400 * 24
    usage.add(Flush("one", 1, counted_in(1, cut - 1, cut, HOUR)))
    usage.add(Flush("one", 2, counted_in(cut - 2, payers=MOST_DELETED + 1)))
    assert usage.delete_before(cut) == MOST_DELETED
    assert lines(usage, "hour")[0].group == (cut - 2,), "the oldest go first"
    expiry = UsageExpiry(usage, 400, at(HOUR + 0.9))
    assert await expiry.expire() == 3
    assert [(line.group, line.counts.requests) for line in lines(usage, "hour")] == [((cut,), 1), ((HOUR,), 1)]
    assert await expiry.expire() == 0
    usage.add(Flush("one", 2, counted_in(HOUR)))
    assert total(usage).requests == 2, "what was added once stays added"


@pytest.mark.parametrize("days", [0, 1])
async def test_a_server_deletes_when_it_starts(usage: UsageStore, days: int) -> None:
    usage.add(Flush("one", 1, counted_in(HOUR - 25, HOUR)))
    deleted = asyncio.Event()
    loop = asyncio.get_running_loop()

    class Watched(UsageStore):
        def delete_before(self, hour: int) -> int:
            found = super().delete_before(hour)
            if not found:
                loop.call_soon_threadsafe(deleted.set)
            return found

    vitals, expiry = Vitals(), UsageExpiry(Watched(usage._database), days, at(HOUR))
    expiry.start(vitals)
    if days:
        await deleted.wait()
    assert vitals.names == (["usage-expiry"] if days else [])
    await expiry.stop()
    assert total(usage).requests == (1 if days else 2)
    assert not vitals.ended


async def test_a_database_that_is_gone_keeps_old_usage_and_no_server_down(
    usage: UsageStore, caplog: pytest.LogCaptureFixture
) -> None:
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()

    class Gone(UsageStore):
        def delete_before(self, hour: int) -> int:
            loop.call_soon_threadsafe(asked.set)
            raise RegistryUnavailable("down")

    vitals, expiry = Vitals(), UsageExpiry(Gone(usage._database), 1)
    expiry.start(vitals)
    await asked.wait()
    async with asyncio.timeout(60):
        while "can't be deleted" not in caplog.text:
            await asyncio.sleep(0)
    assert not vitals.ended
    await expiry.stop()


def test_what_a_deleted_tenant_used_isnt_the_next_ones_of_its_name(store: TenantStore, usage: UsageStore) -> None:
    used = Counts(1, 10, 4, 3)
    for number in (1, 2):
        created = store.create_tenant("acme", occupied=lambda _: None).created
        assert lines(usage, "tenant", tenant="acme") == []
        usage.add(Flush("one", number, {Row(HOUR, "acme", "k", "base", "d"): used}))
        assert [line.counts for line in lines(usage, "tenant", tenant="acme")] == [used]
        store.delete_tenant("acme", occupied=lambda _: None)
        assert [line.counts for line in lines(usage, "tenant", tenant=f"acme~{created:.6f}")] == [used]
    assert len(lines(usage, "tenant")) == 2
