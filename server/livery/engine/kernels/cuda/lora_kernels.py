"""Grouped low-rank products in Triton: x @ A into `hidden`, then hidden @ B added to y, each tile of rows by its own
adapter.

What a tile computes is read on the device: the step's table says which rows, and the adapter's record where its
weights lie and at which ranks (tables.py). So a launch, and a captured graph, is valid for any mix of adapters.
Loads are masked everywhere, and nothing is multiplied that belongs to another row's adapter.

Weights in full precision meet half-precision rows as sums of three half-precision parts, which together hold all 24
bits. No left operand of a product is ever cast in registers where a warp group multiplies (64 rows and more):
ptxas before 13.3 may reuse those registers before the product has read them (triton-lang/triton#9433).
"""

import triton
import triton.language as tl

# Words of a record, per projection group: A, rank, whether in half precision, slices; then each slice's own.
HEADER = 4
PER_SLICE = 6
_HEADER = tl.constexpr(HEADER)
_PER_SLICE = tl.constexpr(PER_SLICE)


@triton.jit
def _parts(full, HALF: tl.constexpr):
    """Three half-precision tensors that add up to `full`."""
    first = full.to(HALF)
    rest = full - first.to(tl.float32)
    second = rest.to(HALF)
    return first, second, (rest - second.to(tl.float32)).to(HALF)


@triton.jit
def _aligned(pointers, ALIGNED: tl.constexpr):
    """The same pointers, with the promise that each row of them starts at a multiple of 16 bytes."""
    return tl.multiple_of(pointers, (1, 16)) if ALIGNED else pointers


@triton.jit
def _shrink_half(x_rows, a, rows_in, ranks_in, n, start, end, in_features, X_HALF, HALF, M, N, K, ALIGNED):
    weights = a.to(tl.pointer_type(HALF)) + n[None, :].to(tl.int64) * in_features
    acc = tl.zeros([M, N], tl.float32)
    for first in range(start, end, K):
        k = first + tl.arange(0, K)
        x = tl.load(x_rows + k[None, :], mask=rows_in[:, None] & (k < end)[None, :], other=0.0)
        w = tl.load(
            tl.multiple_of(weights + k[:, None], (16, 1)) if ALIGNED else weights + k[:, None],
            mask=ranks_in[None, :] & (k < end)[:, None],
            other=0.0,
        )
        if X_HALF:
            acc = tl.dot(x, w, acc)
        else:
            acc = tl.dot(x, w.to(tl.float32), acc, input_precision="ieee")
    return acc


@triton.jit
def _shrink_full(x_rows, a, rows_in, ranks_in, n, start, end, in_features, X_HALF, HALF, M, N, K, ALIGNED):
    weights = a.to(tl.pointer_type(tl.float32)) + n[None, :].to(tl.int64) * in_features
    acc = tl.zeros([M, N], tl.float32)
    for first in tl.range(start, end, K, num_stages=1):
        k = first + tl.arange(0, K)
        x = tl.load(x_rows + k[None, :], mask=rows_in[:, None] & (k < end)[None, :], other=0.0)
        w = tl.load(
            tl.multiple_of(weights + k[:, None], (16, 1)) if ALIGNED else weights + k[:, None],
            mask=ranks_in[None, :] & (k < end)[:, None],
            other=0.0,
        )
        if X_HALF:
            w1, w2, w3 = _parts(w, HALF)
            acc = tl.dot(x, w3, acc)
            acc = tl.dot(x, w2, acc)
            acc = tl.dot(x, w1, acc)
        else:
            acc = tl.dot(x, w, acc, input_precision="ieee")
    return acc


