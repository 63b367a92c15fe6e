"""The step after one whose tokens nobody has seen yet: planned so that it is right whichever tokens they are."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from livery.engine.plan import StepPlan
from livery.engine.sequence import Sequence

Reserve = Callable[[Sequence, int], bool]  # lets a sequence hold the blocks of its first positions, if enough are free


def plan_ahead(
    plan: StepPlan,
    running: Collection[Sequence],
    sequences: Mapping[str, Sequence],
    reserve: Reserve,
    eos_token_ids: tuple[int, ...],
    max_model_len: int,
) -> StepPlan | None:
    """The step after `plan`, in which each of its sequences goes on by one unknown token.

    None where that can't be said: a running sequence isn't in the plan, a prompt goes on, blocks run out, a sequence's
    next row depends on the token under way. A sequence that turns out to have ended is passed over when the result
    comes; it took nobody's blocks.
    """
    if len(plan.slices) < len(running):
        return None
    ahead: list[Sequence] = []
    for part in plan.slices:
        sequence, end = sequences.get(part.request_id), part.start + len(part.token_ids)
        if sequence is None or len(part.samples) != 1 or (part.start, end) != sequence.uncomputed:
            return None
        if sequence.room(max_model_len) == 1:  # ends with the token under way, whichever it is
            continue
        if sequence.depends_on_newest or not reserve(sequence, end + 1):
            return None
        ahead.append(sequence)
    for sequence in ahead:
        sequence.in_flight = 1
    return StepPlan(tuple(sequence.slice_ahead(eos_token_ids) for sequence in ahead)) if ahead else None
