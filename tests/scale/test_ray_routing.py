"""Which replica a request goes to, and what a replica says it has: no Ray in it."""

from __future__ import annotations

from collections import Counter

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from livery.scale.ray_routing import AND, UNEVEN, Announced, Learned, Standing, adapter_id, asked_id, is_among, ranked

KEY = ((b"authorization", b"Bearer lv-one"),)
OTHER = ((b"authorization", b"Bearer lv-two"),)


def body(model: object) -> bytes:
    return orjson.dumps({"model": model, "messages": []})


def first(asked: str, standing: list[Standing], busy_at: int = 8) -> str:
    return ranked(asked, standing, busy_at)[0][0].replica


def replicas(count: int, ongoing: int = 0) -> list[Standing]:
    return [Standing(f"r{index}", False, ongoing) for index in range(count)]


def test_an_id_is_of_key_and_model() -> None:
    pirate = asked_id(KEY, body("pirate"))
    assert pirate == asked_id((*KEY, (b"accept", b"*/*")), b" \n" + body("pirate"))
    assert len({pirate, asked_id(KEY, body("sailor")), asked_id(OTHER, body("pirate")), asked_id((), b"")}) == 4
    assert "pirate" not in pirate
    assert asked_id(((b"x-api-key", b"lv-one"),), body("pirate")) != asked_id((), body("pirate"))


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"model=pirate", body(None), body(7), body(""), body(["pirate"]), b'{"a": ' * 9000]
)
def test_what_names_no_model_has_none(content: bytes) -> None:
    assert asked_id(KEY, content) == ""


def test_who_has_it_comes_first_unless_busy() -> None:
    for holder in ("r0", "r1", "r2"):
        standing = [Standing(one.replica, one.replica == holder, 7) for one in replicas(3)]
        assert first("pirate", standing) == holder
        full = [Standing(one.replica, one.has, 8 if one.has else 0) for one in standing]
        spilled = ranked("pirate", full, 8)
        assert spilled[0][0].replica != holder
        assert [one.replica for one in spilled[-1]] == ["r0", "r1", "r2"]


def test_what_a_busy_one_passes_on_goes_to_the_same_other_one() -> None:
    standing = replicas(5)
    home = first("pirate", standing)
    busy = [Standing(one.replica, False, 99 if one.replica == home else 0) for one in standing]
    assert len({first("pirate", busy[shift:] + busy[:shift]) for shift in range(5)}) == 1
    assert first("pirate", busy) != home


def test_when_all_are_busy_who_has_it_comes_first_up_to_its_share() -> None:
    for holder in ("r0", "r1", "r2"):
        even = [Standing(one.replica, one.replica == holder, 20) for one in replicas(3)]
        assert first("pirate", even) == holder
        uneven = [Standing(one.replica, one.has, 30 if one.has else 15) for one in even]
        assert first("pirate", uneven) != holder
        assert uneven in ranked("pirate", uneven, 8), "for when nobody else takes it"


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 99)), min_size=1, max_size=9), st.integers(1, 64))
def test_no_replica_is_asked_first_that_has_far_more_than_its_share(
    drawn: list[tuple[bool, int]], busy_at: int
) -> None:
    standing = [Standing(f"r{index}", has, ongoing) for index, (has, ongoing) in enumerate(drawn)]
    chosen, *_ = ranked("pirate", standing, busy_at)
    share = (1 + sum(one.ongoing for one in standing)) / len(standing)
    assert len(chosen) == 1, "somebody always has less than that"
    assert chosen[0].ongoing < max(busy_at, UNEVEN * share)


def test_of_those_that_have_it_and_of_those_that_do_not_the_least_loaded_come_first() -> None:
    standing = [Standing(f"r{index}", index < 3, load) for index, load in enumerate((12, 10, 11, 12, 9, 40))]
    assert [rank[0].replica for rank in ranked("pirate", standing, 8)] == ["r1", "r2", "r0", "r4", "r3", "r0"]


def test_where_little_is_under_way_an_adapter_has_one_place() -> None:
    for has in (True, False):
        home = first("pirate", [Standing(one.replica, has, 0) for one in replicas(4)])
        busier = [Standing(one.replica, has, 7 if one.replica == home else 0) for one in replicas(4)]
        assert first("pirate", busier) == home


def test_one_with_far_more_than_its_share_is_busy() -> None:
    """By which a hot adapter comes to be on several, before its replica has all that it computes together."""
    for load, follows in ((49, True), (51, False)):
        standing = [Standing("r0", True, load), *(Standing(f"r{index}", False, 37) for index in (1, 2, 3))]
        assert (first("pirate", standing) == "r0") is follows


def test_requests_for_no_adapter_go_anywhere() -> None:
    standing = replicas(3)
    assert ranked("", standing, 8) == [standing]


