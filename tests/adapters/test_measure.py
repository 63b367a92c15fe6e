"""What a change amounts to is what it does to a row, and its size is that of the dense difference."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from adapters.canonical_made import IN, KINDS, OUT, Weights, a_delta, applied, dense_delta, everything, randn
from adapters.largest import Largest
from livery_adapters.canonical import (
    CanonicalAdapter,
    Delta,
    EmbeddingChange,
    ExpertsChange,
    Kronecker,
    LinearChange,
    LowRank,
    Rows,
)
from livery_adapters.measure import BaseNorms, delta_norm, effective, low_rank_norm, measure, rank_of

HALF = (torch.bfloat16, torch.float16)
SEEDS = st.integers(0, 2**16)


def relative_of(adapter: CanonicalAdapter, base: Weights, path: str = "m") -> float:
    return measure(adapter, base, BaseNorms(base)).modules[path].relative


def of_linear(change: LinearChange, weight: Tensor, bias: Tensor | None = None) -> float:
    base = Weights({"m": weight}, {} if bias is None else {"m": bias})
    return relative_of(CanonicalAdapter("d", linears={"m": change}), base)


# -- effective -------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["all", "deltas", "transform", "weight", "rows", "gain", "bias"])
@pytest.mark.parametrize("bias", [None, randn(OUT, seed=91)])
def test_the_dense_form_does_what_the_parts_do(part: str, bias: Tensor | None) -> None:
    full = everything()
    change = full if part == "all" else replace(LinearChange(), **{part: getattr(full, part)})
    weight, x = randn(OUT, IN, seed=90), randn(5, IN, seed=92)
    dense, dense_bias = effective(change, weight, bias)
    y = x @ dense.T if dense_bias is None else x @ dense.T + dense_bias
    torch.testing.assert_close(y.double(), applied(change, weight, bias, x), rtol=1e-4, atol=1e-4)
    assert (y - x @ weight.T).abs().max() > 0.1 or part == "bias"


def test_the_dense_form_leaves_the_base_as_it_was() -> None:
    weight = randn(OUT, IN, seed=1)
    before = weight.clone()
    effective(everything(), weight)
    effective(LinearChange(rows=everything().rows), weight)
    assert torch.equal(weight, before)


def test_an_embedding_changes_by_rows() -> None:
    table, gain = randn(9, 4, seed=1), randn(4, seed=2)
    delta = LowRank(randn(2, 9, seed=3), randn(4, 2, seed=4), 0.5)
    rows = Rows(torch.tensor([3]), randn(1, 4, seed=5))
    dense, _ = effective(EmbeddingChange(delta=delta, rows=rows, gain=gain), table)
    for token in range(9):
        row = rows.values[0] if token == 3 else table[token]
        torch.testing.assert_close(dense[token], gain * (row + 0.5 * delta.b @ delta.a[:, token]))


def test_experts_change_one_by_one() -> None:
    weight = randn(3, OUT, IN, seed=1)
    change = ExpertsChange(randn(3, 2, IN, seed=2), randn(3, OUT, 2, seed=3), 1.5)
    dense, _ = effective(change, weight)
    for expert in range(3):
        torch.testing.assert_close(dense[expert], weight[expert] + 1.5 * change.b[expert] @ change.a[expert])


# -- norms -----------------------------------------------------------------------------------------


@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=3),
    rank=st.integers(1, 20),
    dtype=st.sampled_from((torch.float32, *HALF)),
    seed=SEEDS,
)
def test_the_norm_is_that_of_the_dense_sum(kinds: list[str], rank: int, dtype: torch.dtype, seed: int) -> None:
    deltas: list[Delta] = [a_delta(kind, seed + 10 * index, rank, dtype) for index, kind in enumerate(kinds)]
    expected = float(torch.linalg.norm(sum((dense_delta(delta) for delta in deltas), torch.zeros(OUT, IN))))
    assert delta_norm(deltas) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("exponent", range(-30, 31))
def test_no_size_of_the_values_leaves_the_range(exponent: int) -> None:
    """Squares below 1e-38 lose their digits in fp32 long before they become zero."""
    a, b = randn(3, IN, seed=1) * 10.0**exponent, randn(OUT, 3, seed=2)
    expected = float(torch.linalg.norm(b.double() @ a.double()))
    assert low_rank_norm(LowRank(a, b, 2.0)) == pytest.approx(2 * expected, rel=1e-4, abs=0)


@given(seed=SEEDS, left=st.floats(1e-6, 1e-2))
def test_halves_that_nearly_cancel_are_still_measured(seed: int, left: float) -> None:
    """B·A is [b, -b]·[a; a + left·c] = -left·b·c: all but a trace of the factors' size is gone."""
    a, b, c = randn(2, IN, seed=seed), randn(OUT, 2, seed=seed + 1), randn(2, IN, seed=seed + 2)
    pair = LowRank(torch.cat([a, a + left * c]), torch.cat([b, -b], dim=1), 1.0)
    expected = float(torch.linalg.norm(pair.b.double() @ pair.a.double()))
    assert low_rank_norm(pair) == pytest.approx(expected, rel=1e-3)


