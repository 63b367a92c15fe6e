"""Several processes and threads on one registry, and processes killed in the middle of a change."""

from __future__ import annotations

import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable

import pytest
from sqlalchemy import select

from adapters.sql_facts import assert_consistent, facts_of
from adapters.sql_worker import NAMES, Standing, change_for_ever, count_up, open_once, processes, standing
from livery_adapters.registry import GenerationMismatch, Registry
from livery_adapters.registry.schema import adapters, versions

ROUNDS = int(os.environ.get("LIVERY_KILL_ROUNDS", "30"))


def test_processes_that_open_an_empty_database_at_once_all_can(new_url: Callable[[], str]) -> None:
    url = new_url()
    children = [processes.Process(target=open_once, args=(url,)) for _ in range(6)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * 6
    registry = Registry.open(url)
    assert registry.count() == 0
    registry.close()


def test_processes_lose_no_update(new_url: Callable[[], str]) -> None:
    url, times = new_url(), 40
    children = [processes.Process(target=count_up, args=(url, worker, times)) for worker in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * 3
    registry = Registry.open(url)
    history = registry.versions("counter")
    assert registry.get("counter").generation == len(history) == 3 * times
    # Each version says which generation it followed: nobody overwrote what they hadn't seen.
    assert [version.number for version in history] == list(range(3 * times, 0, -1))
    for worker in range(3):
        assert registry.get(f"own{worker}").generation == times
    assert registry.changes(0)[0] == 6 * times
    assert_consistent(registry)
    registry.close()


def test_threads_share_one_registry(registry: Registry) -> None:
    won: list[int] = []

    def race(worker: int) -> None:
        for generation in range(20):
            try:
                facts = facts_of(f"{worker}/{generation}")
                registry.put("prize", facts, source="api", origin=str(worker), expected_generation=generation)
            except GenerationMismatch:
                continue
            won.append(generation)

    threads = [threading.Thread(target=race, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == list(range(len(won)))  # each generation was won once
    assert registry.get("prize").generation == len(won) > 0


def test_other_processes_changes_are_seen(new_url: Callable[[], str]) -> None:
    url = new_url()
    here, there = Registry.open(url), Registry.open(url)
    seen, _ = here.changes(-1)
    there.put("pirate", facts_of("one"), source="api", origin="")
    assert here.changes(seen) == (seen + 1, ("pirate",))
    assert here.get("pirate") == there.get("pirate")
    here.close()
    there.close()


def test_a_reading_transaction_sees_one_moment(new_url: Callable[[], str]) -> None:
    url = new_url()
    here, there = Registry.open(url), Registry.open(url)
    there.put("pirate", facts_of("one"), source="api", origin="")
    with here.database.read() as connection:
        before = connection.execute(select(adapters.c.generation)).all()
        there.put("pirate", facts_of("two"), source="api", origin="")
        assert connection.execute(select(adapters.c.generation)).all() == before == [(1,)]
        assert connection.execute(select(versions.c.number)).all() == [(1,)]
    assert here.get("pirate").generation == 2
    here.close()
    there.close()


@pytest.mark.timeout(60 + 5 * ROUNDS)
def test_a_kill_at_any_moment_loses_nothing_acknowledged(new_url: Callable[[], str]) -> None:
    url = new_url()
    choose = random.Random()
    told: dict[str, Standing] = dict.fromkeys(NAMES, (None, ()))
    acknowledged = 0
    for _ in range(ROUNDS):
        unsure, done = _run_and_kill(url, choose, told)
        acknowledged += done
        registry = Registry.open(url)
        assert_consistent(registry)
        for name in NAMES:
            found = standing(registry, name)
            if name == unsure and found != told[name]:  # it is done, and nobody was told so
                assert _is_next(found, told[name])
                told[name] = found
            assert found == told[name]
        registry.close()
        _assert_integrity(url)
    assert acknowledged > ROUNDS


def _run_and_kill(url: str, choose: random.Random, told: dict[str, Standing]) -> tuple[str | None, int]:
    """Kill a process amid its changes, noting in `told` what it acknowledged. The name it was at, how many."""
    receiver, sender = processes.Pipe(duplex=False)
    child = processes.Process(target=change_for_ever, args=(url, choose.getrandbits(32), sender), daemon=True)
    child.start()
    sender.close()
    wanted, done, unsure = choose.randint(0, 12), 0, None
    try:
        while True:
            if done >= wanted and child.exitcode is None:
                time.sleep(choose.random() * 0.01)  # the moment is to be a random one
                child.kill()
                wanted = 1 << 30
            kind, name, record = receiver.recv()
            unsure = name if kind == "begins" else None
            if kind == "done":
                told[name] = record
                done += 1
    except EOFError:
        child.join()
    assert child.exitcode == -9
    return unsure, done


def _is_next(found: Standing, before: Standing) -> bool:
    """Whether one whole change leads from `before` to `found`."""
    after, first = found[0], before[0]
    assert after is not None
    steps = after.generation - (first.generation if first else 0)
    new = [version for version in found[1] if version not in before[1]]
    # Either a version became active, new or not, or nothing but the pin or an error changed.
    return (steps == 1 and len(new) <= 1) or (steps == 0 and found[1] == before[1])


def _assert_integrity(url: str) -> None:
    if url.startswith("sqlite:///"):
        with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        connection.close()