def test_cold_adapters_spread_and_stay_when_replicas_come() -> None:
    names = [f"adapter-{index}" for index in range(2000)]
    before = {name: first(name, replicas(4)) for name in names}
    assert all(abs(count - 500) < 100 for count in Counter(before.values()).values())
    after = {name: first(name, replicas(5)) for name in names}
    moved = {name for name in names if before[name] != after[name]}
    assert {after[name] for name in moved} == {"r4"}
    assert abs(len(moved) - 400) < 100


def test_a_replica_says_what_is_under_way_and_in_memory() -> None:
    announced = Announced()
    announced.begin("one")
    announced.begin("one")
    announced.begin("")
    assert announced.ids(()) == {"one"}
    announced.end("one", "acme/pirate")
    announced.end("", None)
    assert announced.ids(()) == {"one"}
    announced.end("one", "acme/pirate")
    assert announced.ids(()) == frozenset()
    pirate = adapter_id("acme/pirate")
    assert announced.ids({"acme/pirate"}) == {"one", pirate}
    announced.begin("one")
    announced.end("one", None)  # its name is gone, or leads to the base now
    assert announced.ids({"acme/pirate"}) == frozenset(), "nobody asks for it here any more"
    announced.begin(pirate)
    announced.end(pirate, "acme/pirate")
    assert announced.ids({"acme/pirate", "acme/sailor"}) == {pirate}


def test_of_ids_that_came_long_ago_a_replica_says_nothing() -> None:
    announced = Announced(most=3)
    for asked in ("a", "b", "c", "a", "d"):
        announced.begin(asked)
        announced.end(asked, "pirate")
    assert announced.ids({"pirate"}) == {"c", "a", "d", adapter_id("pirate")}


class Replicas:
    """Some with nothing to do, and an ingress that asks them for adapters which each keeps for good."""

    def __init__(self, count: int, leads: dict[tuple[bytes, str], str]) -> None:
        """`leads`: the adapter's name in full by key and what is asked for."""
        self.learned = Learned()
        self._leads = leads
        self._announced = [Announced() for _ in range(count)]
        self.loaded: list[set[str]] = [set() for _ in range(count)]

    def ask(self, key: bytes, model: str) -> None:
        asked = asked_id(((b"authorization", key),), body(model))
        told = self.learned.told(asked)
        standing = [
            Standing(str(index), is_among(one.ids(loaded), told), 0)
            for index, (one, loaded) in enumerate(zip(self._announced, self.loaded, strict=True))
        ]
        chosen = int(first(told, standing))
        adapter = self._leads[key, model]
        self._announced[chosen].begin(told)
        self._announced[chosen].end(told, adapter)
        self.loaded[chosen].add(adapter)
        self.learned.note(asked, adapter_id(adapter))


def test_an_adapter_has_one_place_however_many_keys_ask_for_it() -> None:
    keys = [f"key-{index}".encode() for index in range(20)]
    replicas = Replicas(8, {(key, "pirate"): "pirate" for key in keys})
    for key in keys:
        replicas.ask(key, "pirate")
    assert [one for one in replicas.loaded if one] == [{"pirate"}]


def test_of_those_that_have_an_adapter_one_is_its_place_also_before_that_is_learned() -> None:
    held = [Standing(one.replica, True, 0) for one in replicas(16)]
    asked = {asked_id(((b"authorization", key),), body("pirate")) for key in (b"one", b"two", b"three")}
    assert {first(told, held) for told in (*asked, adapter_id("pirate"))} == {first(adapter_id("pirate"), held)}


def test_after_its_first_answer_an_alias_goes_where_the_adapter_is() -> None:
    names = ("pirate", "favourite", "pirate@0123456789ab")
    replicas = Replicas(8, {(b"key", name): "pirate" for name in names})
    for name in names:
        replicas.ask(b"key", name)
    told = {replicas.learned.told(asked_id(((b"authorization", b"key"),), body(name))) for name in names}
    assert told == {adapter_id("pirate")}


def test_what_tenants_call_the_same_spreads() -> None:
    leads = {(f"key-{index}".encode(), "bot"): f"tenant-{index}/bot" for index in range(400)}
    replicas = Replicas(4, leads)
    for _ in range(2):
        for key, model in leads:
            replicas.ask(key, model)
    assert sum(map(len, replicas.loaded)) == 400, "each was loaded once"
    assert all(abs(len(one) - 100) < 40 for one in replicas.loaded)


def test_an_ingress_forgets_what_answers_no_more_and_what_was_long_unused() -> None:
    learned = Learned(most=2)
    learned.note("a" + AND + "x", "pirate")
    learned.note("", "pirate")
    assert (learned.told("a" + AND + "x"), learned.told("")) == ("pirate", "")
    learned.note("a" + AND + "x", "")
    assert learned.told("a" + AND + "x") == "", "the base, which any replica has"
    learned.note("a" + AND + "x", None)
    assert learned.told("a" + AND + "x") == "a" + AND + "x"
    for asked in ("b", "c", "d"):
        learned.note(asked, "sailor")
    assert [learned.told(asked) for asked in ("b", "c", "d")] == ["b", "sailor", "sailor"]
