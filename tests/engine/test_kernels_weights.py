"""Weights in every layout: the same numbers as fp32, exactly where that is promised, for any rows and any company."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.kernels_under_test import KERNELS, each_kernel, only_native
from livery.engine.kernels import AdapterGroup, GroupSegments, Kernels, Layout, PackedWeight

LAYOUTS: tuple[Layout, ...] = ("fp32", "bf16", "int8", "int4")
each_layout = pytest.mark.parametrize("layout", LAYOUTS)
LOSS = {"fp32": 0.0, "bf16": 2**-8, "int8": 1 / 127, "int4": 1 / 15}  # a step of the grid against the largest number


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@each_kernel
@each_layout
@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(0, 40),
    outs=st.integers(1, 150),
    width=st.integers(1, 400),
    with_bias=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_every_layout_gives_the_product_of_its_numbers(
    kernels: Kernels, layout: Layout, rows: int, outs: int, width: int, with_bias: bool, seed: int
) -> None:
    weight, x = normal(outs, width, seed=seed), normal(rows, width + 1, seed=seed + 1)[:, :width]
    bias = normal(outs, seed=seed + 2) if with_bias else None
    held = kernels.pack(weight, layout)
    dense = held.dense()
    assert dense.shape == weight.shape and dense.dtype == torch.float32
    assert float((dense - weight).abs().max()) <= LOSS[layout] * float(weight.abs().max())
    expected = x.double() @ dense.double().t() + (0.0 if bias is None else bias.double())
    torch.testing.assert_close(kernels.linear(x, held, bias).double(), expected, atol=1e-4, rtol=1e-5)


@each_kernel
@each_layout
def test_a_part_and_single_rows_of_a_weight_are_read_from_its_memory(kernels: Kernels, layout: Layout) -> None:
    held = kernels.pack(normal(203, 70), layout)
    dense = held.dense()
    ids = torch.tensor([0, 31, 32, 202, 100, 100, 17])
    assert torch.equal(held.rows(ids), dense[ids])
    for start, stop in ((0, 203), (0, 1), (40, 100), (64, 96), (190, 203)):
        part, skip = held.covering(start, stop)
        assert torch.equal(part.dense()[skip : skip + stop - start], dense[start:stop])
        y = kernels.linear(torch.eye(70), part)[:, skip : skip + stop - start]
        assert torch.equal(y, dense[start:stop].t())


@only_native
@each_layout
@pytest.mark.parametrize(("outs", "width"), [(96, 64), (203, 330), (70, 1000)])
def test_a_row_is_the_same_bits_in_any_company_and_layout(layout: Layout, outs: int, width: int) -> None:
    """Also where many rows share widened weights, and where a panel is computed in several stretches."""
    x, bias = normal(33, width), normal(outs, seed=1)
    held = KERNELS[0].pack(normal(outs, width, seed=2), layout)
    alone = torch.cat([KERNELS[0].linear(row, held, bias) for row in x.split(1)])
    written_out = KERNELS[0].pack(held.dense())
    for rows in range(1, 34):
        assert torch.equal(KERNELS[0].linear(x[:rows], held, bias), alone[:rows])
        assert torch.equal(KERNELS[0].linear(x[:rows], written_out, bias), alone[:rows])


@only_native
@each_layout
def test_a_row_is_the_same_bits_with_any_number_of_threads(layout: Layout) -> None:
    x, held = normal(17, 600), KERNELS[0].pack(normal(203, 600, seed=2), layout)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(KERNELS[0].linear(x, held))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@only_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ranks", [[5, 16], [64, 0]])
def test_an_adapters_row_is_the_same_bits_in_any_company(dtype: torch.dtype, ranks: list[int]) -> None:
    width, outs = 330, [203, 600]
    groups = [
        AdapterGroup(
            [normal(rank, width, seed=seed + rank) if rank else None for rank in ranks],
            [normal(out, rank, seed=seed) if rank else None for rank, out in zip(ranks, outs, strict=True)],
            [0.5, 2.0],
            [0, outs[0]],
            width,
            dtype,
        )
        for seed in (1, 2)
    ]
    x, base = normal(40, width), normal(40, sum(outs), seed=3)
    alone = base.clone()
    for row in range(40):
        KERNELS[0].grouped_lora(x[row : row + 1], alone[row : row + 1], GroupSegments([(0, 1, groups[row >= 34])]))
    for rows in range(1, 35):
        y = base.clone()
        KERNELS[0].grouped_lora(x, y, GroupSegments([(0, rows, groups[0]), (34, 40, groups[1])]))
        assert torch.equal(y[:rows], alone[:rows]) and torch.equal(y[34:], alone[34:])


@only_native
@pytest.mark.parametrize(
    ("kind", "layout"),
    [("Q4_0", "int4"), ("Q4_1", "int4"), ("Q5_0", "int8"), ("Q8_0", "int8"), ("Q5_1", "fp32"), ("BF16", "bf16")],
)
def test_what_a_gguf_file_holds_in_few_bits_stays_so_without_loss(kind: str, layout: str) -> None:
    weight = normal(100, 320).numpy()
    weight[3, 32:64] = 0.0
    weight[4, :32] = 0.25
    weight[5] *= 1e-7  # scales that fp16 can only write as subnormal numbers
    written = torch.from_numpy(dequantize(quantize(weight, GGMLQuantizationType[kind]), GGMLQuantizationType[kind]))
    held = KERNELS[0].pack(written, "exact")
    assert held.layout == layout
    assert torch.equal(held.dense(), written)


@only_native
def test_blocks_that_leave_levels_of_their_grid_unused_are_found() -> None:
    generator = np.random.default_rng(0)
    codes = generator.integers(3, 9, (64, 96)).astype(np.float32)
    scale, least = (generator.normal(size=(64, 3)).astype(np.float16).astype(np.float32) for _ in range(2))
    grid = codes.reshape(64, 3, 32) * scale[..., None] + least[..., None]
    held = KERNELS[0].pack(torch.from_numpy(grid.reshape(64, 96)), "exact")
    assert held.layout == "int4" and torch.equal(held.dense(), torch.from_numpy(grid.reshape(64, 96)))


@only_native
def test_numbers_on_no_grid_are_held_as_they_are() -> None:
    rounded = KERNELS[0].pack(normal(70, 100), "int4").dense()
    assert KERNELS[0].pack(rounded, "exact").layout == "int4"
    off = rounded.clone()
    off[69, 99] = torch.nextafter(off[69, 99], torch.tensor(9.0))
    for weight, layout in ((off, "fp32"), (normal(70, 100), "fp32"), (normal(70, 100).bfloat16().float(), "bf16")):
        held = KERNELS[0].pack(weight, "exact")
        assert held.layout == layout and torch.equal(held.dense(), weight)
    off[69, 99] = float("nan")
    assert isinstance(KERNELS[0].pack(off, "exact"), PackedWeight)


@only_native
def test_few_bits_take_few_bytes() -> None:
    weight = normal(320, 640)
    size = {layout: KERNELS[0].pack(weight, layout).nbytes / weight.numel() for layout in LAYOUTS}
    assert size == {"fp32": 4, "bf16": 2, "int8": 1 + 2 / 32, "int4": 1 / 2 + 4 / 32}
