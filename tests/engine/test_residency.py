"""Which versions are in which memory: who goes for whom, what is read when, and that nothing in use ever goes."""

from __future__ import annotations

from livery.engine.base import AdapterRef, Asker
from livery.engine.pages import PAGE_BYTES
from livery.engine.reads import NOT_WANTED, READ_AHEAD, ReadQueue
from livery.engine.residency import Residency

PLENTY = 1000


def ref(name: str) -> AdapterRef:
    return AdapterRef.of(name, f"/adapters/{name}")


class Tiers:
    """A residency whose loader and copies are as fast as they are asked. Sizes are pages."""

    def __init__(self, device: int, host: int = PLENTY, *, one_memory: bool = False) -> None:
        self.residency = Residency(device * PAGE_BYTES, host * PAGE_BYTES, one_memory=one_memory)

    def queue(self, *names: str) -> None:
        """Requests for these wait, in this order."""
        self.residency.expect(names)
        for name in names:
            self.residency.want(ref(name))

    def arrive(self, seconds: float = 1.0, **sizes: int | list[int]) -> None:
        """These are read, asked for or not, each of one piece or of several."""
        for name, size in sizes.items():
            self.residency.load(ref(name))
            pieces = [size] if isinstance(size, int) else size
            self.residency.hosted(name, [pages * PAGE_BYTES for pages in pieces], seconds)

    def place(self) -> list[str]:
        placements = self.residency.place()
        for placement in placements:
            self.residency.placed(placement.digest, 0.1)
        self.residency.take_drops()
        self.residency.check_invariants()
        return [placement.digest for placement in placements]

    def use(self, name: str) -> None:
        self.residency.pin(name)
        self.residency.unpin(name)

    def gone(self) -> list[str]:
        return self.residency.take_evictions()


def test_a_version_retired_while_it_loads_is_dropped_on_arrival() -> None:
    residency = Residency(10 * PAGE_BYTES, PLENTY)
    assert not residency.want(ref("a"))
    assert residency.take_loads() == [ref("a")]
    assert not residency.retire("a"), "it has begun"
    assert not residency.hosted("a", [5], 1.0)
    assert residency.place() == []
    assert not residency.want(ref("a")), "wanted again, it is read again"
    assert residency.take_loads() == [ref("a")]
    assert residency.hosted("a", [5], 1.0)
    assert [placement.digest for placement in residency.place()] == ["a"]


def test_each_place_of_a_version_is_tried_once() -> None:
    """Of a version asked for twice, the copy that one of the two was sending may be gone by now."""
    residency = Residency(10 * PAGE_BYTES, PLENTY)
    copies = [AdapterRef.of("a", f"/incoming/{number}") for number in range(2)]
    residency.load(copies[0])
    residency.load(copies[1])
    assert residency.take_loads() == [copies[0]]
    assert residency.read_elsewhere("a", [ref("a"), ref("a")])
    assert residency.take_loads() == [copies[1]]
    residency.want(ref("a"))
    assert residency.read_elsewhere("a", [ref("a")])
    assert residency.take_loads() == [ref("a")]
    residency.check_invariants()
    assert not residency.read_elsewhere("a", [ref("a"), *copies]), "all were tried"
    residency.failed("a")
    residency.want(ref("a"))
    assert residency.take_loads() == [ref("a")], "a later request tries again"
    residency.retire("a")
    assert not residency.read_elsewhere("a", copies), "nobody wants it any more"


def test_a_version_nobody_waits_for_evicts_nobody() -> None:
    """Registering adapters reads and verifies them, but the memory belongs to those in use."""
    tiers = Tiers(device=10, host=20)
    tiers.queue("hot")
    tiers.arrive(hot=8)
    assert tiers.place() == ["hot"]
    tiers.queue()
    for number in range(50):
        tiers.arrive(**{f"new{number}": 8})
        assert tiers.place() == []
    assert tiers.residency.resident == ("hot",)
    assert tiers.residency.host_bytes <= 20 * PAGE_BYTES
    tiers.residency.evict("hot")
    tiers.queue("hot")
    assert tiers.place() == ["hot"], "its image is still in host memory"


def test_what_nobody_waits_for_takes_free_memory_once() -> None:
    tiers = Tiers(device=10)
    tiers.arrive(a=4, b=4, c=4)
    assert tiers.place() == ["a", "b"]
    tiers.residency.evict("a")
    assert tiers.place() == [], "it had its chance: no copying to and fro while nobody asks"
    tiers.queue("c")
    assert tiers.place() == ["c"]


def test_a_request_makes_room_only_at_the_cost_of_those_behind_it() -> None:
    tiers = Tiers(device=10)
    tiers.queue("a", "b", "c")
    tiers.arrive(a=5, b=5, c=5)
    assert tiers.place() == ["a", "b"]
    assert tiers.place() == [] and tiers.gone() == [], "a and b wait for other things than room, and stay"
    tiers.queue("c", "a", "b")
    assert tiers.place() == ["c"]
    assert tiers.gone() == ["b"], "the last of the queue"


