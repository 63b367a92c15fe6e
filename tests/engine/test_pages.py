"""Pages of a budget: what is handed out never overlaps, and everything comes back."""

from __future__ import annotations

import random

import pytest

from livery.engine.pages import PAGE_BYTES, PageAllocator, PageCount, Run, pages_for, spans


def pages(*counts: int) -> list[int]:
    return [count * PAGE_BYTES for count in counts]


def test_all_pieces_of_one_adapter_lie_in_one_run_where_there_is_one() -> None:
    allocator = PageAllocator(100)
    assert allocator.allocate([PAGE_BYTES + 1, 5, 3 * PAGE_BYTES]) == (Run(0, 2), Run(2, 1), Run(3, 3))
    assert allocator.num_free == 94


def test_pieces_fill_the_smallest_holes_that_hold_them() -> None:
    allocator = PageAllocator(20)
    held = [allocator.allocate(pages(count)) for count in (4, 1, 6, 1, 8)]
    for index in (0, 2):
        assert held[index] is not None
        allocator.free(held[index])
    assert allocator.allocate(pages(3, 6)) == (Run(0, 3), Run(5, 6)), "no run of 9 pages is free"
    assert allocator.allocate(pages(1)) == (Run(3, 1),)


def test_what_does_not_fit_takes_nothing() -> None:
    allocator = PageAllocator(10)
    first, middle, last = (allocator.allocate(pages(count)) for count in (4, 2, 4))
    assert first and middle and last
    allocator.free(first)
    allocator.free(last)
    assert allocator.allocate(pages(3, 5)) is None, "8 pages are free, but no 5 of them are neighbours"
    assert allocator.num_free == 8
    allocator.check_invariants(middle)
    assert allocator.allocate(pages(9)) is None


def test_a_page_freed_twice_is_a_bug() -> None:
    allocator = PageAllocator(10)
    held = allocator.allocate(pages(4))
    assert held is not None
    allocator.free(held)
    with pytest.raises(AssertionError):
        allocator.free(held)


def test_a_budget_of_nothing_holds_what_is_empty() -> None:
    allocator = PageAllocator(0)
    assert allocator.allocate([]) == ()
    assert allocator.allocate([1]) is None
    assert pages_for(0) == 0


def test_a_piece_of_nothing_needs_no_page() -> None:
    allocator = PageAllocator(6)
    first = allocator.allocate(pages(2))
    assert first and allocator.allocate(pages(1)) and allocator.allocate(pages(3))
    allocator.free(first)
    assert allocator.would_fit(pages(1, 0, 1)) and allocator.allocate(pages(1, 0, 1))
    assert allocator.would_fit(pages(0)) and allocator.allocate(pages(0))


def test_pages_without_a_place_always_fit_where_enough_are_free() -> None:
    count = PageCount(10)
    held = [count.allocate(pages(2)) for _ in range(5)]
    assert held[1] and held[3]
    count.free(held[1])
    assert not count.would_fit(pages(4)) and count.allocate(pages(4)) is None
    assert count.would_fit(pages(4), held[3])
    count.free(held[3])
    large = count.allocate(pages(3, 1))
    assert large and count.num_free == 0
    count.check_invariants([*spans(large), *(run for index in (0, 2, 4) for run in held[index] or ())])
    with pytest.raises(AssertionError):
        count.free([Run(0, 11)])


@pytest.mark.parametrize("seed", range(5))
def test_a_long_life_loses_no_page(seed: int) -> None:
    """Adapters of many pieces come and go until the memory is in shreds; in the end it is one run again."""
    rng = random.Random(seed)
    allocator = PageAllocator(500)
    held: list[tuple[Run, ...]] = []
    refused = 0
    outcomes = {True: 0, False: 0}
    for _ in range(1000):
        if held and rng.random() < 0.25:
            pieces = [rng.randrange(0, 25 * PAGE_BYTES) for _ in range(rng.randrange(1, 5))]
            going = [held.pop(rng.randrange(len(held))) for _ in range(rng.randrange(1, min(3, len(held)) + 1))]
            before = allocator.num_free
            foreseen = allocator.would_fit(pieces, (run for runs in going for run in spans(runs)))
            assert allocator.num_free == before, "looking changes nothing"
            for runs in going:
                allocator.free(runs)
            found = allocator.allocate(pieces)
            assert (found is not None) == foreseen, "what was foreseen came otherwise"
            allocator.free(found or ())
            outcomes[foreseen] += 1
        else:
            runs = allocator.allocate([rng.randrange(0, 9 * PAGE_BYTES) for _ in range(rng.randrange(1, 12))])
            refused += runs is None
            held += [runs] if runs is not None else []
        allocator.check_invariants(run for runs in held for run in runs)
    assert refused > 20
    assert min(outcomes.values()) > 20
    for runs in held:
        allocator.free(runs)
    assert allocator.allocate(pages(500)) == (Run(0, 500),)
