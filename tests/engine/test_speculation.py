"""Drafts and what the scheduler makes of them: found as said, checked exactly, and never at another's expense."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livery.engine.base import GenerationRequest, SamplingParams
from livery.engine.blocks import BlockPool
from livery.engine.plan import SampleSpec, SequenceSlice, StepPlan, StepResult
from livery.engine.prefix_keys import KVIdentity
from livery.engine.residency import Residency
from livery.engine.scheduler import Scheduler
from livery.engine.sequence import Sequence as EngineSequence
from livery.engine.speculation import PROBE, REACH, STRIDE, Drafter, NgramIndex, deal

EOS = 0
BLOCK = 4
SYMBOLS = 4


def searched(tokens: Sequence[int], count: int, longest: int, shortest: int) -> list[int]:
    """The same by looking everywhere: newest place of the longest run, then what followed it, and so on."""
    for length in range(longest, shortest - 1, -1):
        for start in range(len(tokens) - length - 1, -1, -1):
            if list(tokens[start : start + length]) == list(tokens[len(tokens) - length :]):
                grown = list(tokens)
                for offset in range(count):
                    grown.append(grown[start + length + offset])
                return grown[len(tokens) :]
    return []


@given(
    tokens=st.lists(st.integers(0, 2), max_size=40),
    calls=st.sets(st.integers(0, 40)),
    count=st.integers(0, 9),
    shortest=st.integers(1, 3),
    more=st.integers(0, 3),
)
@settings(max_examples=300, deadline=None)
def test_drafts_are_what_followed_the_longest_run(
    tokens: list[int], calls: set[int], count: int, shortest: int, more: int
) -> None:
    index = NgramIndex(shortest + more, shortest)
    for length in sorted({*calls, len(tokens)}):
        prefix = tokens[:length]
        assert index.propose(prefix, count) == searched(prefix, count, shortest + more, shortest)


def test_a_repeated_pattern_is_drafted_beyond_its_copy() -> None:
    assert NgramIndex().propose([7, 1, 2, 1, 2, 1, 2], 5) == [1, 2, 1, 2, 1]


def test_right_drafts_bring_more_and_wrong_ones_fewer() -> None:
    drafter, tokens = Drafter(), [1, 2] * 20
    lengths = []
    for _ in range(12):
        drafts = drafter.propose(tokens, 16)
        drafter.learn(len(drafts), len(drafts))
        lengths.append(len(drafts))
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1] == 16
    lengths = []
    for _ in range(40 + 2 * PROBE):
        drafts = drafter.propose(tokens, 16)
        drafter.learn(len(drafts), 0)
        lengths.append(len(drafts))
    assert sum(lengths[40:]) == 2, "from then on one try every so often"
    for _ in range(10 * PROBE):
        drafts = drafter.propose(tokens, 16)
        drafter.learn(len(drafts), len(drafts))
    assert len(drafter.propose(tokens, 16)) == 16, "text that begins to repeat is found out"


def test_nothing_is_drafted_beyond_a_stop_token() -> None:
    drafter, tokens = Drafter(), [1, 2, 3, EOS, 5, 6, 1, 2]
    drafter.learn(40, 40)
    assert drafter.propose(tokens, 8) == [3, EOS, 5, 6, 1, 2, 3, EOS]
    assert drafter.propose(tokens, 8, [EOS]) == [3, EOS]
    drafter.silence()
    assert drafter.propose(tokens, 8) == []


@given(wishes=st.lists(st.integers(0, 6), max_size=6), rows=st.integers(0, 20))
def test_rows_are_dealt_evenly(wishes: list[int], rows: int) -> None:
    shares = deal(wishes, rows)
    assert all(share <= wish for share, wish in zip(shares, wishes, strict=True))
    assert sum(shares) == min(rows, sum(wishes))
    unmet = [share for share, wish in zip(shares, wishes, strict=True) if share < wish]
    assert all(share <= least + 1 for share in shares for least in unmet)


def true_token(context: Sequence[int], spec: SampleSpec, broken: frozenset[int]) -> int | None:
    """A model that can be computed by hand: mostly periodic, moved by the draw; some contexts give no number."""
    state = sum(token * weight for token, weight in zip(context[-3:], (1, 3, 5), strict=False))
    if state in broken:
        return None
    token = (state + (spec.draw > 0.9)) % SYMBOLS
    while token in spec.forbidden:
        token += 1
    return token


@dataclass
class Machine:
    """A runner over real slots: each row sees the tokens that the sequence's blocks hold, whoever wrote them."""

    broken: frozenset[int]
    slots: dict[int, int] = field(default_factory=dict)

    def execute(self, plan: StepPlan) -> StepResult:
        tokens: dict[str, tuple[int, ...]] = {}
        failed = {}
        for part in plan.slices:
            found = self._rows(part)
            right = tuple(token for token in found if token is not None)
            if right:
                tokens[part.request_id] = right
            elif part.samples:
                failed[part.request_id] = "not a number"
        return StepResult(tokens, failed)

    def _rows(self, part: SequenceSlice) -> list[int | None]:
        places = [part.block_table[p // BLOCK] * BLOCK + p % BLOCK for p in range(len(part.block_table) * BLOCK)]
        end = part.start + len(part.token_ids)
        for position, token in zip(range(part.start, end), part.token_ids, strict=True):
            self.slots[places[position]] = token
        found: list[int | None] = []
        for position, spec in zip(range(end - len(part.samples), end), part.samples, strict=True):
            found.append(true_token([self.slots[place] for place in places[: position + 1]], spec, self.broken))
        if None not in found:
            return found
        # 0 times infinity: what is wrong with one row may reach those before it, or not.
        return found[: found.index(None)] if len(found) % 2 else [None]


def alone(request: GenerationRequest, seed: int, max_model_len: int, broken: frozenset[int]) -> tuple[list[int], str]:
    """Tokens and finish reason of a request, one token after the other."""
    sequence = EngineSequence.of(request, seed)
    while True:
        token = true_token(sequence.tokens, sequence.sample_spec((EOS,)), broken)
        if token is None:
            return sequence.tokens[len(request.prompt_token_ids) :], "error"
        sequence.tokens.append(token)
        if reason := sequence.finish_reason((EOS,), max_model_len):
            return sequence.tokens[len(request.prompt_token_ids) :], reason


@given(
    seed=st.integers(0, 2**32),
    blocks=st.integers(8, 30),
    tokens=st.integers(2, 20),
    speculate=st.integers(1, 8),
    draft_rows=st.integers(1, 16),
)
@settings(max_examples=150, deadline=None)
def test_speculation_changes_no_token(seed: int, blocks: int, tokens: int, speculate: int, draft_rows: int) -> None:
    rng = random.Random(seed)
    pool = BlockPool(blocks, BLOCK)
    max_model_len = 6 * BLOCK
    scheduler = Scheduler(
        pool,
        Residency(0),
        max_batch_tokens=tokens,
        max_running=min(4, tokens),
        max_model_len=max_model_len,
        eos_token_ids=(EOS,),
        shared=KVIdentity("base", "static", "float32", BLOCK),
        speculate=speculate,
        draft_rows=draft_rows,
    )
    machine = Machine(frozenset(rng.sample(range(40), rng.choice([0, 0, 2]))))
    requests, got, finished, aborted = {}, {}, {}, set()
    opening = [rng.randrange(SYMBOLS) for _ in range(12)]  # for the prefix cache to find
    for number in range(12):
        params = SamplingParams(
            max_tokens=rng.randrange(1, 20),
            temperature=rng.choice([0.0, 1.0]),
            seed=rng.randrange(100),
            min_tokens=rng.choice([0, 0, 5]),
            stop_token_ids=rng.choice([(), (2,)]),
            ignore_eos=rng.random() < 0.5,
        )
        prompt = opening[: rng.randrange(12)] + [rng.randrange(SYMBOLS) for _ in range(rng.randrange(1, 12))]
        requests[f"r{number}"] = GenerationRequest(f"r{number}", prompt, params)
    arriving = list(requests.values())
    while arriving or scheduler.has_work:
        if arriving and rng.random() < 0.4:
            request = arriving.pop()
            scheduler.add(request)
            got[request.request_id] = list[int]()
        if rng.random() < 0.03 and got:
            name = rng.choice(sorted(got))
            if scheduler.abort(name):
                aborted.add(name)
        plan = scheduler.schedule()
        assert plan.num_tokens <= tokens
        drafted = sum(len(part.drafts) for part in plan.slices)
        assert not drafted or plan.num_tokens <= draft_rows
        for delta in scheduler.update(plan, machine.execute(plan)):
            got[delta.request_id] += delta.token_ids
            if delta.finish_reason:
                finished[delta.request_id] = delta.finish_reason
        scheduler.check_invariants()
    assert set(finished) | aborted == set(requests)
    for name, request in requests.items():
        expected, reason = alone(request, request.sampling.seed or 0, max_model_len, machine.broken)
        if name in finished:
            assert (got[name], finished[name]) == (expected, reason)
        else:
            assert got[name] == expected[: len(got[name])]
    assert pool.num_free == blocks
    assert scheduler.outcomes.generated_tokens == sum(map(len, got.values()))
    assert scheduler.drafting.accepted_tokens <= scheduler.drafting.drafted_tokens


def house(blocks: int, **limits: int) -> tuple[Scheduler, BlockPool]:
    pool = BlockPool(blocks, BLOCK)
    sizes = {"max_batch_tokens": 64, "max_running": 4, "max_model_len": 64, "speculate": 8, "draft_rows": 64, **limits}
    return Scheduler(pool, Residency(0), eos_token_ids=(EOS,), **sizes), pool


def greedy(name: str, prompt: list[int], max_tokens: int) -> GenerationRequest:
    return GenerationRequest(name, prompt, SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True))


def test_right_drafts_shorten_the_way() -> None:
    scheduler, _ = house(16)
    scheduler.add(greedy("a", [1, 2, 3, 1, 2, 3], 30))
    steps = 0
    while scheduler.has_work:
        plan = scheduler.schedule()
        rows = {
            part.request_id: tuple(token % 3 + 1 for token in part.token_ids[-len(part.samples) :])
            for part in plan.slices
        }
        scheduler.update(plan, StepResult(rows))
        steps += 1
    assert scheduler.outcomes.generated_tokens == 30
    assert steps < 10
    assert scheduler.drafting.accepted_tokens == scheduler.drafting.drafted_tokens == 30 - steps


@pytest.mark.parametrize("free", [0, 1])
def test_drafts_take_only_blocks_that_are_left_and_give_them_back(free: int) -> None:
    """Two sequences fill the pool but for `free` blocks; wrong drafts cost nobody a block."""
    scheduler, pool = house(4 + free)
    for name in ("a", "b"):
        scheduler.add(greedy(name, [1, 2, 1, 2, 1, 2], 2))
    plan = scheduler.schedule()
    held = [len(part.block_table) for part in plan.slices]
    drafts = [len(part.drafts) for part in plan.slices]
    assert drafts == [1, 1], "one token before the last of two"
    assert held == [2, 2]
    scheduler.update(plan, StepResult({name: (3, 3) for name in ("a", "b")}))
    assert pool.num_free == free
    assert scheduler.drafting.drafted_tokens == 2
    assert scheduler.drafting.accepted_tokens == 0
    plan = scheduler.schedule()
    assert [part.start for part in plan.slices] == [6, 6]
    assert [part.token_ids for part in plan.slices] == [(3,), (3,)]
    scheduler.update(plan, StepResult({name: (9,) for name in ("a", "b")}))
    assert scheduler.roster.preemptions == 0


def test_a_draft_that_needs_a_block_shrinks_to_those_held() -> None:
    scheduler, pool = house(2)
    scheduler.add(greedy("a", [1, 2, 1, 2, 1, 2], 20))
    plan = scheduler.schedule()
    assert [part.drafts for part in plan.slices] == [(1, 2)], "positions 6 and 7, the last of two blocks"
    scheduler.update(plan, StepResult({"a": (1, 1, 1)}))
    plan = scheduler.schedule()
    assert plan.slices[0].token_ids[:1] == (1,)
    assert pool.num_free == 0


def test_a_block_for_drafts_alone_goes_back() -> None:
    scheduler, pool = house(8)
    scheduler.add(greedy("a", [1, 2, 3, 1, 2, 3, 1, 2], 20))
    plan = scheduler.schedule()
    assert plan.slices[0].drafts == (3, 1)
    assert len(plan.slices[0].block_table) == 3
    assert pool.num_free == 5
    scheduler.update(plan, StepResult({"a": (9, 9, 9)}))
    assert pool.num_free == 6


def test_a_request_that_fails_with_drafts_is_tried_without() -> None:
    scheduler, _ = house(8)
    scheduler.add(greedy("a", [1, 2, 1, 2, 1, 2], 20))
    plan = scheduler.schedule()
    assert plan.slices[0].drafts
    assert scheduler.update(plan, StepResult(failed={"a": "not a number"})) == []
    plan = scheduler.schedule()
    assert not plan.slices[0].drafts
    (delta,) = scheduler.update(plan, StepResult(failed={"a": "not a number"}))
    assert (delta.finish_reason, delta.error) == ("error", "not a number")


def test_a_long_prompt_is_indexed_a_stretch_per_step_and_not_beyond_reach() -> None:
    """No step pays for all of it; what is drafted afterwards is what the newest positions hold."""
    index = NgramIndex()
    tokens = [position % 50_000 for position in range(3 * REACH)]
    tokens += tokens[-40:-20]  # repeats what stands within reach
    tokens += tokens[:20]  # and what doesn't
    within, beyond = tokens[:-20], tokens
    empty = 0
    while not index.propose(within, 4):
        empty += 1
        assert len(index._next) <= 3 * STRIDE * empty
    assert empty == REACH // STRIDE - 1
    assert index.propose(within, 4) == tokens[3 * REACH - 20 : 3 * REACH - 16]
    assert index.propose(beyond, 4) == []