def test_a_large_version_without_room_holds_nobody_up() -> None:
    tiers = Tiers(device=10, host=9)
    tiers.queue("running")
    tiers.arrive(running=4)
    tiers.place()
    tiers.residency.pin("running")
    tiers.queue("large", "small")
    tiers.arrive(large=8, small=2)
    assert tiers.place() == ["small"]
    assert tiers.residency.lacks_room("large")
    tiers.residency.unpin("running")
    assert tiers.place() == ["large"]


def test_reading_ahead_is_bounded_by_bytes() -> None:
    """Nothing is read for a request while what those before it wait for fills the host."""
    tiers = Tiers(device=4, host=10)
    tiers.queue("running")
    tiers.arrive(running=4)
    tiers.place()
    tiers.residency.pin("running")
    names = [f"d{number}" for number in range(9)]
    tiers.queue(*names)
    read = []
    while loads := tiers.residency.take_loads():
        assert len(loads) <= READ_AHEAD
        for adapter in loads:
            read.append(adapter.digest)
            tiers.residency.hosted(adapter.digest, [3 * PAGE_BYTES], 1.0)
        tiers.place()
    assert read == names[:3], "three of three pages each, beside the running one's image, and the host is full"
    assert tiers.residency.host_bytes <= 10 * PAGE_BYTES
    tiers.queue(*names[3:], *names[:3])
    assert [adapter.digest for adapter in tiers.residency.take_loads()] == names[3:5], "now these come first"


def test_at_most_two_are_read_at_a_time_and_one_not_begun_is_cancelled() -> None:
    residency = Residency(10 * PAGE_BYTES, PLENTY)
    for number in range(READ_AHEAD + 2):
        residency.load(ref(f"d{number}"))
    assert len(residency.take_loads()) == READ_AHEAD
    assert residency.take_loads() == []
    assert residency.retire(f"d{READ_AHEAD + 1}"), "one not begun is cancelled"
    residency.failed("d0")
    assert [adapter.digest for adapter in residency.take_loads()] == [f"d{READ_AHEAD}"]


def test_what_requests_want_is_read_in_their_order_and_a_proof_in_turn() -> None:
    residency = Residency(10 * PAGE_BYTES, PLENTY * PAGE_BYTES)
    residency.load(ref("proof"))
    for name in ("third", "second", "first"):
        residency.want(ref(name))
    residency.want(ref("aborted"))
    residency.expect(["first", "second", "third"])
    order = []
    while loads := residency.take_loads():
        order += [adapter.digest for adapter in loads]
        for adapter in loads:
            residency.failed(adapter.digest)
    assert order == ["first", "proof", "second", "third"], "and nothing for a request that is gone"


def test_what_is_dear_to_bring_back_stays_but_not_for_ever() -> None:
    """Per byte: the slow ones outlast the quick ones of the same age, until they weren't used for long."""
    tiers = Tiers(device=6)
    tiers.queue("slow", "quick")
    tiers.arrive(slow=3, quick=3)
    for placement, seconds in zip(tiers.residency.place(), (30.0, 0.01), strict=True):
        tiers.residency.placed(placement.digest, seconds)
    tiers.use("quick")
    tiers.queue("new0")
    tiers.arrive(new0=3)
    tiers.place()
    assert tiers.gone() == ["quick"]
    for number in range(1, 1000):
        tiers.use(f"new{number - 1}")
        tiers.queue(f"new{number}")
        tiers.arrive(**{f"new{number}": 3})
        tiers.place()
        if tiers.gone() == ["slow"]:
            break
    assert 100 < number < 999


def test_leaving_the_device_leaves_the_image() -> None:
    for one_memory in (False, True):
        tiers = Tiers(device=4, host=4, one_memory=one_memory)
        tiers.queue("a")
        tiers.arrive(a=4)
        tiers.place()
        assert tiers.residency.host_bytes == (0 if one_memory else 4 * PAGE_BYTES)
        tiers.queue("b")
        tiers.residency.take_loads()
        tiers.residency.hosted("b", [4 * PAGE_BYTES], 1.0)
        for placement in tiers.residency.place():
            tiers.residency.placed(placement.digest, 0.1)
        assert tiers.gone() == ["a"]
        assert tiers.residency.take_drops() == ([] if one_memory else ["a"]), "two memories hold b twice"
        assert tiers.residency.load(ref("a")) is one_memory
        tiers.residency.check_invariants()


