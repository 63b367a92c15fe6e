"""Limits per minute over several servers of one database, on clocks of the test's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Connection, select

from livery.tenancy import LevelExchange, LevelStore, LimitExceeded, Limits, Principal, RateLimiter, TenantStore
from livery.tenancy.clock import database_clock
from livery.tenancy.levels import FORGOTTEN_S
from livery.tenancy.schema import levels
from livery_adapters.registry import RegistryUnavailable

MINUTE = Limits(requests_per_minute=60, tokens_per_minute=600)


class Server:
    """One server's limiter, on a clock that differs from the database's and runs as fast."""

    def __init__(self, cluster: Cluster, ahead_s: float) -> None:
        self._cluster = cluster
        self.limiter = RateLimiter(lambda: cluster.now + ahead_s)
        store = LevelStore(cluster.store.database, cluster.clock)
        self.exchange = LevelExchange(self.limiter, store.exchange)

    def let_in(self, count: int, tokens: int = 0, key: str = "k1", limits: Limits = MINUTE) -> int:
        """How many of so many requests it lets in; each uses so many tokens at once."""
        whose = Principal("acme", "user", key, tenant_limits=limits)
        for done in range(count):
            try:
                claim = self.limiter.claim(whose, 0, tokens)
            except LimitExceeded:
                return done
            claim.spend(tokens)
            claim.release()
        return count


class Cluster:
    """A database and its servers. `now` is the database's clock."""

    def __init__(self, url: str) -> None:
        self.now = 1e6
        self.away = False
        self.store = TenantStore.open(url)
        self.servers = [Server(self, ahead_s) for ahead_s in (0.0, -3600.0, 86400.0)]

    def clock(self, connection: Connection) -> float:
        if self.away:
            raise RegistryUnavailable("away")
        return self.now

    async def exchange(self) -> None:
        for server in self.servers:
            await server.exchange.once()

    def rows(self) -> int:
        with self.store.database.read() as connection:
            return len(connection.execute(select(levels)).all())


@pytest.fixture
def cluster(new_url: Callable[[], str]) -> Iterator[Cluster]:
    cluster = Cluster(new_url())
    yield cluster
    cluster.store.close()


async def test_what_one_server_lets_in_another_one_does_not(cluster: Cluster) -> None:
    one, two, three = cluster.servers
    assert (one.let_in(50), two.let_in(1)) == (50, 1)
    await cluster.exchange()
    assert two.let_in(20) == 9
    await cluster.exchange()
    await two.exchange.once()
    assert (two.let_in(1), three.let_in(1)) == (0, 1), "the third hasn't asked yet who else let anybody in"
    await cluster.exchange()
    assert three.let_in(1) == 0


async def test_levels_leak_as_fast_as_the_limit_says_and_are_told_truly(cluster: Cluster) -> None:
    one, two, _ = cluster.servers
    assert (one.let_in(60), two.let_in(1)) == (60, 1)
    await cluster.exchange()
    await cluster.exchange()
    with pytest.raises(LimitExceeded) as caught:
        two.limiter.claim(Principal("acme", "user", "k1", tenant_limits=MINUTE))
    assert caught.value.retry_after == 2, "61 of 60 are used, and one leaks a second"
    cluster.now += 31.0
    assert two.let_in(60) == 30
    await cluster.exchange()
    assert one.let_in(60) == 31, "it told nothing since, so it heard nothing, and what it knew of has leaked"
    await cluster.exchange()
    cluster.now += 29.0
    assert (one.let_in(1), two.let_in(1)) == (0, 1), "what was too much is owed by whoever hears of it"


async def test_tokens_count_like_requests_and_each_key_apart_from_its_tenant(cluster: Cluster) -> None:
    one, two, _ = cluster.servers
    assert one.let_in(5, tokens=100) == 5
    assert two.let_in(1, tokens=1, key="k2") == 1
    await cluster.exchange()
    assert two.let_in(1, tokens=100, key="k2") == 0
    assert two.let_in(1, tokens=99, key="k2") == 1
    assert cluster.rows() == 1, "of keys without limits nothing is kept"


async def test_while_the_database_is_away_each_server_limits_alone_and_tells_later(cluster: Cluster) -> None:
    one, two, _ = cluster.servers
    cluster.away = True
    assert one.let_in(99) == 60
    await cluster.exchange()
    assert one.let_in(99) == 0
    assert two.let_in(1) == 1
    cluster.away = False
    await cluster.exchange()
    assert two.let_in(1) == 0
    cluster.now += 30.0
    await cluster.exchange()
    assert one.let_in(99) == 30


async def test_what_was_used_without_a_limit_counts_against_none_that_comes_or_comes_back(cluster: Cluster) -> None:
    one, two, _ = cluster.servers
    free, bound = Limits(requests_per_minute=6000), Limits(requests_per_minute=6000, tokens_per_minute=1000)
    for limits in (free, bound, free, bound):
        assert one.let_in(40, tokens=25, limits=limits) == 40
        await one.exchange.once()
        assert two.let_in(1, limits=limits) == 1
        await two.exchange.once()
        cluster.now += 60.0
    one.let_in(1, tokens=1, limits=bound)
    await cluster.exchange()
    assert one.let_in(50, tokens=25, limits=bound) == 39, "of 40 that fit one token is used"


async def test_what_long_answers_came_to_owe_is_owed_on_all_servers_for_hours(cluster: Cluster) -> None:
    one, two, _ = cluster.servers
    assert one.let_in(1, tokens=72_000) == 1, "two hours' worth, let in by an empty bucket"
    await cluster.exchange()
    cluster.now += 3601
    other = Principal("other", "user", "k9", tenant_limits=MINUTE)
    one.limiter.claim(other, 1).spend(1)  # whoever tells anything has old levels deleted
    await cluster.exchange()
    assert two.let_in(1, tokens=1) == 1, "it hasn't heard"
    await cluster.exchange()
    with pytest.raises(LimitExceeded, match=r"Please retry in 35\d\d s") as told:
        two.limiter.claim(Principal("acme", "user", "k1", tenant_limits=MINUTE), 1)
    assert told.value.retry_after == 60


async def test_nothing_is_written_while_nothing_is_used_and_old_levels_go(cluster: Cluster) -> None:
    one = cluster.servers[0]
    await cluster.exchange()
    assert cluster.rows() == 0
    assert one.let_in(1) == 1
    await cluster.exchange()
    cluster.now += FORGOTTEN_S + 1
    other = Limits(tokens_per_minute=10)
    whose = Principal("other", "user", "k9", tenant_limits=other)
    one.limiter.claim(whose, 1, 0).spend(1)
    await cluster.exchange()
    with cluster.store.database.read() as connection:
        assert [row.name for row in connection.execute(select(levels))] == ["other"]


def test_the_databases_clock_is_told_in_seconds(cluster: Cluster) -> None:
    with cluster.store.database.read() as connection:
        told = database_clock(connection)
    assert 1.7e9 < told < 1e10
