"""The last use that ends is told, once."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livery_adapters.leases import Lease, Leases


def test_the_last_use_that_ends_is_told_once() -> None:
    told: list[str] = []
    leases = Leases(told.append)
    leases.keep("a")
    with leases.hold("a") as lease:
        assert (lease.digest, leases.in_use("a")) == ("a", 2)
        leases.drop("a")
        assert told == []
    assert (told, leases.in_use("a")) == (["a"], 0)
    lease.release()
    assert told == ["a"]
    leases.hold("a").release()
    assert told == ["a", "a"]


def test_a_lease_is_released_when_its_request_fails() -> None:
    told: list[str] = []
    leases = Leases(told.append)
    with pytest.raises(RuntimeError), leases.hold("a"):
        raise RuntimeError
    assert told == ["a"]


def test_more_drops_than_uses_are_a_mistake() -> None:
    leases = Leases(lambda _: None)
    with pytest.raises(ValueError, match="not in use"):
        leases.drop("a")


def test_whoever_is_told_may_use_the_version_again() -> None:
    leases = Leases(lambda digest: leases.keep(digest) if not again else None)
    again: list[int] = []
    leases.hold("a").release()
    assert leases.in_use("a") == 1


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["hold", "release", "keep", "drop"])), max_size=40))
def test_any_order_of_uses_counts_right(steps: list[tuple[str, str]]) -> None:
    told: list[str] = []
    leases, held, kept = Leases(told.append), list[Lease](), Counter[str]()
    for digest, step in steps:
        before = {digest: leases.in_use(digest) for digest in "ab"}
        told.clear()
        if step == "hold":
            held.append(leases.hold(digest))
        elif step == "release" and held:
            held.pop().release()
        elif step == "keep":
            leases.keep(digest)
            kept[digest] += 1
        elif step == "drop" and kept[digest]:
            leases.drop(digest)
            kept[digest] -= 1
        now = {digest: leases.in_use(digest) for digest in "ab"}
        assert now == {digest: kept[digest] + sum(lease.digest == digest for lease in held) for digest in "ab"}
        assert told == [digest for digest in "ab" if before[digest] and not now[digest]]
