"""Norms, rotary positions and activations for CUDA, in Triton's interpreter, against the same in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import engine.triton_under_test  # noqa: F401 (skips where there is no Triton)
from livery.engine.kernels.cuda import TritonKernels
from livery.engine.kernels.reference import TorchKernels

pytestmark = pytest.mark.gpu

KERNELS = TritonKernels()
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float16])


def normal(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    error = 2e-6 if dtype is torch.float32 else 2e-3
    torch.testing.assert_close(found.double(), expected.double(), atol=4 * error, rtol=error)


@each_dtype
@pytest.mark.parametrize("d", [1, 33, 576])
@pytest.mark.parametrize("with_residual", [False, True])
def test_rms_norm_and_the_sum_before_it(dtype: torch.dtype, d: int, with_residual: bool) -> None:
    wide = normal(5, d + 3, dtype=dtype)
    x, weight = wide[:, :d], normal(d, dtype=dtype, seed=1)
    residual = normal(5, d, dtype=dtype, seed=2) if with_residual else None
    summed = x + residual if residual is not None else x.clone()
    outside = wide[:, d:].clone()
    found = KERNELS.rms_norm(x, weight, 1e-5, residual)
    exact = summed.double()
    close(found, exact / (exact.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double(), dtype)
    assert torch.equal(x, summed) and torch.equal(wide[:, d:], outside)


@each_dtype
def test_rms_norm_of_heads_inside_a_wider_product(dtype: torch.dtype) -> None:
    product, weight = normal(3, 50, dtype=dtype), normal(8, dtype=dtype, seed=1)
    heads = product[:, 5:37].unflatten(1, (4, 8))
    exact = heads.double() / (heads.double().square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double()
    close(KERNELS.rms_norm(heads, weight, 1e-6), exact, dtype)


@each_dtype
@pytest.mark.parametrize(("heads", "kv_heads", "dim", "v_width"), [(4, 2, 8, 8), (9, 3, 64, 64), (17, 1, 34, 5)])
def test_rope_turns_pairs_and_fills_slots(
    dtype: torch.dtype, heads: int, kv_heads: int, dim: int, v_width: int
) -> None:
    rows, slots = 5, torch.tensor([7, 2, 11, 0, 5])
    widths = [heads * dim, kv_heads * dim, kv_heads * v_width]
    angles = normal(rows, dim // 2, dtype=torch.float32, seed=1) * 10
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    results = []
    for kernels in (KERNELS, TorchKernels()):
        parts = normal(rows, sum(widths), dtype=dtype).split(widths, dim=1)
        q, k, v = (part.unflatten(1, (-1, width)) for part, width in zip(parts, (dim, dim, v_width), strict=True))
        caches = [torch.full((3, 4, kv_heads, width), 9.0, dtype=dtype) for width in (dim, v_width)]
        kernels.rope(q, k, v, cos, sin, *caches, slots)
        results.append((q, k, v, *caches))
    for found, expected in zip(*results, strict=True):
        close(found, expected, dtype)


@each_dtype
@pytest.mark.parametrize("f", [1, 37, 1500])
def test_silu_mul(dtype: torch.dtype, f: int) -> None:
    gate_up = normal(4, 2 * f, dtype=dtype) * 30
    gate_up[0, 0], gate_up[1, 0], gate_up[2, 0] = 1e4, -1e4, float("nan")
    gate, up = gate_up.double().chunk(2, dim=1)
    found = KERNELS.silu_mul(gate_up)
    expected = gate * torch.sigmoid(gate) * up
    assert found[2, 0].isnan() and found[2, 1:].isfinite().all()
    kept = expected.abs() < 6e4
    close(found[kept], expected[kept], dtype)


def test_shapes_that_do_not_fit_never_reach_the_device() -> None:
    q, cache = torch.zeros(2, 2, 10)[..., :8], torch.zeros(1, 4, 1, 8)
    k = torch.zeros(2, 1, 8)
    with pytest.raises(ValueError, match="heads side by side"):
        KERNELS.rope(q, k, k.clone(), torch.ones(2, 4), torch.zeros(2, 4), cache, cache.clone(), torch.tensor([0, 1]))
