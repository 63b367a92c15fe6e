"""Paged attention, native and torch, against softmax written out in float64, over caches whose other slots are NaN."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.kernels_under_test import KERNELS, each_kernel, only_native
from livery.engine.kernels import Kernels


class Paged:
    """A random paged cache with a NaN in every slot that no sequence may read."""

    def __init__(self, seed: int, lens: list[int], block_size: int, kv_heads: int, dim: int, v_dim: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        needed = [-(-length // block_size) for length in lens]
        blocks = sum(needed) + 3
        order = torch.randperm(blocks, generator=generator).tolist()
        self.k = torch.full((blocks, block_size, kv_heads, dim), float("nan"))
        self.v = torch.full((blocks, block_size, kv_heads, v_dim), float("nan"))
        self.keys = [torch.randn((length, kv_heads, dim), generator=generator) for length in lens]
        self.values = [torch.randn((length, kv_heads, v_dim), generator=generator) for length in lens]
        # Entries beyond a sequence's own blocks point nowhere.
        self.tables = torch.full((len(lens), max(needed, default=0) + 1), -7, dtype=torch.int32)
        self.lens = torch.tensor(lens, dtype=torch.int32)
        for row, (keys, values, count) in enumerate(zip(self.keys, self.values, needed, strict=True)):
            own = [order.pop() for _ in range(count)]
            self.tables[row, :count] = torch.tensor(own, dtype=torch.int32)
            for position in range(keys.shape[0]):
                block, offset = own[position // block_size], position % block_size
                self.k[block, offset], self.v[block, offset] = keys[position], values[position]
        self.generator = generator

    def by_hand(self, q: Tensor, starts: list[int], scale: float, window: int, softcap: float) -> Tensor:
        out = torch.zeros((q.shape[0], q.shape[1], self.v.shape[3]), dtype=torch.float64)
        for i, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            if keys.shape[0] == 0:
                continue
            count = starts[i + 1] - starts[i]
            shared = q.shape[1] // keys.shape[1]
            for row in range(count):
                end = keys.shape[0] - count + row + 1
                begin = max(0, end - window) if window else 0
                for head in range(q.shape[1]):
                    k = keys[begin:end, head // shared].double()
                    scores = k @ q[starts[i] + row, head].double() * scale
                    if softcap:
                        scores = softcap * torch.tanh(scores / softcap)
                    weights = torch.softmax(scores, dim=0)
                    out[starts[i] + row, head] = weights @ values[begin:end, head // shared].double()
        return out


@each_kernel
@settings(max_examples=40, deadline=None)
@given(
    lens=st.lists(st.integers(0, 150), min_size=1, max_size=5),
    block_size=st.sampled_from([1, 8, 16]),
    heads=st.sampled_from([(1, 1), (3, 3), (2, 1), (1, 7), (2, 5)]),
    dims=st.sampled_from([(8, 8), (64, 64), (40, 24), (128, 128), (13, 5)]),
    window=st.sampled_from([0, 1, 33]),
    softcap=st.sampled_from([0.0, 2.0]),
    seed=st.integers(0, 1000),
)
def test_decode_attention_equals_softmax_written_out(
    kernels: Kernels,
    lens: list[int],
    block_size: int,
    heads: tuple[int, int],
    dims: tuple[int, int],
    window: int,
    softcap: float,
    seed: int,
) -> None:
    kv_heads, shared = heads
    paged = Paged(seed, lens, block_size, kv_heads, *dims)
    q = torch.randn((kv_heads * shared, len(lens), dims[0]), generator=paged.generator).transpose(0, 1)
    scale = dims[0] ** -0.5
    found = kernels.paged_attention(q, paged.k, paged.v, paged.tables, None, paged.lens, scale, window, softcap)
    expected = paged.by_hand(q, list(range(len(lens) + 1)), scale, window, softcap)
    torch.testing.assert_close(found.double(), expected, atol=2e-6, rtol=1e-5)


@each_kernel
@settings(max_examples=25, deadline=None)
@given(
    queries=st.lists(st.tuples(st.integers(1, 30), st.integers(0, 90)), min_size=1, max_size=4),
    heads=st.sampled_from([(1, 1), (3, 3), (1, 5)]),
    dims=st.sampled_from([(8, 8), (64, 64), (13, 5)]),
    window=st.sampled_from([0, 1, 20]),
    softcap=st.sampled_from([0.0, 2.0]),
    seed=st.integers(0, 1000),
)
def test_paged_attention_equals_causal_softmax_written_out(
    kernels: Kernels,
    queries: list[tuple[int, int]],
    heads: tuple[int, int],
    dims: tuple[int, int],
    window: int,
    softcap: float,
    seed: int,
) -> None:
    kv_heads, shared = heads
    counts = [count for count, _ in queries]
    starts = [sum(counts[:i]) for i in range(len(counts) + 1)]
    paged = Paged(seed, [count + before for count, before in queries], 16, kv_heads, *dims)
    q = torch.randn((starts[-1], kv_heads * shared, dims[0]), generator=paged.generator)
    out = torch.full((starts[-1], kv_heads * shared, dims[1]), float("nan"))
    query_starts = torch.tensor(starts, dtype=torch.int32)
    found = kernels.paged_attention(
        q, paged.k, paged.v, paged.tables, query_starts, paged.lens, 0.4, window, softcap, out
    )
    assert found is out
    torch.testing.assert_close(out.double(), paged.by_hand(q, starts, 0.4, window, softcap), atol=6e-6, rtol=1e-5)


@each_kernel
@pytest.mark.parametrize("window", [0, 10])
def test_a_poisoned_sequence_leaves_the_others_alone(kernels: Kernels, window: int) -> None:
    paged = Paged(5, [40, 40, 40], 16, 2, 16, 16)
    paged.k[paged.tables[1, 2], 7] = float("nan")  # the newest position of the second sequence
    q = torch.randn((3, 4, 16), generator=paged.generator)
    found = kernels.paged_attention(q, paged.k, paged.v, paged.tables, None, paged.lens, 0.25, window)
    expected = paged.by_hand(q, [0, 1, 2, 3], 0.25, window, 0.0)
    assert found[1].isnan().all()
    torch.testing.assert_close(found[[0, 2]].double(), expected[[0, 2]], atol=2e-6, rtol=1e-5)


@each_kernel
@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0, 1e4])
def test_weights_are_right_for_scores_of_every_size(kernels: Kernels, size: float) -> None:
    # One key per score and values that count up in powers show each weight, exp and tanh included.
    scores = torch.linspace(-size, size, 61)
    k, v = scores.reshape(61, 1, 1, 1).contiguous(), torch.eye(61).reshape(61, 1, 1, 61).contiguous()
    tables = torch.arange(61, dtype=torch.int32)[None]
    lens, one = torch.tensor([61], dtype=torch.int32), torch.ones((1, 1, 1))
    for softcap in (0.0, 3.0):
        found = kernels.paged_attention(one, k, v, tables, None, lens, 1.0, 0, softcap).flatten().double()
        capped = softcap * torch.tanh(scores.double() / softcap) if softcap else scores.double()
        expected = torch.softmax(capped, dim=0)
        visible = expected > 1e-30
        worst = ((found - expected).abs() / expected)[visible].max()
        assert worst < 3e-6
        assert found[~visible].lt(1e-29).all()


@only_native
def test_attention_refuses_what_would_read_outside_the_cache() -> None:
    k = torch.zeros((4, 8, 1, 16))
    q = torch.zeros((1, 1, 16))
    for table, length in (([0, 4], 9), ([0, -1], 9), ([0, 1], 17), ([0, 1], -1)):
        with pytest.raises(ValueError, match="sequence 0"):
            KERNELS[0].paged_attention(
                q, k, k, torch.tensor([table], dtype=torch.int32), None, torch.tensor([length], dtype=torch.int32), 1.0
            )
    tables, lens = torch.zeros((1, 2), dtype=torch.int32), torch.tensor([3], dtype=torch.int32)
    starts = torch.tensor([0, 4], dtype=torch.int32)
    with pytest.raises(ValueError, match="its queries"):
        KERNELS[0].paged_attention(q.expand(4, 1, 16), k, k, tables, starts, lens, 1.0)
    with pytest.raises(ValueError, match="query_starts"):
        KERNELS[0].paged_attention(q.expand(4, 1, 16), k, k, tables, starts - 1, lens, 1.0)
    with pytest.raises(ValueError, match="fit together"):
        KERNELS[0].paged_attention(q[..., :8], k, k, tables, None, lens, 1.0)


@only_native
@settings(max_examples=30, deadline=None)
@given(
    before=st.integers(0, 1200),
    count=st.integers(1, 40),
    beside=st.lists(st.integers(1, 600), max_size=5),
    window=st.sampled_from([0, 1, 50, 700]),
    heads=st.sampled_from([(1, 3), (2, 1)]),
    seed=st.integers(0, 1000),
)
def test_a_row_has_the_same_bits_in_any_chunk_and_company(
    before: int, count: int, beside: list[int], window: int, heads: tuple[int, int], seed: int
) -> None:
    """The last rows of a sequence in one chunk beside other sequences, and each of them alone, by two threads."""
    kernels, (kv_heads, shared) = KERNELS[0], heads
    paged = Paged(seed, [before + count, *beside], 16, kv_heads, 40, 40)
    q = torch.randn((count + len(beside), kv_heads * shared, 40), generator=paged.generator)
    starts = torch.tensor([0, *range(count, count + len(beside) + 1)], dtype=torch.int32)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        together = kernels.paged_attention(q, paged.k, paged.v, paged.tables, starts, paged.lens, 0.2, window)
        for row in {0, count // 2, count - 1}:
            seen = torch.tensor([before + row + 1], dtype=torch.int32)
            alone = kernels.paged_attention(
                q[row : row + 1], paged.k, paged.v, paged.tables[:1], None, seen, 0.2, window
            )
            assert torch.equal(alone[0], together[row])
    finally:
        torch.set_num_threads(threads)