def test_what_cancels_exactly_is_nothing() -> None:
    zero = LowRank(randn(4, IN, seed=1), torch.zeros(OUT, 4), 3.0)
    assert low_rank_norm(zero) == 0.0
    assert of_linear(LinearChange(deltas=(zero,)), randn(OUT, IN, seed=2)) == 0.0


# -- measure ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("part", ["all", "deltas", "transform", "weight", "rows", "gain"])
def test_relative_is_the_dense_differences(part: str, dtype: torch.dtype) -> None:
    full = everything()
    change = full if part == "all" else replace(LinearChange(), **{part: getattr(full, part)})
    weight = randn(OUT, IN, seed=90, dtype=dtype)
    dense, _ = effective(change, weight)
    expected = float(torch.linalg.norm(dense.double() - weight.double()) / torch.linalg.norm(weight.double()))
    assert of_linear(change, weight) == pytest.approx(expected, rel=1e-5)


def test_a_weight_held_transposed_is_the_same_weight() -> None:
    weight = randn(IN, OUT, seed=3).T
    change = LinearChange(gain=randn(OUT, seed=4))
    assert of_linear(change, weight) == pytest.approx(of_linear(change, weight.contiguous()), rel=1e-12)


@pytest.mark.parametrize("before", [None, randn(OUT, seed=5)])
def test_where_only_the_bias_moves_it_is_the_biases(before: Tensor | None) -> None:
    after = randn(OUT, seed=6)
    moved = of_linear(LinearChange(bias=after), randn(OUT, IN, seed=7), before)
    expected = 1.0 if before is None else float(torch.linalg.norm(after - before) / torch.linalg.norm(before))
    assert moved == pytest.approx(expected)


def test_a_change_from_nothing_is_finite() -> None:
    assert of_linear(LinearChange(deltas=(a_delta("low rank"),)), torch.zeros(OUT, IN)) == 1.0


def test_parts_that_repeat_the_base_change_nothing() -> None:
    weight, bias, norm = randn(OUT, IN, seed=1), randn(OUT, seed=2), randn(IN, seed=3)
    same = LinearChange(
        weight=weight, gain=torch.ones(OUT), bias=bias, rows=Rows(torch.tensor([2]), weight[2:3]), transform=None
    )
    adapter = CanonicalAdapter("d", linears={"m": same}, plain={"n": {"weight": norm}})
    base = Weights({"m": weight, "n.weight": norm}, {"m": bias})
    effect = measure(adapter, base, BaseNorms(base))
    assert effect.changes_nothing
    moved = replace(adapter, plain={"n": {"weight": norm + 1e-3}})
    assert not measure(moved, base, BaseNorms(base)).changes_nothing


def test_embeddings_experts_and_norms_are_measured() -> None:
    table, experts = randn(9, 4, seed=1), randn(3, OUT, IN, seed=2)
    norm, shift = randn(4, seed=3), randn(4, seed=4)
    embedding = EmbeddingChange(delta=LowRank(randn(2, 9, seed=5), randn(4, 2, seed=6), 0.5))
    change = ExpertsChange(randn(3, 2, IN, seed=7), randn(3, OUT, 2, seed=8), 1.5)
    adapter = CanonicalAdapter(
        "d", embeddings={"e": embedding}, experts={"x.w": change}, plain={"n": {"weight": norm * 1.5, "bias": shift}}
    )
    base = Weights({"e": table, "x.w": experts, "n.weight": norm, "n.bias": shift})
    effect = measure(adapter, base, BaseNorms(base))
    for path, dense, weight in (
        ("e", effective(embedding, table)[0], table),
        ("x.w", effective(change, experts)[0], experts),
    ):
        expected = float(torch.linalg.norm(dense - weight) / torch.linalg.norm(weight))
        assert effect.modules[path].relative == pytest.approx(expected, rel=1e-5)
    size = math.hypot(float(norm.norm()), float(shift.norm()))
    assert effect.modules["n"].relative == pytest.approx(0.5 * float(norm.norm()) / size, rel=1e-5)
    assert [effect.modules[path].rank for path in ("e", "x.w", "n")] == [2, 2, 0]
    assert effect.nbytes == adapter.nbytes


