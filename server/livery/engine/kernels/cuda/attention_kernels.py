"""Attention over the paged cache in Triton: several queries and all query heads of one key head per program.

A program's rows are (query, head) pairs that read the same keys and values, so each of those is read once per tile
of queries. Scores, softmax and sums are fp32; masked loads keep out whatever lies in slots that a row may not see.
"""

import triton
import triton.language as tl

_LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _tanh(x):
    return 1.0 - 2.0 / (tl.exp2(2.0 * x * _LOG2E) + 1.0)


@triton.jit
def _attend(
    q,
    k_cache,
    v_cache,
    table,
    first_token,
    last_token,
    position,
    rows_in,
    kv_head,
    scale,
    softcap,
    window,
    block_size: tl.constexpr,
    k_block,
    k_slot,
    k_head,
    v_block,
    v_slot,
    v_head,
    D: tl.constexpr,
    DP: tl.constexpr,
    DV: tl.constexpr,
    DVP: tl.constexpr,
    M: tl.constexpr,
    T: tl.constexpr,
    SOFTCAP: tl.constexpr,
    WINDOW: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Online softmax of the rows q [M, DP] over tokens [first_token, last_token).

    A row sees tokens up to its own `position`. Returns (largest score in base 2, sum of weights, weighted values).
    """
    d, dv, t = tl.arange(0, DP), tl.arange(0, DVP), tl.arange(0, T)
    best = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    acc = tl.zeros([M, DVP], tl.float32)
    for start in tl.range(first_token, last_token, T, num_stages=STAGES):
        token = start + t
        inside = token < last_token
        block = tl.load(table + token // block_size, mask=inside, other=0).to(tl.int64)
        slot = token % block_size
        k = tl.load(
            k_cache + (block * k_block + slot * k_slot + kv_head * k_head)[None, :] + d[:, None],
            mask=inside[None, :] & (d < D)[:, None],
            other=0.0,
        )
        scores = tl.dot(q, k, input_precision="ieee") * scale
        if SOFTCAP:
            scores = softcap * _tanh(scores / softcap)
        seen = inside[None, :] & (token[None, :] <= position[:, None]) & rows_in[:, None]
        if WINDOW:
            seen = seen & (token[None, :] > position[:, None] - window)
        scores = tl.where(seen, scores * _LOG2E, float("-inf"))
        higher = tl.maximum(best, tl.max(scores, 1))
        # A row that has seen nothing yet has no largest score to subtract: minus infinity less itself isn't a number.
        base = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(scores - base[:, None])
        shrunk = tl.exp2(best - base)
        total = total * shrunk + tl.sum(weights, 1)
        v = tl.load(
            v_cache + (block * v_block + slot * v_slot + kv_head * v_head)[:, None] + dv[None, :],
            mask=inside[:, None] & (dv < DV)[None, :],
            other=0.0,
        )
        acc = acc * shrunk[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        best = higher
    return best, total, acc


@triton.jit(do_not_specialize=["table_row"])
def decode_kernel(
    q,
    k_cache,
    v_cache,
    tables,
    lens,
    out,
    sums,
    partial,
    scale,
    softcap,
    window,
    block_size: tl.constexpr,
    table_row,
    q_row,
    q_head,
    k_block,
    k_slot,
    k_head,
    v_block,
    v_slot,
    v_head,
    out_row,
    out_head,
    G: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    DV: tl.constexpr,
    DVP: tl.constexpr,
    M: tl.constexpr,
    T: tl.constexpr,
    SPLITS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    WINDOW: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One query per sequence: the G heads that share a key head, over one of SPLITS parts of the context.

    With one part the result goes to `out`; else each part's largest score and sum go to `sums`, and its weighted
    values to `partial` [rows, kv_heads, SPLITS, M, DVP], for combine_kernel.
    """
    sequence, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lens + sequence).to(tl.int32)
    first = tl.maximum(length - window, 0) if WINDOW else 0
    share = tl.cdiv(tl.cdiv(length - first, T), SPLITS) * T
    start = first + split * share
    g, d = tl.arange(0, M), tl.arange(0, DP)
    rows_in = g < G
    queries = tl.load(
        q + sequence * q_row + (kv_head * G + g)[:, None] * q_head + d[None, :],
        mask=rows_in[:, None] & (d < D)[None, :],
        other=0.0,
    )
    best, total, acc = _attend(
        queries,
        k_cache,
        v_cache,
        tables + sequence * table_row,
        start,
        tl.minimum(start + share, length),
        tl.full([M], 0, tl.int32) + (length - 1),
        rows_in,
        kv_head,
        scale,
        softcap,
        window,
        block_size,
        k_block,
        k_slot,
        k_head,
        v_block,
        v_slot,
        v_head,
        D,
        DP,
        DV,
        DVP,
        M,
        T,
        SOFTCAP,
        WINDOW,
        STAGES,
    )
    dv = tl.arange(0, DVP)
    if SPLITS == 1:
        result = acc / tl.where(total == 0.0, 1.0, total)[:, None]
        at = out + sequence * out_row + (kv_head * G + g)[:, None] * out_head + dv[None, :]
        tl.store(at, result.to(out.dtype.element_ty), mask=rows_in[:, None] & (dv < DV)[None, :])
    else:
        place = ((sequence * tl.num_programs(1) + kv_head) * SPLITS + split).to(tl.int64)
        tl.store(sums + place * 2 * M + g, best)
        tl.store(sums + place * 2 * M + M + g, total)
        tl.store(partial + place * M * DVP + g[:, None] * DVP + dv[None, :], acc)


