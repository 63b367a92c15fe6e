"""Sampling against a plain re-statement of each rule, and rows kept apart."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from livery.engine.plan import SampleSpec
from livery.engine.sampler import LIKELIEST, LIKELY, sample
from livery.engine.sequence import uniform


def spec(**changes: float | tuple[int, ...]) -> SampleSpec:
    values: dict[str, float | tuple[int, ...]] = {
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "draw": 0.5,
        "forbidden": (),
    }
    return SampleSpec(**(values | changes))  # type: ignore[arg-type]


def allowed(logits: torch.Tensor, chosen: SampleSpec) -> set[int]:
    """The tokens a spec leaves, said the slow way."""
    row = logits.double().clone()
    row[list(chosen.forbidden)] = float("-inf")
    probs = torch.softmax(row / chosen.temperature, 0)
    order = [int(i) for i in sorted(range(len(row)), key=lambda i: -float(row[i]))]
    kept = order[: chosen.top_k] if chosen.top_k else order
    total = sum(float(probs[i]) for i in kept)
    nucleus, mass = [], 0.0
    for i in kept:
        nucleus.append(i)
        mass += float(probs[i]) / total
        if mass >= chosen.top_p - 1e-12:
            break
    best = float(probs[order[0]])
    return {i for i in nucleus if float(probs[i]) >= chosen.min_p * best - 1e-15 and probs[i] > 0}


@given(
    seed=st.integers(0, 10_000),
    temperature=st.floats(0.1, 2.0),
    top_p=st.floats(0.0, 1.0),
    top_k=st.integers(0, 12),
    min_p=st.floats(0.0, 0.9),
    draw=st.floats(0.0, 0.9999999),
)
@settings(max_examples=200, deadline=None)
def test_only_allowed_tokens_are_drawn(
    seed: int, temperature: float, top_p: float, top_k: int, min_p: float, draw: float
) -> None:
    logits = torch.randn(2, 10, generator=torch.Generator().manual_seed(seed)) * 3
    chosen = spec(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, draw=draw, forbidden=(4,))
    token = sample(logits.clone(), [chosen, spec(temperature=0.0)])
    assert token[0] in allowed(logits[0], chosen)
    assert token[1] == int(logits[1].argmax())


def walked(logits: torch.Tensor, chosen: SampleSpec) -> tuple[int, float]:
    """The token of a draw over all that is left, and how far the draw is from the next token's.

    Cut rows are sorted, likeliest tokens first.
    """
    probs = torch.softmax(logits.double() / chosen.temperature, 0)
    cut = chosen.top_k or chosen.top_p < 1 or chosen.min_p
    left = sorted(allowed(logits, chosen), key=lambda token: -float(logits[token]) if cut else token)
    masses = [float(probs[token]) for token in left]
    ends = list(accumulate(masses))
    target = chosen.draw * ends[-1]
    column = bisect_right(ends, target)
    return left[column], min(abs(target - end) for end in ends)


@given(
    seed=st.integers(0, 10_000),
    width=st.sampled_from([4 * LIKELIEST, LIKELY + 500]),
    spread=st.floats(0.1, 5.0),
    top_p=st.sampled_from([0.5, 0.9, 0.999, 1.0]),
    top_k=st.sampled_from([0, 0, 3, LIKELIEST, LIKELIEST + 1, 700]),
    min_p=st.sampled_from([0.0, 0.0, 0.05, 0.5]),
    draw=st.floats(0.0, 0.9999999),
)
@settings(max_examples=150, deadline=None)
def test_the_likeliest_tokens_settle_what_the_whole_vocabulary_would(
    seed: int, width: int, spread: float, top_p: float, top_k: int, min_p: float, draw: float
) -> None:
    logits = torch.randn(1, width, generator=torch.Generator().manual_seed(seed)) * spread
    chosen = spec(top_p=top_p, top_k=top_k, min_p=min_p, draw=draw)
    expected, distance = walked(logits[0], chosen)
    assume(distance > 1e-6)
    assert sample(logits, [chosen]) == [expected]


def test_draws_follow_the_distribution() -> None:
    probs = torch.tensor([0.5, 0.3, 0.2])
    counts = [0, 0, 0]
    for index in range(2000):
        (token,) = sample(probs.log()[None].clone(), [spec(draw=uniform(11, index))])
        assert token is not None
        counts[token] += 1
    assert all(abs(count / 2000 - float(p)) < 0.04 for count, p in zip(counts, probs, strict=True))


def test_a_row_that_is_not_a_number_fails_alone() -> None:
    logits = torch.randn(4, 10)
    clean = sample(logits.clone(), [spec(), spec(temperature=0.0), spec(), spec()])
    logits[2] = float("nan")
    logits[3, 5] = float("inf")
    dirty = sample(logits, [spec(), spec(temperature=0.0), spec(), spec()])
    assert dirty == [*clean[:2], None, None]


def test_company_changes_no_draw() -> None:
    logits = torch.randn(6, 50)
    specs = [spec(draw=uniform(row, 3), top_p=0.9, temperature=0.8) for row in range(6)]
    together = sample(logits.clone(), specs)
    assert together == [sample(logits[row : row + 1].clone(), [specs[row]])[0] for row in range(6)]
