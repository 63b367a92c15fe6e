"""The pool against a model that is a dictionary and a list: who holds what, what can be found, what goes first."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from livery.engine.blocks import BlockPool

BLOCKS = 6


class PoolMachine(RuleBasedStateMachine):
    """Chains of blocks named by tuples of letters, as sequences would hold them."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(BLOCKS, 4)
        self.chains: list[tuple[str, list[int], int]] = []  # letters, blocks, how many are published
        self.known: dict[str, int] = {}  # letters up to a block -> block
        self.unused: list[str] = []  # of the known ones those that nobody holds, the longest unused first

    @rule(letters=st.text("ab", min_size=1, max_size=4))
    def begin(self, letters: str) -> None:
        """A sequence takes what is known of its chain and fresh blocks for the rest, or nothing at all."""
        found = self.pool.match(letters[: end + 1].encode() for end in range(len(letters)))
        expected = []
        while len(expected) < len(letters) and letters[: len(expected) + 1] in self.known:
            expected.append(self.known[letters[: len(expected) + 1]])
        assert found == expected
        missing = len(letters) - len(found)
        idle = [name for name in self.unused if self.known[name] in found]
        fits = missing <= BLOCKS - len(self.held()) - len(idle)
        assert fits == (missing <= self.pool.free_beside(found))
        if not fits:
            assert self.pool.allocate(BLOCKS + 1) is None
            return
        self.pool.hold(found)
        self.unused = [name for name in self.unused if name not in idle]
        blank = BLOCKS - len(set(self.known.values()) | set(self.held()))
        for name in self.unused[: max(0, missing - blank)]:
            del self.known[name]
        self.unused = self.unused[max(0, missing - blank) :]
        fresh = self.pool.allocate(missing)
        assert fresh is not None
        assert not set(fresh) & (set(self.held()) | set(self.known.values())), "given away twice"
        self.chains.append((letters, found + fresh, len(found)))

    @rule(which=st.integers(0, 99))
    def publish(self, which: int) -> None:
        """The next block of a sequence is full."""
        if not self.chains:
            return
        letters, blocks, published = self.chains.pop(which % len(self.chains))
        if published < len(blocks):
            name = letters[: published + 1]
            block = self.pool.publish(blocks[published], name.encode())
            assert block == self.known.get(name, blocks[published])
            self.known[name] = block
            self.unused = [other for other in self.unused if other != name]
            blocks = [*blocks[:published], block, *blocks[published + 1 :]]
            published += 1
        self.chains.append((letters, blocks, published))

    @rule(which=st.integers(0, 99))
    def end(self, which: int) -> None:
        if not self.chains:
            return
        letters, blocks, published = self.chains.pop(which % len(self.chains))
        self.pool.free(blocks)
        held = self.held()
        self.unused += [letters[: end + 1] for end in reversed(range(published)) if blocks[end] not in held]

    @invariant()
    def agrees(self) -> None:
        self.pool.check_invariants()
        held = self.held()
        assert all(self.pool.holders(block) == held[block] for block in range(BLOCKS))
        assert self.pool.num_free == BLOCKS - len(held)
        assert self.pool.num_cached == len(self.known)
        assert all(name[:-1] in self.known for name in self.known if len(name) > 1), "a tail without its head"

    def held(self) -> Counter[int]:
        return Counter(block for _, blocks, _ in self.chains for block in blocks)


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_what_is_withdrawn_is_found_no_more_and_stays_with_its_holders() -> None:
    pool = BlockPool(3, 4)
    blocks = pool.allocate(2)
    assert blocks is not None
    for block, key in zip(blocks, (b"x", b"y"), strict=True):
        pool.publish(block, key)
    pool.withdraw(blocks)
    assert pool.match([b"x", b"y"]) == []
    assert pool.num_free == 1
    again = pool.publish(blocks[0], b"x")
    pool.free(blocks)
    pool.withdraw([again])
    pool.check_invariants()
    assert (pool.num_free, pool.num_cached, pool.evictions) == (3, 0, 0)


def test_freeing_what_nobody_holds_is_a_bug() -> None:
    pool = BlockPool(2, 4)
    blocks = pool.allocate(1)
    assert blocks is not None
    pool.free(blocks)
    with pytest.raises(AssertionError, match="held by nobody"):
        pool.free(blocks)