def test_an_image_may_go_while_its_version_is_used() -> None:
    tiers = Tiers(device=20, host=5)
    tiers.queue("a", "b")
    tiers.arrive(a=4)
    tiers.place()
    tiers.residency.pin("a")
    tiers.arrive(b=4)
    tiers.place()
    assert set(tiers.residency.resident) == {"a", "b"}
    assert tiers.residency.host_bytes == 4 * PAGE_BYTES
    tiers.residency.unpin("a")
    tiers.residency.evict("a")
    tiers.residency.check_invariants()


def test_a_version_retired_on_its_way_to_the_device_is_freed_on_arrival() -> None:
    tiers = Tiers(device=10)
    tiers.arrive(a=4)
    assert len(tiers.residency.place()) == 1
    tiers.residency.retire("a")
    assert tiers.residency.resident_bytes == 4 * PAGE_BYTES, "the copy still writes there"
    tiers.residency.placed("a", 0.1)
    assert tiers.gone() == ["a"]
    assert tiers.residency.take_drops() == ["a"]
    assert tiers.residency.resident_bytes == tiers.residency.host_bytes == 0


def test_what_is_kept_makes_room_for_itself_and_goes_last() -> None:
    tiers = Tiers(device=10)
    tiers.queue("hot")
    tiers.arrive(hot=8)
    tiers.place()
    tiers.queue()
    tiers.residency.keep(["kept"])
    tiers.arrive(kept=6)
    assert tiers.place() == ["kept"], "nobody waits for it, and yet it is there"
    assert tiers.gone() == ["hot"]
    tiers.queue("small")
    tiers.arrive(small=4)
    assert tiers.place() == ["small"]
    tiers.queue("other")
    tiers.arrive(other=4)
    assert tiers.place() == ["other"]
    assert tiers.gone() == ["small"], "longer unused, but kept: the other goes"
    tiers.residency.evict("kept")
    tiers.residency.keep(["kept"])
    tiers.queue()
    assert tiers.place() == ["kept"]


def test_shreds_of_memory_are_made_room_of() -> None:
    """Pages enough, but no run of them: more go than their bytes say, and the version fits."""
    tiers = Tiers(device=12)
    names = [f"d{number}" for number in range(6)]
    tiers.arrive(**dict.fromkeys(names, 2))
    assert tiers.place() == names
    for name in names[::2]:
        tiers.residency.evict(name)
    tiers.queue("wide")
    tiers.arrive(wide=5)
    assert tiers.place() == ["wide"]
    assert len(tiers.residency.resident) < 4


def test_what_nobody_wants_any_more_is_not_read_however_much_may_be() -> None:
    queue = ReadQueue()
    queue.add(ref("left"))
    assert queue.take({}, lambda _: NOT_WANTED, lambda _: False) == []
    assert "left" not in queue


def in_shreds(*, one_memory: bool) -> Tiers:
    """A memory of ten pages that five versions fill, of which running requests pin the second and the fourth."""
    tiers = Tiers(device=10, one_memory=one_memory)
    for name in "abcde":
        tiers.arrive(**{name: 2})
        assert tiers.place() == [name]
    for name in "bd":
        tiers.residency.pin(name)
    return tiers


def test_nobody_is_evicted_for_pages_that_are_not_neighbours() -> None:
    tiers = in_shreds(one_memory=False)
    tiers.queue("large")
    tiers.arrive(large=4)
    assert not tiers.residency.frees_enough("large", []), "six pages may come free, but no four in a row"
    assert tiers.residency.frees_enough("large", ["b"])
    assert tiers.place() == []
    assert tiers.gone() == []
    tiers.queue("large", "split")
    tiers.arrive(split=[2, 2])
    assert tiers.place() == ["split"], "its pieces fit where one of four pages doesn't"
    assert tiers.gone() == ["a", "c"]
    tiers.residency.unpin("b")
    tiers.queue("large")
    assert tiers.place() == ["large"]


def test_where_images_are_computed_on_as_they_lie_pages_have_no_place() -> None:
    tiers = in_shreds(one_memory=True)
    tiers.queue("large")
    tiers.arrive(large=4)
    assert tiers.residency.frees_enough("large", [])
    assert tiers.place() == ["large"]
    assert tiers.gone() == ["a", "c"]


def test_what_a_tenant_would_give_up_stays_where_that_is_not_enough() -> None:
    tiers = Tiers(device=10)
    asker = Asker("t", 1.0, 6 * PAGE_BYTES)
    tiers.residency.expect(["own"], {"own": [asker]})
    tiers.arrive(own=3)
    tiers.place()
    tiers.arrive(busy=7)
    tiers.place()
    tiers.residency.pin("busy")
    tiers.residency.expect(["next"], {"next": [asker]})
    tiers.arrive(next=5)
    assert tiers.place() == []
    assert tiers.gone() == [], "it would have gone for nothing"
    tiers.residency.unpin("busy")
    assert tiers.place() == ["next"]
    assert sorted(tiers.gone()) == ["busy", "own"]
