"""Who leaves the running so that others get a turn. Decided here, carried out by the scheduler.

Two things are short at times. Room for adapters: adapters whose sequences had a turn make room for one that waits for
some. Places and blocks: where a tenant holds less of the engine than its fair share and its next request waits for a
place or for blocks, the tenant that is most above its own share gives up the sequence that loses least, of equal ones
the youngest, and one more until that is enough, unless the two tenants only changed places by that: a place that is
left over after division stays where it is. No tenant with a lower counter gives up anything. What came in this way
stays for a turn at least, so that two tenants never throw each other out step by step; so does what was thrown out in
the middle of its prompt once it is back, so that however many others come it gets to its tokens.
"""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Sequence as Listed

from livery.engine.blocks import BlockPool
from livery.engine.fairness import VirtualTokens, held_by
from livery.engine.residency import Residency
from livery.engine.sequence import SHORT_TURN, TURN, Sequence


class Turns:
    """Looks at what runs and changes nothing."""

    def __init__(
        self,
        pool: BlockPool,
        residency: Residency,
        tokens: VirtualTokens,
        max_running: int,
        *,
        recomputed: bool,
    ) -> None:
        """`recomputed`: whoever comes back computes everything again, so that a turn has to be worth that."""
        self._pool = pool
        self._residency = residency
        self._tokens = tokens
        self._max_running = max_running
        self._recomputed = recomputed

    def adapters_for(self, waiting: Sequence, running: Collection[Sequence]) -> list[str]:
        """Adapters that leave for the one a sequence waits for: those whose turn is over for longest, if enough."""
        assert waiting.adapter is not None
        turn = TURN if waiting.turns else SHORT_TURN
        left: dict[str, int] = {}  # adapter -> tokens that one of its sequences still has to get
        for sequence in running:
            if sequence.adapter is not None:
                rest = self._left(sequence, turn)
                left[sequence.adapter] = max(left.get(sequence.adapter, rest), rest)
        ended = sorted((adapter for adapter in left if left[adapter] <= 0), key=left.__getitem__)
        enough = (n for n in range(len(ended) + 1) if self._residency.frees_enough(waiting.adapter, ended[:n]))
        leaving = ended[: next(enough, 0)]
        for adapter in leaving[:-1]:  # where pages must be neighbours, its own may lie elsewhere
            others = [other for other in leaving if other != adapter]
            if self._residency.frees_enough(waiting.adapter, others):
                leaving = others
        return leaving

    def sequences_for(self, waiting: Sequence, cached: Listed[int], running: Listed[Sequence]) -> list[Sequence]:
        """Running sequences that leave for one whose adapter is there and that found these blocks in the cache.

        None where its tenant has its share, where there is room anyway, and where all that may go isn't enough.
        """
        tenant = waiting.tenant
        if held_by(running, self._max_running, self._pool.num_blocks).get(tenant, 0.0) >= self._tokens.share(tenant):
            return []
        level = self._level_with(waiting, running)
        needed = self._pool.blocks_for(waiting.num_tokens) - len(cached)
        free = self._pool.free_beside(cached) - sum(map(self._lacking, running))
        staying, leaving = list(running), list[Sequence]()
        while free < needed or len(staying) >= self._max_running:
            victim = self._above_share(staying, self._tokens.counter(tenant), level)
            if victim is None:
                return []
            staying.remove(victim)
            leaving.append(victim)
            free += sum(self._pool.holders(block) == 1 for block in victim.blocks) + self._lacking(victim)
        return leaving

    def _level_with(self, waiting: Sequence, running: Listed[Sequence]) -> float:
        """How much of its share its tenant would hold with it; 1, the least, where it holds nothing yet."""
        own = [sequence for sequence in running if sequence.tenant == waiting.tenant]
        if not own:
            return 1.0
        blocks = sum(len(sequence.blocks) for sequence in own) + self._pool.blocks_for(waiting.num_tokens)
        held = max((len(own) + 1) / self._max_running, blocks / self._pool.num_blocks)
        return max(1.0, held / self._tokens.share(waiting.tenant))

    def _above_share(self, running: Listed[Sequence], counter: float, level: float) -> Sequence | None:
        """The one that loses least, of the tenant that is most above its share, above a level and not below a counter.

        The level is what the one that comes brings its own tenant to: at the same one they would only change places,
        and change back after a turn, as where two tenants share five.
        """
        excess = {
            tenant: held / self._tokens.share(tenant)
            for tenant, held in held_by(running, self._max_running, self._pool.num_blocks).items()
            if self._tokens.counter(tenant) >= counter
        }
        for tenant in sorted(
            (tenant for tenant in excess if excess[tenant] > level), key=excess.__getitem__, reverse=True
        ):
            if own := [seq for seq in reversed(running) if seq.tenant == tenant and self._may_go(seq)]:
                return min(own, key=self._lost)
        return None

    def _may_go(self, sequence: Sequence) -> bool:
        """Whether it had its turn, if it took another's place, or lost its own before."""
        if sequence.robbed and sequence.left_of_turn(TURN, recomputed=False) > 0:
            return False
        return not sequence.ousted or self._left(sequence, TURN) <= 0

    def _lost(self, sequence: Sequence) -> int:
        """Blocks that it would have to compute again: of an answer few or none, of a prompt in mid-read all."""
        return sequence.num_computed // self._pool.block_size - sequence.published

    def _lacking(self, sequence: Sequence) -> int:
        return sequence.num_lacking(self._pool.block_size)

    def _left(self, sequence: Sequence, turn: int) -> int:
        return sequence.left_of_turn(turn, recomputed=self._recomputed)
