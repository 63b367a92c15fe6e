"""Grouped adapter products and linear products, native and torch, against sums written out in float64; and that
one adapter's NaN stays in its rows.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.kernels_under_test import KERNELS, each_kernel, only_native
from livery.engine.kernels import AdapterGroup, GroupSegments, Kernels, load
from livery.engine.kernels.group import ALIGNMENT


def lora_by_hand(x: Tensor, y: Tensor, entries: list[tuple[int, int, AdapterGroup]]) -> Tensor:
    expected = y.double()
    for start, end, group in entries:
        for row in range(start, end):
            for part in group.slices:
                a = group.a[part.first_rank : part.first_rank + part.rank].double()
                delta = part.scale * ((a @ x[row].double()) @ part.b.double())
                expected[row, part.offset : part.offset + part.b.shape[1]] += delta
    return expected


def random_group(
    generator: torch.Generator, ranks: list[int], outs: list[int], width: int, dtype: torch.dtype
) -> AdapterGroup:
    """A group with absent members where the rank is 0."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return AdapterGroup(
        [normal(rank, width) if rank else None for rank in ranks],
        [normal(out, rank) if rank else None for rank, out in zip(ranks, outs, strict=True)],
        [0.5 + index for index in range(len(ranks))],
        [sum(outs[:index]) for index in range(len(outs))],
        width,
        dtype,
    )