@pytest.mark.parametrize(
    "part", [{"rows": Rows(torch.tensor([0, 7]), randn(2, 4, seed=3))}, {"gain": randn(4, seed=4)}]
)
def test_an_embeddings_other_parts_are_measured(part: dict[str, object]) -> None:
    table = randn(9, 4, seed=1)
    change = replace(EmbeddingChange(), **part)
    base = Weights({"m": table})
    moved = relative_of(CanonicalAdapter("d", embeddings={"m": change}), base)
    expected = float(torch.linalg.norm(effective(change, table)[0] - table) / torch.linalg.norm(table))
    assert moved == pytest.approx(expected, rel=1e-5)
    assert moved > 0


def test_errors_and_ranks_are_passed_on() -> None:
    deltas = (a_delta("low rank", rank=2), a_delta("shared basis", rank=5))
    adapter = CanonicalAdapter(
        "d",
        linears={"m": LinearChange(deltas=deltas), "k": LinearChange(deltas=(a_delta("kronecker"),))},
        errors={"m": 0.25},
    )
    base = Weights({"m": randn(OUT, IN, seed=1), "k": randn(OUT, IN, seed=2)})
    effect = measure(adapter, base, BaseNorms(base))
    assert (effect.modules["m"].rank, effect.modules["m"].error) == (7, 0.25)
    assert (effect.modules["k"].rank, effect.modules["k"].error) == (2 * 3, 0.0)
    assert int(torch.linalg.matrix_rank(dense_delta(deltas[0]) + dense_delta(deltas[1]))) <= rank_of(deltas)
    assert int(torch.linalg.matrix_rank(dense_delta(a_delta("kronecker")))) == 6
    assert not effect.exact


def test_a_low_rank_adapter_asks_for_each_weight_once() -> None:
    base = Weights({"m": randn(OUT, IN, seed=1)})
    norms = BaseNorms(base)
    adapter = CanonicalAdapter("d", linears={"m": LinearChange(deltas=(a_delta("low rank"),))})
    first = measure(adapter, base, norms)
    assert measure(adapter, base, norms) == first
    assert base.asked == ["m"]


def test_a_kronecker_product_alone_is_not_formed() -> None:
    """65536 × 65536 would be 16 GB."""
    tall = Kronecker(torch.ones(256, 256), torch.ones(256, 256), 2.0)
    assert delta_norm([tall]) == pytest.approx(2.0 * 65536)


@pytest.mark.parametrize("part", ["all", "low rank", "transform", "weight", "rows", "gain"])
def test_blocks_of_rows_add_up_to_the_whole(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    full = replace(everything(), deltas=tuple(a_delta(kind, 5) for kind in ("low rank", "shared basis")))
    name = "deltas" if part == "low rank" else part
    change = full if part == "all" else replace(LinearChange(gain=full.gain), **{name: getattr(full, name)})
    weight = randn(OUT, IN, seed=90)
    expected = float((effective(change, weight)[0] - weight).norm() / weight.norm())
    monkeypatch.setattr("livery_adapters.measure._BLOCK", 5 * IN)  # blocks of five rows: the last one is shorter
    assert of_linear(change, weight) == pytest.approx(expected, rel=1e-5)


def test_blocks_of_an_embedding_add_up_to_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    table = randn(13, 4, seed=1)
    rows = Rows(torch.tensor([3, 5, 12]), randn(3, 4, seed=5))
    change = EmbeddingChange(LowRank(randn(2, 13, seed=3), randn(4, 2, seed=4), 0.5), rows=rows, gain=randn(4, seed=2))
    expected = float((effective(change, table)[0] - table).norm() / table.norm())
    monkeypatch.setattr("livery_adapters.measure._BLOCK", 5 * 4)
    adapter = CanonicalAdapter("d", embeddings={"m": change})
    assert relative_of(adapter, Weights({"m": table})) == pytest.approx(expected, rel=1e-5)


def test_a_replaced_weight_is_not_copied_to_be_measured() -> None:
    table, other = (randn(6000, 512, seed=seed, dtype=torch.bfloat16) for seed in (1, 2))
    base = Weights({"m": table})
    with Largest() as largest:
        relative_of(CanonicalAdapter("d", embeddings={"m": EmbeddingChange(weight=other)}), base)
        relative_of(CanonicalAdapter("d", linears={"m": LinearChange(weight=other)}), base)
    assert largest.nbytes <= table.nbytes  # a view of all of it; in fp32 a copy would be twice as large