@triton.jit(do_not_specialize=["group"])
def shrink_kernel(
    x,
    table,
    hidden,
    group,
    in_features,
    x_row,
    hidden_row,
    hidden_plane,
    WORDS: tl.constexpr,
    SPLITS: tl.constexpr,
    RANK_PROGRAMS: tl.constexpr,
    PARTIAL: tl.constexpr,
    X_HALF: tl.constexpr,
    HALF: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """hidden[rows, ranks] = x @ A^T of each tile: sums over parts of the input in fp32 planes where PARTIAL, else the
    whole sum as one half-precision plane, or three that add up to it for weights in full precision.
    """
    tile = tl.program_id(1)
    if tile >= tl.load(table):
        return
    entry = table + 1 + 3 * tile
    record = tl.load(entry + 2).to(tl.pointer_type(tl.int64)) + group * WORDS
    a = tl.load(record)
    if a == 0:  # this adapter leaves the group as it is
        return
    rank = tl.load(record + 1).to(tl.int32)
    is_half = tl.load(record + 2) != 0
    row = tl.load(entry) + tl.arange(0, M)
    rows_in = row < tl.load(entry + 1)
    split = tl.program_id(0) % SPLITS
    share = tl.cdiv(tl.cdiv(in_features, K), SPLITS) * K
    start = split * share
    end = tl.minimum(start + share, in_features)
    x_rows = x + row[:, None] * x_row
    for first in range((tl.program_id(0) // SPLITS) * N, rank, RANK_PROGRAMS * N):
        n = first + tl.arange(0, N)
        inside = n < rank
        if is_half:
            acc = _shrink_half(x_rows, a, rows_in, inside, n, start, end, in_features, X_HALF, HALF, M, N, K, ALIGNED)
        else:
            acc = _shrink_full(x_rows, a, rows_in, inside, n, start, end, in_features, X_HALF, HALF, M, N, K, ALIGNED)
        at = hidden + row[:, None] * hidden_row + n[None, :]
        kept = rows_in[:, None] & inside[None, :]
        if PARTIAL:
            tl.store(at + split * hidden_plane, acc, mask=kept)
        else:
            h1, h2, h3 = _parts(acc, HALF)
            tl.store(at, h1, mask=kept)
            if not is_half:
                tl.store(at + hidden_plane, h2, mask=kept)
                tl.store(at + 2 * hidden_plane, h3, mask=kept)


@triton.jit(do_not_specialize=["group"])
def reduce_kernel(
    partial,
    table,
    hidden,
    group,
    partial_row,
    partial_plane,
    hidden_row,
    hidden_plane,
    WORDS: tl.constexpr,
    SPLITS: tl.constexpr,
    HALF: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """Adds up the fp32 planes of a shrink, always in the same order, and leaves the sum in half-precision parts."""
    tile = tl.program_id(1)
    if tile >= tl.load(table):
        return
    entry = table + 1 + 3 * tile
    record = tl.load(entry + 2).to(tl.pointer_type(tl.int64)) + group * WORDS
    if tl.load(record) == 0:
        return
    row = tl.load(entry) + tl.arange(0, M)
    n = tl.program_id(0) * N + tl.arange(0, N)
    kept = (row < tl.load(entry + 1))[:, None] & (n < tl.load(record + 1))[None, :]
    acc = tl.zeros([M, N], tl.float32)
    for split in range(SPLITS):
        acc += tl.load(partial + split * partial_plane + row[:, None] * partial_row + n[None, :], mask=kept, other=0.0)
    at = hidden + row[:, None] * hidden_row + n[None, :]
    h1, h2, h3 = _parts(acc, HALF)
    tl.store(at, h1, mask=kept)
    if tl.load(record + 2) == 0:
        tl.store(at + hidden_plane, h2, mask=kept)
        tl.store(at + 2 * hidden_plane, h3, mask=kept)


@triton.jit
def _sum_of_planes(at, hidden_plane, kept, SPLITS: tl.constexpr, M: tl.constexpr, R: tl.constexpr):
    total = tl.zeros([M, R], tl.float32)
    for split in tl.static_range(SPLITS):
        total += tl.load(at + split * hidden_plane, mask=kept, other=0.0)
    return total


@triton.jit
def _expand_half(
    at, hidden_plane, b, rows_in, columns_in, n, rank, out, X_HALF, HALF, PARTIAL, SPLITS, M, N, R, ALIGNED
):
    weights = b.to(tl.pointer_type(HALF)) + n[None, :]
    acc = tl.zeros([M, N], tl.float32)
    for first in tl.range(0, rank, R, num_stages=1):
        r = first + tl.arange(0, R)
        kept = rows_in[:, None] & (r < rank)[None, :]
        w = tl.load(
            _aligned(weights + r[:, None].to(tl.int64) * out, ALIGNED),
            mask=(r < rank)[:, None] & columns_in[None, :],
            other=0.0,
        )
        if PARTIAL:
            h = _sum_of_planes(at + r[None, :], hidden_plane, kept, SPLITS, M, R)
            if X_HALF:
                acc = tl.dot(h.to(HALF), w, acc)
            else:
                acc = tl.dot(h, w.to(tl.float32), acc, input_precision="ieee")
        else:
            acc = tl.dot(tl.load(at + r[None, :], mask=kept, other=0.0), w, acc)
    return acc


@triton.jit
def _expand_full(
    at, hidden_plane, b, rows_in, columns_in, n, rank, out, X_HALF, HALF, PARTIAL, SPLITS, M, N, R, ALIGNED
):
    weights = b.to(tl.pointer_type(tl.float32)) + n[None, :]
    acc = tl.zeros([M, N], tl.float32)
    for first in tl.range(0, rank, R, num_stages=1):
        r = first + tl.arange(0, R)
        kept = rows_in[:, None] & (r < rank)[None, :]
        w = tl.load(
            _aligned(weights + r[:, None].to(tl.int64) * out, ALIGNED),
            mask=(r < rank)[:, None] & columns_in[None, :],
            other=0.0,
        )
        if X_HALF:
            w1, w2, w3 = _parts(w, HALF)
            if PARTIAL:
                h1, h2, h3 = _parts(_sum_of_planes(at + r[None, :], hidden_plane, kept, SPLITS, M, R), HALF)
            else:
                h1 = tl.load(at + r[None, :], mask=kept, other=0.0)
                h2 = tl.load(at + hidden_plane + r[None, :], mask=kept, other=0.0)
                h3 = tl.load(at + 2 * hidden_plane + r[None, :], mask=kept, other=0.0)
            acc = tl.dot(h1, w3, acc)
            acc = tl.dot(h3, w1, acc)
            acc = tl.dot(h2, w2, acc)
            acc = tl.dot(h1, w2, acc)
            acc = tl.dot(h2, w1, acc)
            acc = tl.dot(h1, w1, acc)
        else:
            h = _sum_of_planes(at + r[None, :], hidden_plane, kept, SPLITS, M, R)
            acc = tl.dot(h, w, acc, input_precision="ieee")
    return acc


@triton.jit(do_not_specialize=["group"])
def expand_kernel(
    hidden,
    table,
    y,
    group,
    y_row,
    hidden_row,
    hidden_plane,
    WORDS: tl.constexpr,
    SPLITS: tl.constexpr,
    PARTIAL: tl.constexpr,
    X_HALF: tl.constexpr,
    HALF: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    R: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """y[rows, the slice's columns] += scale * (hidden @ B), rounded once."""
    tile = tl.program_id(2)
    if tile >= tl.load(table):
        return
    entry = table + 1 + 3 * tile
    record = tl.load(entry + 2).to(tl.pointer_type(tl.int64)) + group * WORDS
    if tl.load(record) == 0:
        return
    if tl.program_id(1) >= tl.load(record + 3):
        return
    part = record + _HEADER + tl.program_id(1) * _PER_SLICE
    out = tl.load(part + 3).to(tl.int32)
    n = tl.program_id(0) * N + tl.arange(0, N)
    if tl.program_id(0) * N >= out:
        return
    b = tl.load(part)
    rank = tl.load(part + 2).to(tl.int32)
    offset = tl.load(part + 4).to(tl.int32)
    if ALIGNED:
        out = tl.multiple_of(out, 16)
        offset = tl.multiple_of(offset, 16)
    scale = tl.load(part + 5).to(tl.int32).to(tl.float32, bitcast=True)
    row = tl.load(entry) + tl.arange(0, M)
    rows_in = row < tl.load(entry + 1)
    columns_in = n < out
    at = hidden + row[:, None] * hidden_row + tl.load(part + 1)
    if tl.load(record + 2) != 0:
        acc = _expand_half(
            at, hidden_plane, b, rows_in, columns_in, n, rank, out, X_HALF, HALF, PARTIAL, SPLITS, M, N, R, ALIGNED
        )
    else:
        acc = _expand_full(
            at, hidden_plane, b, rows_in, columns_in, n, rank, out, X_HALF, HALF, PARTIAL, SPLITS, M, N, R, ALIGNED
        )
    target = y + row[:, None] * y_row + (offset + n)[None, :]
    kept = rows_in[:, None] & columns_in[None, :]
    old = tl.load(target, mask=kept, other=0.0)
    tl.store(target, (old.to(tl.float32) + scale * acc).to(y.dtype.element_ty), mask=kept)
