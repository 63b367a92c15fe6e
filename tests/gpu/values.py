"""What the kernels compute on the device, against the plain loops in double precision on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from livery.engine.kernels import AdapterGroup, GroupSegments, Kernels
from livery.engine.kernels.reference import TorchKernels

# ‖found - expected‖ / ‖expected‖: fp32 by exact products; bf16 has 8 bits.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 2e-3}
HALF = torch.bfloat16  # of adapters kept in half precision; Triton's interpreter can't take it
REPEATS = 3  # an error that moves between runs is a race


class Check(NamedTuple):
    name: str
    error: float
    passed: bool


class Shapes(NamedTuple):
    """What is tried; small ones for a CPU."""

    width: int
    outs: tuple[int, ...]
    rows: tuple[int, ...]
    heads: tuple[int, int]  # query heads, key heads
    dim: int
    contexts: tuple[int, ...]
    chunks: tuple[int, ...]


LARGE = Shapes(
    4096, (4096, 1024, 1024), (1, 5, 16, 33, 128, 700, 2048), (32, 8), 128, (1, 17, 300, 4000), (1, 64, 500, 1500)
)
SMALL = Shapes(128, (64, 16, 16), (1, 5, 70), (4, 2), 16, (1, 17, 70), (1, 3, 40))


def checks(kernels: Kernels, device: torch.device, shapes: Shapes, dtypes: list[torch.dtype]) -> Iterator[Check]:
    for dtype in dtypes:
        for rows in shapes.rows:
            for repeat in range(REPEATS if rows > 1 else 1):
                yield _lora(kernels, device, shapes, dtype, rows, repeat)
        yield _cancelling(kernels, device, shapes, dtype)
        for window, softcap in ((0, 0.0), (50, 0.0), (0, 30.0)):
            for chunked in (False, True):
                yield _attention(kernels, device, shapes, dtype, window, softcap, chunked)
        yield from _rows(kernels, device, shapes, dtype)


def _error(found: Tensor, expected: Tensor) -> float:
    """Relative; infinite where anything found isn't a number."""
    found = found.double().cpu()
    if not bool(found.isfinite().all()):
        return float("inf")
    return float((found - expected).norm() / expected.norm())


def _check(name: str, found: Tensor, expected: Tensor, dtype: torch.dtype, slack: float = 1.0) -> Check:
    error = _error(found, expected)
    return Check(f"{name}, {str(dtype).removeprefix('torch.')}", error, error <= TOLERANCE[dtype] * slack)


def _group(
    random: torch.Generator, shapes: Shapes, rank: int, dtype: torch.dtype, device: torch.device
) -> AdapterGroup:
    a = [torch.randn((rank, shapes.width), generator=random).to(device) for _ in shapes.outs]
    b = [torch.randn((out, rank), generator=random).to(device) for out in shapes.outs]
    offsets = [sum(shapes.outs[:index]) for index in range(len(shapes.outs))]
    return AdapterGroup(a, b, [0.5] * len(a), offsets, shapes.width, dtype)