@triton.jit
def combine_kernel(
    sums,
    partial,
    out,
    out_row,
    out_head,
    G: tl.constexpr,
    DV: tl.constexpr,
    DVP: tl.constexpr,
    M: tl.constexpr,
    SPLITS: tl.constexpr,
    SPLITSP: tl.constexpr,
):
    """out[row, head] from the parts that decode_kernel left."""
    row, head = tl.program_id(0), tl.program_id(1)
    kv_head, g = head // G, head % G
    s, dv = tl.arange(0, SPLITSP), tl.arange(0, DVP)
    inside = s < SPLITS
    place = ((row * (tl.num_programs(1) // G) + kv_head) * SPLITS + s).to(tl.int64)
    best = tl.load(sums + place * 2 * M + g, mask=inside, other=float("-inf"))
    total = tl.load(sums + place * 2 * M + M + g, mask=inside, other=0.0)
    highest = tl.max(best, 0)
    factor = tl.exp2(best - tl.where(highest == float("-inf"), 0.0, highest))
    acc = tl.load(partial + (place * M * DVP + g * DVP)[:, None] + dv[None, :], mask=inside[:, None], other=0.0)
    whole = tl.sum(total * factor, 0)
    result = tl.sum(acc * factor[:, None], 0) / tl.where(whole == 0.0, 1.0, whole)
    tl.store(out + row * out_row + head * out_head + dv, result.to(out.dtype.element_ty), mask=dv < DV)


@triton.jit(do_not_specialize=["table_row", "sequences"])
def prefill_kernel(
    q,
    k_cache,
    v_cache,
    tables,
    starts,
    lens,
    out,
    scale,
    softcap,
    window,
    block_size: tl.constexpr,
    sequences,
    table_row,
    q_row,
    q_head,
    k_block,
    k_slot,
    k_head,
    v_block,
    v_slot,
    v_head,
    out_row,
    out_head,
    G: tl.constexpr,
    GP: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    DV: tl.constexpr,
    DVP: tl.constexpr,
    M: tl.constexpr,
    T: tl.constexpr,
    SP: tl.constexpr,
    SOFTCAP: tl.constexpr,
    WINDOW: tl.constexpr,
    STAGES: tl.constexpr,
):
    """M // GP neighbouring queries of one sequence, with the G heads that share a key head.

    How the rows are divided among the sequences is known on the device alone, so a program finds its sequence by
    counting the tiles of those before it.
    """
    QUERIES: tl.constexpr = M // GP
    tile, kv_head = tl.program_id(0), tl.program_id(1)
    i = tl.arange(0, SP)
    begins = tl.load(starts + i, mask=i < sequences, other=0).to(tl.int32)
    ends = tl.load(starts + i + 1, mask=i < sequences, other=0).to(tl.int32)
    tiles = (ends - begins + QUERIES - 1) // QUERIES
    sequence = tl.sum((tl.cumsum(tiles, 0) <= tile).to(tl.int32), 0)
    if sequence >= sequences:
        return
    first = (tile - tl.sum(tl.where(i < sequence, tiles, 0), 0)) * QUERIES
    begin = tl.load(starts + sequence).to(tl.int32)
    count = tl.load(starts + sequence + 1).to(tl.int32) - begin
    length = tl.load(lens + sequence).to(tl.int32)
    r, d, dv = tl.arange(0, M), tl.arange(0, DP), tl.arange(0, DVP)
    query, head = first + r // GP, r % GP
    rows_in = (query < count) & (head < G)
    position = length - count + query
    row = (begin + query).to(tl.int64)
    queries = tl.load(
        q + (row * q_row + (kv_head * G + head) * q_head)[:, None] + d[None, :],
        mask=rows_in[:, None] & (d < D)[None, :],
        other=0.0,
    )
    oldest = tl.maximum(length - count + first - window + 1, 0) if WINDOW else 0
    _, total, acc = _attend(
        queries,
        k_cache,
        v_cache,
        tables + sequence * table_row,
        oldest,
        tl.minimum(length - count + first + QUERIES, length),
        position,
        rows_in,
        kv_head,
        scale,
        softcap,
        window,
        block_size,
        k_block,
        k_slot,
        k_head,
        v_block,
        v_slot,
        v_head,
        D,
        DP,
        DV,
        DVP,
        M,
        T,
        SOFTCAP,
        WINDOW,
        STAGES,
    )
    result = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    at = out + (row * out_row + (kv_head * G + head) * out_head)[:, None] + dv[None, :]
    tl.store(at, result.to(out.dtype.element_ty), mask=rows_in[:, None] & (dv < DV)[None, :])