def rows_per_adapter(popularity: str, adapters: int, rows: int) -> list[int]:
    """How many of `rows` each adapter gets; some may get none."""
    if popularity == "distinct":
        return [1] * adapters
    if popularity == "identical":
        return [rows] + [0] * (adapters - 1)
    if popularity == "uniform":
        return [rows // adapters] * adapters
    if popularity == "skewed":
        return [rows] + [1] * (adapters - 1)
    return [max(1, int(rows / (index + 1) ** 1.5)) for index in range(adapters)]  # zipf


def relative_error(found: Tensor, expected: Tensor) -> float:
    if not expected.numel():  # no row at all is a step like any other
        return 0.0
    return float((found.double() - expected.double()).abs().max() / expected.abs().max().clamp(min=1e-6))


@each_kernel
@settings(max_examples=60, deadline=None)
@given(
    ranks=st.lists(st.lists(st.integers(0, 64), min_size=3, max_size=3).filter(any), min_size=1, max_size=5),
    outs=st.lists(st.integers(1, 150), min_size=3, max_size=3),
    width=st.integers(1, 300),
    popularity=st.sampled_from(["distinct", "uniform", "zipf", "identical", "skewed"]),
    rows=st.integers(1, 40),
    gap=st.integers(0, 2),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 1000),
)
def test_grouped_lora_equals_the_sum_written_out(
    kernels: Kernels,
    ranks: list[list[int]],
    outs: list[int],
    width: int,
    popularity: str,
    rows: int,
    gap: int,
    dtype: torch.dtype,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    groups = [random_group(generator, member_ranks, outs, width, dtype) for member_ranks in ranks]
    entries, start = [], gap
    for group, count in zip(groups, rows_per_adapter(popularity, len(groups), rows), strict=True):
        entries.append((start, start + count, group))
        start += count + gap
    x = torch.randn((start, width + 3), generator=generator)[:, :width]
    y = torch.randn((start, sum(outs) + 2), generator=generator)[:, : sum(outs)]
    expected = lora_by_hand(x, y, entries)
    untouched = [row for row in range(start) if not any(first <= row < end for first, end, _ in entries)]
    before = y.clone()
    kernels.grouped_lora(x, y, GroupSegments(entries))
    assert relative_error(y, expected) < 2e-6
    assert torch.equal(y[untouched], before[untouched])


@each_kernel
@pytest.mark.parametrize("rank", [1, 16, 256])
@pytest.mark.parametrize("rows", [1, 9, 200])
def test_grouped_lora_at_sizes_that_are_shared_out_over_threads(kernels: Kernels, rows: int, rank: int) -> None:
    generator = torch.Generator().manual_seed(rows * rank)
    groups = [random_group(generator, [rank, rank], [700, 300], 1030, torch.bfloat16) for _ in range(2)]
    entries = [(0, rows, groups[0]), (rows, rows + 1, groups[1])]
    x, y = torch.randn((rows + 1, 1030), generator=generator), torch.zeros((rows + 1, 1000))
    kernels.grouped_lora(x, y, GroupSegments(entries))
    assert relative_error(y, lora_by_hand(x, torch.zeros_like(y), entries)) < 2e-6


@each_kernel
def test_nan_in_one_adapter_or_row_stays_in_its_rows(kernels: Kernels) -> None:
    generator = torch.Generator().manual_seed(1)
    good = random_group(generator, [8, 3], [40, 20], 70, torch.float32)
    bad = random_group(generator, [8, 3], [40, 20], 70, torch.float32)
    bad.a[2, 5] = float("nan")
    entries = [(0, 4, good), (4, 7, bad), (7, 20, good)]
    x = torch.randn((22, 70), generator=generator)
    x[9, 3] = float("nan")  # one row of a block that others share
    y = torch.zeros((22, 60))
    kernels.grouped_lora(x, y, GroupSegments(entries))
    poisoned = [4, 5, 6, 9]
    healthy = [row for row in range(22) if row not in poisoned]
    assert y[healthy].isfinite().all()
    assert y[4:7, :40].isnan().all()
    assert y[4:7, 40:].isfinite().all()  # the bad rank belongs to the first member alone
    assert y[9].isnan().all()
    x[9, 3] = 0.0
    expected = lora_by_hand(x, torch.zeros((22, 60)), [(0, 4, good), (7, 20, good)])
    assert relative_error(y[healthy], expected[healthy]) < 2e-6


@each_kernel
def test_rows_without_adapter_keep_their_nan_and_values(kernels: Kernels) -> None:
    group = random_group(torch.Generator().manual_seed(2), [4], [10], 6, torch.float32)
    x = torch.full((3, 6), float("nan"))
    y = torch.tensor([[1.0] * 10, [2.0] * 10, [3.0] * 10])
    kernels.grouped_lora(x, y, GroupSegments([(1, 2, group)]))
    assert y[0].eq(1.0).all() and y[2].eq(3.0).all() and y[1].isnan().all()


@only_native
def test_a_segment_that_does_not_fit_is_refused_before_anything_is_written() -> None:
    group = random_group(torch.Generator().manual_seed(3), [4], [10], 6, torch.float32)
    x, y = torch.ones((3, 6)), torch.zeros((3, 10))
    for entries in ([(0, 1, group), (2, 4, group)], [(0, 1, group), (-1, 1, group)]):
        with pytest.raises(ValueError, match="segment 1"):
            KERNELS[0].grouped_lora(x, y, GroupSegments(entries))
    with pytest.raises(ValueError, match="segment 0"):
        KERNELS[0].grouped_lora(torch.ones((3, 7)), y, GroupSegments([(0, 1, group)]))
    with pytest.raises(ValueError, match="segment 0"):
        KERNELS[0].grouped_lora(x, y[:, :9], GroupSegments([(0, 1, group)]))
    with pytest.raises(ValueError, match="fp32"):
        KERNELS[0].grouped_lora(x.double(), y, GroupSegments([(0, 1, group)]))
    assert y.eq(0.0).all()


def test_a_group_can_lie_in_memory_given_from_outside() -> None:
    rng = torch.Generator().manual_seed(1)
    a, b = torch.randn((4, 6), generator=rng), torch.randn((10, 4), generator=rng)
    group = AdapterGroup([None, a], [None, b], [1.0, 0.5], [0, 10], 6)
    arena = torch.full((1024,), 255, dtype=torch.uint8)
    moved = group.over(arena[ALIGNMENT : ALIGNMENT + group.nbytes])
    moved.memory.copy_(group.memory)
    assert moved.a.data_ptr() == arena.data_ptr() + ALIGNMENT
    assert moved.a.equal(a) and moved.slices[0].b.equal(b.t()) and moved.rank_scales.tolist() == [0.5] * 4
    for kernels in KERNELS:
        x, y = torch.randn((3, 6), generator=rng), torch.zeros((3, 20))
        kernels.grouped_lora(x, y, GroupSegments([(0, 3, moved)]))
        assert torch.allclose(y[:, 10:], 0.5 * x @ a.t() @ b.t(), atol=1e-5) and not y[:, :10].any()
    for wrong in (arena[1 : 1 + group.nbytes], arena[:ALIGNMENT], arena[: group.nbytes].to(torch.int16)):
        with pytest.raises(ValueError, match="aligned"):
            group.over(wrong)


def test_group_takes_only_shapes_that_fit_and_counts_its_bytes() -> None:
    a, b = torch.zeros((4, 6)), torch.zeros((10, 4))
    group = AdapterGroup([a, None], [b, None], [1.0, 1.0], [0, 10], 6, torch.bfloat16)
    assert group.nbytes == 64 + 2 * 64 + 64, "A of 48 bytes, B of 80, four scales: each begins a line of 64"
    assert group.total_rank == 4
    for a_slices, b_slices in (([a], [None]), ([a], [b[:, :3]]), ([a[:, :5]], [b]), ([None], [None])):
        with pytest.raises(ValueError):
            AdapterGroup(a_slices, b_slices, [1.0], [0], 6)
    with pytest.raises(ValueError, match="float16"):
        AdapterGroup([a], [b], [1.0], [0], 6, torch.float16)


def test_group_owns_its_memory() -> None:
    a, b = torch.ones((1, 6)), torch.ones((10, 1))  # of rank 1: B needs no transposition
    group = AdapterGroup([a], [b], [1.0], [0], 6)
    a.fill_(float("nan"))
    b.fill_(float("nan"))
    assert group.a.eq(1.0).all() and group.slices[0].b.eq(1.0).all()


@each_kernel
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 70),
    outs=st.integers(1, 150),
    width=st.integers(1, 200),
    with_bias=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_linear_equals_the_product_in_double(
    kernels: Kernels, rows: int, outs: int, width: int, with_bias: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((rows, width + 1), generator=generator)[:, :width]
    weight = torch.randn((outs, width), generator=generator)
    bias = torch.randn(outs, generator=generator) if with_bias else None
    packed = kernels.pack(weight)
    found = kernels.linear(x, packed, bias)
    assert torch.equal(packed.dense(), weight)
    expected = x.double() @ weight.double().t() + (0.0 if bias is None else bias.double())
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-5)


