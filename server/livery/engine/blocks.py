"""The pool of KV blocks: who holds which, and nothing about what is in them.

    block id   0        1        2        3      …
             [free]  [seq a]  [seq a]  [seq b]

A block holds the keys and values of `block_size` consecutive positions of one sequence, in every layer.
"""

from __future__ import annotations

from collections import deque


class BlockPool:
    """Hands out block ids. The only writer of which block is free."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free: deque[int] = deque(range(num_blocks))
        self._held: set[int] = set()

    @property
    def num_free(self) -> int:
        return len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks hold `num_tokens` positions."""
        return -(-num_tokens // self.block_size)

    def allocate(self, count: int) -> list[int] | None:
        """Take `count` blocks, or none at all when fewer are free."""
        if count > len(self._free):
            return None
        taken = [self._free.popleft() for _ in range(count)]
        self._held.update(taken)
        return taken

    def free(self, blocks: list[int]) -> None:
        """Give blocks back. Freeing a block that isn't held is a bug in the caller."""
        for block in blocks:
            self._held.remove(block)
            self._free.append(block)

    def check_invariants(self) -> None:
        """Every block is either free or held, once. For tests and for idle moments."""
        free = set(self._free)
        assert len(free) == len(self._free), "a block is free twice"
        assert not free & self._held, "a block is both free and held"
        assert len(free) + len(self._held) == self.num_blocks, "a block is lost"
