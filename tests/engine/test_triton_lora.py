"""The grouped adapter products for CUDA, in Triton's interpreter, against sums written out in float64."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import engine.triton_under_test  # noqa: F401 (skips where there is no Triton)
from engine.test_kernels import lora_by_hand, random_group, relative_error
from livery.engine.kernels import AdapterGroup, GroupSegments, group
from livery.engine.kernels.cuda import TritonKernels
from livery.engine.kernels.cuda.lora import LoraPlan, grouped_lora
from livery.engine.kernels.tables import AdapterRecord, DeviceSegments, StepTable

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True, scope="module")
def half_precision() -> Iterator[None]:
    """Groups in half precision as the interpreter can compute it; engines keep theirs in bf16."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(group, "_DTYPES", (torch.float32, torch.bfloat16, torch.float16))
        yield


KERNELS = TritonKernels()
HALF_ERROR = 2**-10  # fp16 has 11 bits: y is rounded once, and hidden once where the weights are in half precision
Entries = list[tuple[int, int, AdapterGroup]]


def check(x: Tensor, y: Tensor, entries: Entries) -> None:
    expected, before = lora_by_hand(x, y, entries), y.clone()
    KERNELS.grouped_lora(x, y, GroupSegments(entries))
    untouched = [row for row in range(len(x)) if not any(start <= row < end for start, end, _ in entries)]
    assert relative_error(y, expected) < (2e-6 if x.dtype is torch.float32 else HALF_ERROR)
    assert torch.equal(y[untouched], before[untouched])


@settings(max_examples=20, deadline=None)
@given(
    ranks=st.lists(st.lists(st.integers(0, 40), min_size=3, max_size=3).filter(any), min_size=1, max_size=3),
    dtypes=st.lists(st.sampled_from([torch.float32, torch.float16]), min_size=3, max_size=3),
    outs=st.sampled_from([(48, 16, 16), (150, 7, 33), (1, 1, 1)]),
    width=st.sampled_from([1, 64, 130, 1040]),
    rows=st.lists(st.sampled_from([0, 1, 3, 17, 70]), min_size=3, max_size=3),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    seed=st.integers(0, 1000),
)
def test_any_mix_of_ranks_precisions_and_rows(
    ranks: list[list[int]],
    dtypes: list[torch.dtype],
    outs: tuple[int, int, int],
    width: int,
    rows: list[int],
    dtype: torch.dtype,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    entries: Entries = []
    start = 1
    for member_ranks, kept, count in zip(ranks, dtypes, rows, strict=False):
        entries.append((start, start + count, random_group(generator, member_ranks, list(outs), width, kept)))
        start += count + 1
    if dtype is torch.float32:  # beside such rows half precision is bf16, which the interpreter can't read
        entries = [(first, end, packed) for first, end, packed in entries if packed.dtype is torch.float32]
    x = torch.randn((start, width + 3), generator=generator)[:, :width].to(dtype)
    y = torch.randn((start, sum(outs) + 2), generator=generator)[:, : sum(outs)].to(dtype)
    check(x, y, entries)


@pytest.mark.parametrize("rows", [3, 70])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_nan_of_one_adapter_or_row_stays_in_its_rows(dtype: torch.dtype, rows: int) -> None:
    generator = torch.Generator().manual_seed(1)
    good, bad = (random_group(generator, [8, 3], [40, 24], 80, kept) for kept in (torch.float32, dtype))
    bad.a[2, 5] = float("nan")
    entries = [(0, rows, good), (rows, 2 * rows, bad), (2 * rows, 3 * rows, good)]
    x = torch.randn((3 * rows + 1, 80), generator=generator).to(dtype)
    x[1, 3] = float("nan")  # one row of a tile that others share
    y = torch.zeros((3 * rows + 1, 64), dtype=dtype)
    KERNELS.grouped_lora(x, y, GroupSegments(entries))
    assert y[1].isnan().all() and y[rows : 2 * rows, :40].isnan().all()
    healthy = [row for row in range(3 * rows + 1) if row != 1 and not rows <= row < 2 * rows]
    assert y[healthy].isfinite().all() and y[rows : 2 * rows, 40:].isfinite().all()
    assert relative_error(y[healthy], lora_by_hand(x, torch.zeros_like(y), entries)[healthy]) < HALF_ERROR


@pytest.mark.parametrize("rows", [5, 80])
def test_half_precision_rows_round_no_weight_of_an_adapter(rows: int) -> None:
    """A converted PiSSA adds a part and takes nearly the same out again: what is left is small beside both."""
    generator = torch.Generator().manual_seed(2)
    a, change = (torch.randn((3, 24), generator=generator) for _ in range(2))
    b = torch.randn((16, 3), generator=generator)
    pair = torch.cat([a + 1e-3 * change, a]), torch.cat([b, -b], dim=1)
    packed = AdapterGroup([pair[0]], [pair[1]], [1.5], [0], 24)
    x, y = torch.randn((rows, 24), generator=generator).half(), torch.zeros(rows, 16, dtype=torch.float16)
    KERNELS.grouped_lora(x, y, GroupSegments([(0, rows, packed)]))
    assert relative_error(y, 1.5e-3 * x.double() @ change.double().t() @ b.double().t()) < 2**-8


def test_one_launch_serves_any_mix_that_its_table_says_later() -> None:
    """What a captured graph does: the same launch again, with other words in the same table."""
    generator = torch.Generator().manual_seed(4)
    outs, width = [32, 16], 96
    groups = [random_group(generator, ranks, outs, width, torch.float32) for ranks in ([4, 0], [16, 30], [0, 7])]
    other = random_group(generator, [5], [48], width, torch.float32)
    cpu = torch.device("cpu")
    records = [AdapterRecord.of({1: packed}, 2, 2, cpu) for packed in groups]
    records.append(AdapterRecord.of({0: other}, 2, 2, cpu))  # changes the other group only
    words = torch.zeros(1 + 3 * 8, dtype=torch.int64)
    step = StepTable(words, tiles=8, tile_rows=16, rank=64, is_aligned=True)
    assert all(record.is_aligned for record in records[1:3])
    segments = DeviceSegments(step, 1, 2, max(outs))
    mixes = [[], [(0, 8, 1)], [(0, 1, 0), (1, 2, 3), (3, 8, 2)], [(i, i + 1, i % 3) for i in range(8)]]
    for mix in mixes:
        found = StepTable.of([(start, end, records[which]) for start, end, which in mix], cpu).words
        words.fill_(-1)
        words[: len(found)] = found
        x, y = torch.randn((8, width), generator=generator), torch.randn((8, sum(outs)), generator=generator)
        entries = [(start, end, groups[which]) for start, end, which in mix if which < 3]
        expected = lora_by_hand(x, y, entries)
        grouped_lora(x, y, segments)
        assert relative_error(y, expected) < 2e-6


def test_long_inputs_of_few_rows_are_shared_out_and_of_many_rows_read_in_tall_tiles() -> None:
    def plan(rows: int, rank: int, width: int, half: bool = True) -> LoraPlan:
        record = AdapterRecord(torch.zeros((1, 10), dtype=torch.int64), rank, True)
        step = StepTable.of([(0, rows, record)], torch.device("cpu"))
        return LoraPlan.of(DeviceSegments(step, 0, 1, 64), width, half)

    assert plan(1, 16, 4096) == LoraPlan(16, 8, 16, 4, True)
    assert plan(8192, 192, 4096) == LoraPlan(64, 2, 64, 1, False)
    assert plan(16384, 48, 4096).splits == 1
    assert plan(100, 8, 64, half=False) == LoraPlan(64, 1, 64, 1, True)