def _lora(kernels: Kernels, device: torch.device, shapes: Shapes, dtype: torch.dtype, rows: int, seed: int) -> Check:
    """Four adapters of other ranks and precisions, and one of NaN between them, over rows with gaps."""
    random = torch.Generator().manual_seed(seed)
    kinds = ((16, HALF), (5, torch.float32), (64, HALF))
    groups = [_group(random, shapes, rank, kept, device) for rank, kept in kinds]
    bad = _group(random, shapes, 8, torch.float32, device)
    bad.a.fill_(float("nan"))
    entries: list[tuple[int, int, AdapterGroup]] = []
    start = 0
    for group, count in zip((groups[0], bad, groups[1], groups[2]), (rows, 2, 3, max(1, rows // 2)), strict=True):
        entries.append((start, start + count, group))
        start += count + 1
    x = torch.randn((start, shapes.width), generator=random).to(device, dtype)
    y = torch.randn((start, sum(shapes.outs)), generator=random).to(device, dtype)
    expected = y.double().cpu()
    for first, end, group in entries:
        hidden = x[first:end].double().cpu() @ group.a.double().cpu().t()
        for part in group.slices:
            ranks = hidden[:, part.first_rank : part.first_rank + part.rank]
            expected[first:end, part.offset : part.offset + part.b.shape[1]] += part.scale * (
                ranks @ part.b.double().cpu()
            )
    kernels.grouped_lora(x, y, GroupSegments(entries))
    healthy = [row for row in range(start) if not entries[1][0] <= row < entries[1][1]]
    poisoned = bool(y[entries[1][0] : entries[1][1]].isnan().all())
    found = y[healthy] if poisoned else torch.full_like(y[healthy], float("nan"))
    return _check(f"adapters, {rows} rows", found, expected[healthy], dtype)


def _cancelling(kernels: Kernels, device: torch.device, shapes: Shapes, dtype: torch.dtype) -> Check:
    """fp32 weights that nearly cancel: whoever rounds them to half precision loses what is left."""
    random = torch.Generator().manual_seed(5)
    a, change = (torch.randn((8, shapes.width), generator=random) for _ in range(2))
    b = torch.randn((shapes.outs[0], 8), generator=random)
    pair = torch.cat([a + 1e-3 * change, a]).to(device), torch.cat([b, -b], dim=1).to(device)
    group = AdapterGroup([pair[0]], [pair[1]], [1.0], [0], shapes.width)
    rows = max(shapes.rows)
    x = torch.randn((rows, shapes.width), generator=random).to(device, dtype)
    y = torch.zeros((rows, shapes.outs[0]), dtype=dtype, device=device)
    kernels.grouped_lora(x, y, GroupSegments([(0, rows, group)]))
    delta = (pair[1].double() @ pair[0].double()).cpu()
    return _check(
        "adapters that cancel", y, x.double().cpu() @ delta.t(), dtype, 1.0 if dtype is not torch.float32 else 40
    )


def _attention(
    kernels: Kernels,
    device: torch.device,
    shapes: Shapes,
    dtype: torch.dtype,
    window: int,
    softcap: float,
    chunked: bool,
) -> Check:
    """Against plain torch in double on the same device; slots that nobody may see hold NaN."""
    random = torch.Generator().manual_seed(9)
    heads, kv_heads = shapes.heads
    counts = list(shapes.chunks) if chunked else [1] * len(shapes.contexts)
    lens = [length + count for length, count in zip(shapes.contexts, counts, strict=False)]
    counts = counts[: len(lens)]
    needed = [-(-length // 16) for length in lens]
    order = torch.randperm(sum(needed), generator=random).tolist()
    k, v = (torch.full((sum(needed), 16, kv_heads, shapes.dim), float("nan")) for _ in range(2))
    tables = torch.zeros((len(lens), max(needed)), dtype=torch.int32)
    for index, (length, count) in enumerate(zip(lens, needed, strict=True)):
        own = [order.pop() for _ in range(count)]
        tables[index, :count] = torch.tensor(own, dtype=torch.int32)
        for cache in (k, v):
            filled = cache[own].flatten(0, 1)
            filled[:length] = torch.randn((length, kv_heads, shapes.dim), generator=random)
            cache[own] = filled.view(count, 16, kv_heads, shapes.dim)
    starts = torch.tensor([sum(counts[:index]) for index in range(len(counts) + 1)], dtype=torch.int32)
    q = torch.randn((sum(counts), heads, shapes.dim), generator=random)
    given = [part.to(dtype) for part in (q, k, v)]
    context = torch.tensor(lens, dtype=torch.int32)
    scale = shapes.dim**-0.5
    exact = [part.to(device, torch.float64) for part in given]
    where = tables.to(device), starts.to(device), context.to(device)
    expected = TorchKernels().paged_attention(*exact, *where, scale, window, softcap).cpu()
    found = kernels.paged_attention(
        *(part.to(device) for part in given), where[0], where[1] if chunked else None, where[2], scale, window, softcap
    )
    return _check(
        f"attention, {'chunks' if chunked else 'decode'}, window {window}, cap {softcap}", found, expected, dtype
    )


def _rows(kernels: Kernels, device: torch.device, shapes: Shapes, dtype: torch.dtype) -> Iterator[Check]:
    random = torch.Generator().manual_seed(11)
    oracle = TorchKernels()
    heads, kv_heads = shapes.heads
    rows = max(shapes.rows)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random).to(dtype)

    x, residual, weight = normal(rows, shapes.width), normal(rows, shapes.width), normal(shapes.width)
    expected = oracle.rms_norm(x.double(), weight.double(), 1e-5, residual.double())
    summed = x.to(device, copy=True)
    found = kernels.rms_norm(summed, weight.to(device), 1e-5, residual.to(device))
    yield _check("norm", found, expected, dtype)
    yield _check("norm's sum", summed, x.double() + residual.double(), dtype)
    gate_up = normal(rows, 2 * shapes.width)
    yield _check("SwiGLU", kernels.silu_mul(gate_up.to(device)), oracle.silu_mul(gate_up.double()), dtype)
    product = normal(rows, (heads + 2 * kv_heads) * shapes.dim)
    angles = torch.randn((rows, shapes.dim // 2), generator=random)
    cos, sin, slots = angles.cos().to(dtype), angles.sin().to(dtype), torch.randperm(rows + 16, generator=random)[:rows]
    results = []
    for chosen, kind, place in ((oracle, torch.float64, torch.device("cpu")), (kernels, dtype, device)):
        parts = (
            product.to(place, kind, copy=True).unflatten(1, (-1, shapes.dim)).split([heads, kv_heads, kv_heads], dim=1)
        )
        caches = [
            torch.zeros((-(-(rows + 16) // 16), 16, kv_heads, shapes.dim), dtype=kind, device=place) for _ in "kv"
        ]
        chosen.rope(*parts, cos.to(place, kind), sin.to(place, kind), *caches, slots.to(place))
        results.append([*parts[:2], *caches])
    for name, exact, got in zip(("q", "k", "keys stored", "values stored"), *results, strict=True):
        yield _check(f"rotary positions, {name}", got, exact, dtype)
