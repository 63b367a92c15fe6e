"""Which sequences wait and which run: one way in, one way out, and the order in which they come to run."""

from __future__ import annotations

import math
import time
from collections import Counter

from livery.engine.base import AdapterRef, Asker
from livery.engine.blocks import BlockPool
from livery.engine.fairness import VirtualTokens, held_by
from livery.engine.prefix import PrefixCache
from livery.engine.residency import Residency
from livery.engine.sequence import TURN, Sequence

MAX_SKIPS = 64  # rounds without room for its adapter, or of others passing, before a sequence holds up those behind it


class Roster:
    """The only writer of waiting and running. Blocks and the hold on an adapter come and go with running."""

    def __init__(
        self,
        pool: BlockPool,
        residency: Residency,
        prefix: PrefixCache,
        tokens: VirtualTokens,
        max_running: int,
        weight_bytes: int,
    ) -> None:
        """`weight_bytes`: of the base, beside which adapters have their costs."""
        self.waiting: list[Sequence] = []  # in the order in which they are to be admitted
        self.running: list[Sequence] = []  # the youngest, which go first when blocks run out, at the end
        self.by_id: dict[str, Sequence] = {}
        self.preemptions = 0
        self._pool = pool
        self._residency = residency
        self._prefix = prefix
        self._tokens = tokens
        self._max_running = max_running
        self._weight_bytes = weight_bytes
        self._held: dict[str, float] = {}  # what tenants hold of the engine as the step begins

    @property
    def is_full(self) -> bool:
        return len(self.running) >= self._max_running

    @property
    def num_lacking(self) -> int:
        """Blocks that running sequences are still to hold for the tokens that they have."""
        return sum(sequence.num_lacking(self._pool.block_size) for sequence in self.running)

    def add(self, sequence: Sequence) -> None:
        """A new sequence waits."""
        self.by_id[sequence.request_id] = sequence
        self.waiting.append(sequence)
        self._tokens.opened(sequence.tenant, sequence.request.weight)

    def remove(self, sequence: Sequence) -> None:
        """A sequence is done with, wherever it is."""
        if sequence in self.running:
            self._leave(sequence)
        else:
            self.waiting.remove(sequence)
        del self.by_id[sequence.request_id]
        self._tokens.closed(sequence.tenant)

    def run(self, sequence: Sequence, cached: list[int]) -> None:
        """A waiting sequence runs from now on, on the blocks that were found for it.

        Who took a place stands before the tenant that lost it, whose growth would else preempt it again.
        """
        self.waiting.remove(sequence)
        tenants = [other.tenant for other in self.running]
        place = tenants.index(sequence.ousted) if sequence.ousted in tenants else len(tenants)
        self.running.insert(place, sequence)
        sequence.skips, sequence.turn_began = 0, sequence.num_tokens
        sequence.began = sequence.began or time.monotonic()
        if sequence.adapter is not None:
            self._residency.pin(sequence.adapter, sequence.asker)
            if self._weight_bytes:
                sequence.cost = 1 + self._residency.nbytes(sequence.adapter) / self._weight_bytes
        self._prefix.enter(sequence, cached)

    def adapter_came(self, digest: str) -> None:
        """A version is in device memory: those that wait for it wait for a place from now on."""
        now = time.monotonic()
        for sequence in self.waiting:
            if sequence.adapter == digest and not sequence.began:
                sequence.loaded = now

    def preempt(self, sequence: Sequence) -> None:
        """A running sequence gives up its place, and is the next of its tenant to be admitted again.

        One that loses what it has read before its turn is over holds up those behind it, and keeps its next place until
        it had its turn: it might never get to its tokens else.
        """
        had_turn = sequence.left_of_turn(TURN, recomputed=False) <= 0
        loses = sequence.num_computed // self._pool.block_size > sequence.published
        sequence.robbed = not had_turn and (loses or sequence.robbed)
        if sequence.robbed:
            sequence.skips = MAX_SKIPS + 1
        self._leave(sequence)
        sequence.tag = self._tokens.counter(sequence.tenant)
        self.waiting.insert(0, sequence)
        self.preemptions += 1

    def end_turn(self, sequence: Sequence) -> None:
        """A running sequence has had its turn, and waits behind those that had fewer."""
        self._leave(sequence)
        sequence.turns += 1
        self.waiting.append(sequence)

    def reserve(self, sequence: Sequence, num_tokens: int) -> bool:
        """Let the sequence hold the blocks of its first `num_tokens` positions, if enough are free."""
        blocks = self._pool.allocate(self._pool.blocks_for(num_tokens) - len(sequence.blocks))
        if blocks is None:
            return False
        sequence.blocks.extend(blocks)
        return True

    def trim(self, sequence: Sequence) -> None:
        """Give back what only drafts needed, so that they never take a block that another sequence asks for."""
        needed = self._pool.blocks_for(sequence.num_computed + sequence.in_flight)
        self._pool.free(sequence.blocks[needed:])
        del sequence.blocks[needed:]

    # -- in what order -------------------------------------------------------------------------------

    def put_in_order(self) -> None:
        """A step begins. Tenants come by their counters; of one those first that had no turn, as their clients have
        seen nothing yet, and one skipped too often before all.
        """
        self.waiting.sort(key=lambda seq: (seq.skips <= MAX_SKIPS, seq.turns))
        self._tokens.settle({seq.tenant for seq in self.waiting})
        if self._tokens.several:
            self._held = held_by(self.running, self._max_running, self._pool.num_blocks)
            self._tokens.put_in_order([*self.reading(), *self.waiting], self.is_ready)
            self.waiting = self.by_tenants(self.waiting)

    def by_tenants(self, sequences: list[Sequence]) -> list[Sequence]:
        """In the order in which they read their prompts; of equal counters the tenant that holds less comes first."""
        if not self._tokens.several:
            return sequences
        return sorted(sequences, key=lambda seq: (seq.tag, self._held.get(seq.tenant, 0.0)))

    def excess(self, tenant: str) -> float:
        """What a tenant held of the engine as the step began, beside its fair share: above 1 it held more."""
        return self._held.get(tenant, 0.0) / self._tokens.share(tenant) if self._tokens.several else 1.0

    def put_first(self, sequence: Sequence, ousted: str) -> None:
        """A waiting sequence comes before all in this step, on a place that a tenant lost for it."""
        sequence.tag, sequence.ousted = -math.inf, ousted

    def reading(self) -> list[Sequence]:
        """Running sequences that still read their prompt, the oldest first."""
        return [sequence for sequence in self.running if sequence.num_uncomputed > 1]

    def is_ready(self, sequence: Sequence) -> bool:
        """Whether its adapter, if any, is there, and is or may be counted for its tenant."""
        return sequence.adapter is None or self._residency.is_open_to(sequence.adapter, sequence.asker)

    # -- how things stand ----------------------------------------------------------------------------

    def waiting_adapters(self) -> tuple[str, ...]:
        """Versions that waiting requests ask for and that are not resident."""
        wanted = dict.fromkeys(seq.adapter for seq in self.waiting if seq.adapter)
        return tuple(digest for digest in wanted if not self._residency.is_resident(digest))

    def wanted_adapters(self) -> list[str]:
        """Versions that waiting requests ask for, in the order of the queue."""
        return [seq.adapter for seq in self.waiting if seq.adapter]

    def askers(self) -> dict[str, list[Asker]]:
        """The tenants of waiting requests by the version that each waits for, the first in the queue first."""
        found: dict[str, dict[str, Asker]] = {}
        for sequence in self.waiting:
            if sequence.adapter is not None and not self._residency.is_resident(sequence.adapter):
                found.setdefault(sequence.adapter, {}).setdefault(sequence.tenant, sequence.asker)
        return {digest: list(askers.values()) for digest, askers in found.items()}

    def waiting_for(self, digest: str) -> list[tuple[str, AdapterRef]]:
        """The waiting requests for a version: each one's id, and the version as it names it."""
        asked = ((seq.request_id, seq.request.adapter) for seq in self.waiting)
        return [(name, adapter) for name, adapter in asked if adapter is not None and adapter.digest == digest]

    def check_invariants(self) -> None:
        """Blocks and sequences add up."""
        sequences = self.by_id.values()
        holders = Counter(block for seq in sequences for block in seq.blocks)
        assert len(holders) + self._pool.num_free == self._pool.num_blocks, "blocks held by no sequence"
        assert all(self._pool.holders(block) == count for block, count in holders.items()), "holders miscounted"
        assert not any(seq.blocks for seq in self.waiting), "a waiting sequence holds blocks"
        assert len(self.waiting) + len(self.running) == len(self.by_id)
        assert len(self.running) <= self._max_running, "more running sequences than allowed"
        self._tokens.check_invariants(Counter(seq.tenant for seq in sequences))

    def _leave(self, sequence: Sequence) -> None:
        """The one way out of running: blocks and the hold on the adapter go together."""
        self.running.remove(sequence)
        self._prefix.leave(sequence)
        sequence.num_computed = 0  # but for what the prefix cache keeps
        sequence.ousted = ""
        if sequence.adapter is not None:
            self._residency.unpin(sequence.adapter, sequence.tenant)
