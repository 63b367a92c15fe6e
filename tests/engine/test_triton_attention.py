"""Paged attention for CUDA, in Triton's interpreter, against softmax written out in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import engine.triton_under_test  # noqa: F401 (skips where there is no Triton)
from engine.test_kernels_attention import Paged
from livery.engine.kernels.cuda import TritonKernels, attention

pytestmark = pytest.mark.gpu

KERNELS = TritonKernels()


def tolerance(dtype: torch.dtype) -> float:
    return 6e-6 if dtype is torch.float32 else 4e-3


each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float16])


@each_dtype
@settings(max_examples=12, deadline=None)
@given(
    lens=st.lists(st.integers(0, 150), min_size=1, max_size=4),
    block_size=st.sampled_from([1, 8, 16]),
    heads=st.sampled_from([(1, 1), (3, 3), (1, 7), (2, 5), (1, 18)]),
    dims=st.sampled_from([(8, 8), (64, 64), (40, 24), (13, 5)]),
    window=st.sampled_from([0, 1, 33]),
    softcap=st.sampled_from([0.0, 2.0]),
    seed=st.integers(0, 1000),
)
def test_decode_equals_softmax_written_out(
    dtype: torch.dtype,
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
    found = KERNELS.paged_attention(
        q.to(dtype), paged.k.to(dtype), paged.v.to(dtype), paged.tables, None, paged.lens, scale, window, softcap
    )
    expected = paged.by_hand(q, list(range(len(lens) + 1)), scale, window, softcap)
    torch.testing.assert_close(found.double(), expected, atol=tolerance(dtype), rtol=tolerance(dtype))


@each_dtype
def test_contexts_of_many_sequences_are_not_split(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "PROGRAMS", 8)
    paged = Paged(3, [1, 100, 0, 33, 70], 16, 2, 16, 8)
    q = torch.randn((5, 4, 16), generator=paged.generator)
    found = KERNELS.paged_attention(
        q.to(dtype), paged.k.to(dtype), paged.v.to(dtype), paged.tables, None, paged.lens, 0.3
    )
    expected = paged.by_hand(q, list(range(6)), 0.3, 0, 0.0)
    torch.testing.assert_close(found.double(), expected, atol=tolerance(dtype), rtol=tolerance(dtype))


@each_dtype
@settings(max_examples=12, deadline=None)
@given(
    queries=st.lists(st.tuples(st.sampled_from([1, 2, 30, 70]), st.integers(0, 90)), min_size=1, max_size=4),
    heads=st.sampled_from([(1, 1), (3, 3), (1, 5)]),
    dims=st.sampled_from([(8, 8), (64, 64), (13, 5)]),
    window=st.sampled_from([0, 1, 20]),
    softcap=st.sampled_from([0.0, 2.0]),
    seed=st.integers(0, 1000),
)
def test_chunks_equal_causal_softmax_written_out(
    dtype: torch.dtype,
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
    out = torch.full((starts[-1], kv_heads * shared, dims[1]), float("nan"), dtype=dtype)
    found = KERNELS.paged_attention(
        q.to(dtype),
        paged.k.to(dtype),
        paged.v.to(dtype),
        paged.tables,
        torch.tensor(starts, dtype=torch.int32),
        paged.lens,
        0.4,
        window,
        softcap,
        out,
    )
    assert found is out
    expected = paged.by_hand(q, starts, 0.4, window, softcap)
    torch.testing.assert_close(out.double(), expected, atol=tolerance(dtype), rtol=tolerance(dtype))


@pytest.mark.parametrize("starts", [None, [0, 1, 2, 3]])
@pytest.mark.parametrize("window", [0, 10])
def test_a_poisoned_sequence_leaves_the_others_alone(window: int, starts: list[int] | None) -> None:
    paged = Paged(5, [40, 40, 40], 16, 2, 16, 16)
    paged.k[paged.tables[1, 2], 7] = float("nan")  # the newest position of the second sequence
    q = torch.randn((3, 4, 16), generator=paged.generator)
    given = None if starts is None else torch.tensor(starts, dtype=torch.int32)
    found = KERNELS.paged_attention(q, paged.k, paged.v, paged.tables, given, paged.lens, 0.25, window)
    assert found[1].isnan().all()
    expected = paged.by_hand(q, [0, 1, 2, 3], 0.25, window, 0.0)
    torch.testing.assert_close(found[[0, 2]].double(), expected[[0, 2]], atol=4e-6, rtol=1e-5)


@pytest.mark.parametrize("size", [1e-3, 30.0, 1e4])
def test_weights_are_right_for_scores_of_every_size(size: float) -> None:
    scores = torch.linspace(-size, size, 61)
    k, v = scores.reshape(61, 1, 1, 1).contiguous(), torch.eye(61).reshape(61, 1, 1, 61).contiguous()
    tables = torch.arange(61, dtype=torch.int32)[None]
    lens, one = torch.tensor([61], dtype=torch.int32), torch.ones((1, 1, 1))
    for softcap in (0.0, 3.0):
        found = KERNELS.paged_attention(one, k, v, tables, None, lens, 1.0, 0, softcap).flatten().double()
        capped = softcap * torch.tanh(scores.double() / softcap) if softcap else scores.double()
        torch.testing.assert_close(found, torch.softmax(capped, dim=0), atol=3e-6, rtol=3e-5)