@each_kernel
@pytest.mark.parametrize("rows", [1, 3, 8, 16, 33])
def test_linear_keeps_a_nan_row_to_itself_at_sizes_shared_by_threads(kernels: Kernels, rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    x, weight = torch.randn((rows, 330), generator=generator), torch.randn((403, 330), generator=generator)
    expected = x.double() @ weight.double().t()
    x[rows // 2, 7] = float("nan")
    found = kernels.linear(x, kernels.pack(weight))
    assert found[rows // 2].isnan().all()
    healthy = [row for row in range(rows) if row != rows // 2]
    torch.testing.assert_close(found[healthy].double(), expected[healthy], atol=1e-4, rtol=1e-5)


@each_kernel
def test_a_tied_embedding_reads_its_rows_from_the_packed_weight(kernels: Kernels) -> None:
    weight = torch.randn((101, 24), generator=torch.Generator().manual_seed(3))
    ids = torch.tensor([0, 31, 32, 100, 64, 64])
    assert torch.equal(kernels.pack(weight).rows(ids), weight[ids])


@only_native
def test_weights_in_other_dtypes_are_left_to_torch() -> None:
    x, weight = torch.randn((4, 32)).bfloat16(), torch.randn((32, 32)).bfloat16()
    assert torch.equal(KERNELS[0].linear(x, KERNELS[0].pack(weight)), torch.nn.functional.linear(x, weight))


@only_native
@pytest.mark.parametrize(("x", "bias"), [((2, 31), 32), ((2, 32), 31)])
def test_shapes_that_do_not_fit_never_reach_the_native_code(x: tuple[int, int], bias: int) -> None:
    packed = KERNELS[0].pack(torch.ones((32, 32)))
    with pytest.raises(ValueError, match="31"):
        KERNELS[0].linear(torch.ones(x), packed, torch.ones(bias))


def test_half_precision_rows_round_no_weight_of_an_adapter() -> None:
    """A converted PiSSA adds a part and takes nearly the same out again: what is left is small beside both."""
    generator = torch.Generator().manual_seed(2)
    a, change = (torch.randn((3, 24), generator=generator) for _ in range(2))
    b = torch.randn((16, 3), generator=generator)
    pair = torch.cat([a + 1e-3 * change, a]), torch.cat([b, -b], dim=1)
    group = AdapterGroup([pair[0]], [pair[1]], [1.5], [0], 24)
    x, y = torch.randn((5, 24), generator=generator).bfloat16(), torch.zeros(5, 16, dtype=torch.bfloat16)
    load("torch").grouped_lora(x, y, GroupSegments([(0, 5, group)]))
    assert relative_error(y, 1.5e-3 * x.double() @ change.double().t() @ b.double().t()) < 2**-8
