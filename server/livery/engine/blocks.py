"""The pool of KV blocks: who holds which, which can be found by their key, and nothing about what is in them.

    block id   0        1        2        3        4      …
             [blank]  [a, b]   [seq a]  [seq b]  [idle]
                      shared, found by key       held by nobody, still found by key until it is needed

A block holds the keys and values of `block_size` consecutive positions, in every layer. One under a key is full
and is never written again, so any number of sequences may hold it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection, Iterable, Sequence


class BlockPool:
    """Hands out block ids. The only writer of which block is held, by how many, and under which key."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.evictions = 0  # keys given up because their block was needed
        self._holders = [0] * num_blocks
        self._key_of: list[bytes | None] = [None] * num_blocks
        self._by_key: dict[bytes, int] = {}
        self._blank: deque[int] = deque(range(num_blocks))  # held by nobody, without a key
        self._idle: OrderedDict[int, None] = OrderedDict()  # held by nobody, with one; the next to be evicted first

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._blank) + len(self._idle)

    @property
    def num_cached(self) -> int:
        """Blocks that can be found by their key, held or not."""
        return len(self._by_key)

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks hold `num_tokens` positions."""
        return -(-num_tokens // self.block_size)

    def match(self, keys: Iterable[bytes]) -> list[int]:
        """The published blocks of the leading keys, up to the first unknown one. `hold` them before anything else."""
        found = []
        for key in keys:
            block = self._by_key.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def free_beside(self, blocks: Collection[int]) -> int:
        """How many blocks nobody would hold if somebody held these as well."""
        return self.num_free - sum(self._holders[block] == 0 for block in blocks)

    def hold(self, blocks: Iterable[int]) -> None:
        """One more holder for each of these published blocks."""
        for block in blocks:
            assert self._key_of[block] is not None, "only a published block can be shared"
            if self._holders[block] == 0:
                del self._idle[block]
            self._holders[block] += 1

    def allocate(self, count: int) -> list[int] | None:
        """Take `count` blocks without keys, or none at all when fewer are free.

        Cached ones go only when no others are left, the longest unused first.
        """
        if count > self.num_free:
            return None
        taken = [self._blank.popleft() if self._blank else self._evict() for _ in range(count)]
        for block in taken:
            self._holders[block] = 1
        return taken

    def publish(self, block: int, key: bytes) -> int:
        """A held block is full and computed: others find it by its key from now on.

        Returns the block that stands for the key: another one where an equal block is known already. The caller
        holds that one then and this one no longer.
        """
        known = self._by_key.get(key)
        if known is None:
            assert self._holders[block] > 0 and self._key_of[block] is None, "published twice, or by nobody"
            self._by_key[key] = block
            self._key_of[block] = key
            return block
        if known != block:
            self.hold([known])
            self.free([block])
        return known

    def withdraw(self, blocks: Iterable[int]) -> None:
        """Nobody finds these any more; who holds them keeps them."""
        for block in blocks:
            self._forget(block)
            if block in self._idle:
                del self._idle[block]
                self._blank.append(block)

    def free(self, blocks: Sequence[int]) -> None:
        """One holder less for each block of a sequence, given in its order. One that isn't held is a caller's bug.

        The last block is evicted before the first: a chain without its head can't be found.
        """
        for block in reversed(blocks):
            assert self._holders[block] > 0, "freed, but held by nobody"
            self._holders[block] -= 1
            if self._holders[block] == 0:
                if self._key_of[block] is None:
                    self._blank.append(block)
                else:
                    self._idle[block] = None

    def holders(self, block: int) -> int:
        """How many sequences hold a block."""
        return self._holders[block]

    def is_published(self, block: int) -> bool:
        return self._key_of[block] is not None

    def check_invariants(self) -> None:
        """Every block is held, idle or blank, and each key leads to its block. For tests and for idle moments."""
        blank, idle = set(self._blank), set(self._idle)
        assert len(blank) == len(self._blank), "a block is free twice"
        assert not blank & idle, "a block is both blank and idle"
        for block, (holders, key) in enumerate(zip(self._holders, self._key_of, strict=True)):
            assert holders >= 0, "a block is freed too often"
            assert (block in blank) == (holders == 0 and key is None), "a block is lost, or free and in use"
            assert (block in idle) == (holders == 0 and key is not None), "a cached block is lost, or evicted early"
            assert key is None or self._by_key[key] == block, "a key leads elsewhere"
        assert len(self._by_key) == sum(key is not None for key in self._key_of), "a key leads nowhere"

    def _evict(self) -> int:
        block, _ = self._idle.popitem(last=False)
        self._forget(block)
        self.evictions += 1
        return block

    def _forget(self, block: int) -> None:
        key, self._key_of[block] = self._key_of[block], None
        if key is not None:
            del self._by_key[key]
