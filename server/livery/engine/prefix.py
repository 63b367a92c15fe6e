"""The prefix cache: what a sequence need not compute, because another one of the same kind did.

Decides, and touches no memory: blocks belong to the pool, their keys are made by livery.engine.prefix_keys.
"""

from __future__ import annotations

from collections.abc import Iterator

from livery.engine.blocks import BlockPool
from livery.engine.prefix_keys import KeyChain, KVIdentity
from livery.engine.sequence import Sequence

# A step reads all weights whatever it computes, which costs about as much as this share of its tokens.
STEP_SHARE = 8


class PrefixCache:
    """Finds what a waiting sequence can share and publishes what a running one has computed.

    A block is published once a finite token was sampled, or a finite vector pooled, from what it holds, so that one bad
    step never becomes every later request's. `identity` None: nothing is shared.
    """

    def __init__(self, pool: BlockPool, identity: KVIdentity | None, max_batch_tokens: int) -> None:
        self._pool = pool
        self._identity = identity
        self._worth_waiting = max(1, max_batch_tokens // STEP_SHARE // pool.block_size)  # blocks
        self._underway: dict[bytes, int] = {}  # keys of blocks that running sequences will publish -> how many do
        self.queries = 0  # prompt tokens looked up
        self.hits = 0  # prompt tokens found

    @property
    def is_on(self) -> bool:
        return self._identity is not None

    def find(self, sequence: Sequence) -> list[int] | None:
        """The published blocks of the sequence's longest prefix that leaves its newest token to compute.

        None: a running sequence is computing more of them. Prompts are read in order of admission, so this one
        would get no more of the token budget than the other leaves in its last step: waiting costs at most one
        step, which is worth it for the tokens that it saves. One that isn't read that fast is retracted.
        """
        if self._identity is None or sequence.needs_every_row:
            return []
        if sequence.awaited in self._underway:
            return None
        sequence.awaited = b""
        chain = self._chain(sequence)
        most = sequence.num_findable // self._pool.block_size
        blocks = self._pool.match(chain.key(block, sequence.tokens) for block in range(most))
        last = len(blocks) + self._worth_waiting - 1
        if last < most and chain.key(last, sequence.tokens) in self._underway:
            sequence.awaited = chain.key(last, sequence.tokens)
            return None
        return blocks

    def enter(self, sequence: Sequence, blocks: list[int]) -> None:
        """The sequence begins to run on the blocks that were found for it."""
        self._pool.hold(blocks)
        size = self._pool.block_size
        sequence.blocks = list(blocks)
        sequence.num_computed = len(blocks) * size
        if self._identity is None:
            return
        if sequence.cached_tokens is None:  # its first time: what it finds after preemption is its own
            sequence.cached_tokens = sequence.num_computed
            self.queries += sequence.num_tokens
            self.hits += sequence.num_computed
        sequence.published, sequence.announced = len(blocks), sequence.num_tokens // size
        for key in self._announced(sequence):
            self._underway[key] = self._underway.get(key, 0) + 1

    def publish(self, sequence: Sequence) -> None:
        """Its last step gave finite numbers: let others find the blocks that are full by now.

        Where an equal block is there already the sequence goes on with that one, so that each content is held once.
        """
        full = min(sequence.num_computed, sequence.num_tokens) // self._pool.block_size
        if self._identity is None or full <= sequence.published:
            return
        self.retract(sequence)
        chain = self._chain(sequence)
        for block in range(sequence.published, full):
            key = chain.key(block, sequence.tokens)
            sequence.blocks[block] = self._pool.publish(sequence.blocks[block], key)
        sequence.published = sequence.announced = full

    def retract(self, sequence: Sequence) -> None:
        """The sequence is not read as fast as steps go, or not at all for now: nobody shall wait for its blocks."""
        for key in self._announced(sequence):
            self._underway[key] -= 1
            if self._underway[key] == 0:
                del self._underway[key]
        sequence.announced = sequence.published

    def leave(self, sequence: Sequence) -> None:
        """The sequence runs no longer: its blocks are free, and found by others as long as they last."""
        self.retract(sequence)
        self._pool.free(sequence.blocks)
        sequence.blocks = []
        sequence.published = sequence.announced = 0

    def distrust(self, sequence: Sequence) -> None:
        """The sequence failed: nobody shall find what it has read, so that a second try computes all of it anew."""
        self._pool.withdraw(sequence.blocks)

    def check_invariants(self, running: list[Sequence]) -> None:
        """What is announced is what running sequences are about to publish; published blocks are full."""
        counted: dict[bytes, int] = {}
        for sequence in running:
            assert sequence.published * self._pool.block_size <= sequence.num_computed, "published before computed"
            for key in self._announced(sequence):
                counted[key] = counted.get(key, 0) + 1
        assert counted == self._underway, "a block is awaited that nobody computes"

    def _announced(self, sequence: Sequence) -> Iterator[bytes]:
        for block in range(sequence.published, sequence.announced):
            yield self._chain(sequence).key(block, sequence.tokens)

    def _chain(self, sequence: Sequence) -> KeyChain:
        if sequence.chain is None:
            assert self._identity is not None
            sequence.chain = KeyChain(self._identity, sequence.request)
        return sequence.chain
