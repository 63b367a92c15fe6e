"""Threads that tenants take in turn: order, failures, and who leaves before its turn."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import CancelledError, Future
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livery.beside import SharedThreads, Together


class Held:
    """One thread that is busy until `go`; what runs on it afterwards is written down."""

    def __init__(self) -> None:
        self.threads = SharedThreads(1, "held")
        self.done: list[str] = []
        self._go = threading.Event()
        started = threading.Event()
        self.threads.submit("nobody", lambda: (started.set(), self._go.wait(30)))
        assert started.wait(30)

    def submit(self, tenant: str, name: str) -> Future[None]:
        return self.threads.submit(tenant, partial(self.done.append, name))

    def go(self) -> list[str]:
        """Everything done, in its order."""
        last = self.threads.submit("last", lambda: None)
        self._go.set()
        last.result(30)
        return self.done


def test_tenants_take_turns_however_much_one_has() -> None:
    held = Held()
    asked = [held.submit(name[0], name) for name in ("a1", "a2", "a3", "a4", "b1", "c1", "c2")]
    held.go()
    for one in asked:
        one.result(30)
    assert held.done == ["a1", "b1", "c1", "a2", "c2", "a3", "a4"]


@given(st.lists(st.sampled_from("abcd"), max_size=30))
def test_nobody_has_two_turns_while_another_waits(asked: list[str]) -> None:
    held = Held()
    futures = [held.submit(tenant, f"{tenant}{number}") for number, tenant in enumerate(asked)]
    held.go()
    for one in futures:
        one.result(30)
    for tenant in "abcd":
        own = [name for name in held.done if name[0] == tenant]
        assert own == [f"{tenant}{number}" for number, one in enumerate(asked) if one == tenant], "each in its order"
        for place, name in enumerate(held.done):
            turns = [one for one in held.done[:place] if one[0] == name[0]]
            waits = tenant in (one[0] for one in held.done[place:])
            had = [one for one in held.done[:place] if one[0] == tenant]
            assert not waits or len(turns) <= len(had) + 1 or tenant == name[0]


def test_a_failure_is_its_waiters() -> None:
    threads = SharedThreads(1, "failing")

    def fails() -> None:
        raise ValueError("as by a defect")

    with pytest.raises(ValueError, match="as by a defect"):
        asyncio.run(threads.run("a", fails))
    assert asyncio.run(threads.run("a", lambda: 3)) == 3


def test_who_leaves_before_its_turn_is_passed_over() -> None:
    held = Held()
    gone, stays = held.submit("a", "gone"), held.submit("a", "stays")
    assert gone.cancel()
    held.go()
    stays.result(30)
    assert held.done == ["stays"]
    with pytest.raises(CancelledError):
        gone.result()


def test_threads_work_side_by_side() -> None:
    threads, meeting = SharedThreads(2, "both"), threading.Barrier(2)

    async def both() -> None:
        await asyncio.gather(*(threads.run("a", lambda: meeting.wait(30)) for _ in range(2)))

    asyncio.run(both())


def test_who_leaves_while_its_work_is_done_leaves_the_thread_to_its_end() -> None:
    threads, begun, go_on = SharedThreads(1, "left"), threading.Event(), threading.Event()
    order: list[str] = []

    def slow() -> None:
        begun.set()
        go_on.wait(30)
        order.append("slow")

    async def leave() -> None:
        waiting = asyncio.create_task(threads.run("a", slow))
        await asyncio.to_thread(begun.wait, 30)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        following = asyncio.create_task(threads.run("b", lambda: order.append("next")))
        await asyncio.sleep(0)
        go_on.set()
        await following

    asyncio.run(leave())
    assert order == ["slow", "next"]


def test_who_asks_together_gets_what_was_found_after_they_asked() -> None:
    begun: list[str] = []

    async def run() -> None:
        together, go_on = Together[str, int](), asyncio.Event()

        async def find(key: str) -> int:
            begun.append(key)
            number = len(begun)
            await go_on.wait()
            return number

        def ask(key: str) -> asyncio.Task[int]:
            return asyncio.create_task(together.do(key, lambda: find(key)))

        first = ask("a")
        while not begun:
            await asyncio.sleep(0)
        later, leaves, other = [ask("a") for _ in range(3)], ask("a"), ask("b")
        while len(begun) < 2:
            await asyncio.sleep(0)
        leaves.cancel()
        assert begun == ["a", "b"]
        go_on.set()
        assert (await first, await other) == (1, 2)
        assert await asyncio.gather(*later) == [3, 3, 3]
        assert await ask("a") == 4
        assert not together._next and not together._under_way

    asyncio.run(run())
    assert begun == ["a", "b", "a", "a"]


def test_what_fails_fails_for_all_who_asked_together_and_for_nobody_later() -> None:
    async def run() -> None:
        together = Together[str, int]()
        outcomes: list[int | Exception] = [ValueError("once"), 2]

        async def find() -> int:
            found = outcomes.pop(0)
            if isinstance(found, Exception):
                raise found
            return found

        failed = await asyncio.gather(*(together.do("a", find) for _ in range(3)), return_exceptions=True)
        assert [str(one) for one in failed] == ["once"] * 3
        assert await together.do("a", find) == 2

    asyncio.run(run())
