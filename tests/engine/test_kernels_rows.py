"""Row kernels, native and torch, against the same in float64, and that a row's company never shows in its bits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.kernels_under_test import each_kernel, only_native
from livery.engine.kernels import Kernels, load


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@each_kernel
@pytest.mark.parametrize("d", [1, 7, 16, 33, 576])
@pytest.mark.parametrize("with_residual", [False, True])
def test_rms_norm(kernels: Kernels, d: int, with_residual: bool) -> None:
    wide = normal(5, d + 3)
    x, weight = wide[:, :d], normal(d, seed=1)
    residual = normal(5, d, seed=2) if with_residual else None
    summed = x + residual if residual is not None else x.clone()
    outside = wide[:, d:].clone()
    y = kernels.rms_norm(x, weight, 1e-5, residual)
    exact = summed.double()
    exact = exact / (exact.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight
    assert torch.allclose(y.double(), exact, rtol=1e-5, atol=1e-6)
    assert torch.equal(x, summed)
    assert torch.equal(wide[:, d:], outside)


@each_kernel
def test_rms_norm_of_heads_inside_a_wider_product(kernels: Kernels) -> None:
    product, weight = normal(3, 50), normal(8, seed=1)
    heads = product[:, 5:37].unflatten(1, (4, 8))
    exact = heads.double() / (heads.double().square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight
    assert torch.allclose(kernels.rms_norm(heads, weight, 1e-6).double(), exact, rtol=1e-5, atol=1e-6)


@each_kernel
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 2, 8), (9, 3, 64), (3, 1, 34)])
def test_rope_turns_pairs_and_fills_slots(kernels: Kernels, heads: int, kv_heads: int, dim: int) -> None:
    rows, slots = 5, torch.tensor([7, 2, 11, 0, 5])
    product = normal(rows, (heads + 2 * kv_heads) * dim)
    q, k, v = (
        part.unflatten(1, (-1, dim)) for part in product.split([heads * dim, kv_heads * dim, kv_heads * dim], dim=1)
    )
    angles = normal(rows, dim // 2, seed=1) * 10
    caches = [torch.full((3, 4, kv_heads, dim), 9.0) for _ in range(2)]

    def turned(x: Tensor) -> Tensor:
        pairs = (
            torch.complex(*x.double().chunk(2, dim=-1)) * torch.polar(torch.ones(()).double(), angles.double())[:, None]
        )
        return torch.cat([pairs.real, pairs.imag], dim=-1)

    expected_q, expected_k, expected_v = turned(q), turned(k), v.double().clone()
    kernels.rope(q, k, v, angles.cos(), angles.sin(), *caches, slots)
    assert torch.allclose(q.double(), expected_q, atol=1e-5)
    for cache, expected in zip(caches, (expected_k, expected_v), strict=True):
        flat = cache.view(12, kv_heads, dim)
        assert torch.allclose(flat[slots].double(), expected, atol=1e-5)
        others = [slot for slot in range(12) if slot not in slots.tolist()]
        assert torch.equal(flat[others], torch.full_like(flat[others], 9.0))


@each_kernel
@pytest.mark.parametrize("f", [1, 16, 37])
def test_silu_mul(kernels: Kernels, f: int) -> None:
    gate_up = normal(4, 2 * f) * 30
    gate_up[0, 0], gate_up[1, 0] = 1e4, -1e4  # where e^x overflows
    gate, up = gate_up.double().chunk(2, dim=1)
    y = kernels.silu_mul(gate_up)
    assert torch.allclose(y.double(), gate * torch.sigmoid(gate) * up, rtol=1e-5, atol=1e-6)


@each_kernel
def test_what_is_not_a_number_stays_in_its_row(kernels: Kernels) -> None:
    gate_up = normal(3, 32)
    expected = kernels.silu_mul(gate_up.clone()), kernels.rms_norm(gate_up.clone(), torch.ones(32), 1e-5)
    gate_up[1] = float("nan")
    for found, clean in zip(
        (kernels.silu_mul(gate_up), kernels.rms_norm(gate_up, torch.ones(32), 1e-5)), expected, strict=True
    ):
        assert found[1].isnan().all()
        assert torch.equal(found[[0, 2]], clean[[0, 2]])


@only_native
@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 300))
def test_native_rows_do_not_depend_on_their_company(rows: int, d: int) -> None:
    kernels, x, weight = load("auto"), normal(rows, 2 * d), normal(2 * d, seed=1)
    residual = normal(rows, 2 * d, seed=2)
    together = kernels.silu_mul(kernels.rms_norm(x.clone(), weight, 1e-5, residual))
    for row in range(rows):
        alone = kernels.rms_norm(x[row : row + 1].clone(), weight, 1e-5, residual[row : row + 1])
        assert torch.equal(kernels.silu_mul(alone)[0], together[row])


@only_native
def test_native_rope_refuses_what_does_not_fit() -> None:
    kernels = load("auto")

    def call(slots: list[int], heads: int = 2, dim: int = 8) -> None:
        q, k = torch.zeros(2, heads, dim), torch.zeros(2, 1, 8)
        cache = torch.zeros(1, 4, 1, 8)
        kernels.rope(q, k, k.clone(), torch.ones(2, 4), torch.zeros(2, 4), cache, cache.clone(), torch.tensor(slots))

    call([0, 3])
    with pytest.raises(ValueError, match="slot 4 of a cache of 4"):
        call([0, 4])
    with pytest.raises(ValueError, match="slot -1"):
        call([-1, 0])
    with pytest.raises(ValueError, match="heads side by side"):
        call([0, 1], dim=10)
