"""The kernels in plain torch operations: what runs without a compiler or on another device, and the oracle.

Same signatures and results as native.py, on any device torch knows. Knows nothing of building native code.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from livery.engine.kernels.group import AdapterGroup, GroupSegments
from livery.engine.kernels.library import LibraryWeight
from livery.engine.kernels.weights import Layout, Weight, pack_for_torch


class TorchKernels:
    """Adapter products, decode attention and linear layers by torch operations alone."""

    name = "torch"
    reads_tables = False

    def grouped_lora(self, x: Tensor, y: Tensor, segments: GroupSegments) -> None:
        """Add each segment's low-rank product to its rows of `y`, in place.

        x: [rows, in_features]; y: [rows, out], column offsets as in the groups. One adapter's values
        reach only the rows of its segments.
        """
        for start, end, group in segments.entries:
            apply_group(x[start:end], y[start:end], group)

    def paged_attention(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        block_tables: Tensor,
        query_starts: Tensor | None,
        context_lens: Tensor,
        scale: float,
        window: int = 0,
        softcap: float = 0.0,
        out: Tensor | None = None,
    ) -> Tensor:
        """Attend causally over paged contexts, with any number of queries per sequence.

        q: [rows, heads, head_dim]; caches: [blocks, block_size, kv_heads, head_dim]; query_starts: int32
        [sequences + 1], the rows of sequence i being starts[i] to starts[i + 1], its last tokens; None: one row
        each. Per sequence: block_tables, int32 [sequences, max_blocks], and context_lens, int32 [sequences], all
        its tokens, the newest included. window: how many of the last tokens a row sees (0: all); softcap:
        `cap * tanh(score / cap)` (0: none). Slots beyond a context are never used, whatever they hold. A row of
        context 0 gives zeros. Values may have a width of their own. Returns [rows, heads, width of a value], in
        `out` where given.
        """
        if query_starts is None:
            found = _attend_single(q, k_cache, v_cache, block_tables, context_lens, scale, window, softcap)
            return found if out is None else out.copy_(found)
        result = q.new_zeros((q.shape[0], q.shape[1], v_cache.shape[3])) if out is None else out
        starts, lens = query_starts.tolist(), context_lens.tolist()
        single = [i for i in range(len(lens)) if starts[i + 1] - starts[i] == 1]
        if single:  # all of them in one call, however many
            rows, which = [starts[i] for i in single], torch.tensor(single, device=q.device)
            tables, seen = block_tables[which], context_lens[which]
            result[rows] = _attend_single(q[rows], k_cache, v_cache, tables, seen, scale, window, softcap)
        for i in set(range(len(lens))) - set(single):
            first, last, length = starts[i], starts[i + 1], lens[i]
            blocks = block_tables[i, : -(-length // k_cache.shape[1])].to(torch.int64)
            k, v = k_cache[blocks].flatten(0, 1)[:length], v_cache[blocks].flatten(0, 1)[:length]
            result[first:last] = _attend_chunk(q[first:last], k, v, scale, window, softcap)
        return result

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Tensor:
        """`x / rms(x) * weight` over the last axis, the root mean square taken in fp32; a new tensor like x.

        x: [rows, d], or [rows, heads, d] without `residual`, its last axis contiguous; weight: [d] of x's dtype.
        `residual` [rows, d], the output of the block before, is added to x first, in place: x is the stream that
        runs past the blocks.
        """
        if residual is not None:
            x += residual
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        return weight * wide.to(x.dtype)

    def rope(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cos: Tensor,
        sin: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        slots: Tensor,
    ) -> None:
        """Turn q and k by their positions, in place, and put k and v into the cache.

        q: [rows, heads, dim]; k: [rows, kv_heads, dim]; v: [rows, kv_heads, width of a value]: each row's heads lie
        side by side, rows may lie further apart (cuts of one product). cos, sin: [rows, dim / 2] of q's dtype, for
        the pairs (i, i + dim / 2). Caches: [blocks, block_size, kv_heads, ...]; slots: int64 [rows], block *
        block_size + offset of each row, no two the same.
        """
        for x in (q, k):
            first, second = x.chunk(2, dim=-1)
            c, s = cos[:, None], sin[:, None]
            x.copy_(torch.cat([first * c - second * s, second * c + first * s], dim=-1))
        k_cache.view(-1, *k_cache.shape[2:])[slots] = k
        v_cache.view(-1, *v_cache.shape[2:])[slots] = v

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """`silu(gate) * up` for gate_up [rows, 2 f], gate in its first half; [rows, f], a new tensor."""
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate) * up

    def pack(self, weight: Tensor, layout: Layout | Literal["exact"] = "fp32") -> Weight:
        """Hold a weight [out_features, in_features] for `linear`: "exact" and "fp32" keep it as it is.

        The other layouts round it. They save memory but no time here: each product unpacks the weight.
        """
        return pack_for_torch(weight, layout)

    def linear(self, x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
        """`x @ weight.T + bias` for x [rows, in_features] and a weight [out_features, in_features]."""
        if isinstance(weight, LibraryWeight):
            return weight.product(x, bias)
        return functional.linear(x, weight.dense().to(x.dtype), bias)


def _attend_single(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    scale: float,
    window: int,
    softcap: float,
) -> Tensor:
    """One query per sequence, all of them in one call: contexts are gathered side by side and padded."""
    rows, heads, _ = q.shape
    block_size, kv_heads = k_cache.shape[1], k_cache.shape[2]
    longest = int(context_lens.max()) if rows else 0
    if longest == 0:
        return q.new_zeros((rows, heads, v_cache.shape[3]))
    n_blocks = -(-longest // block_size)
    lens = context_lens.to(torch.int64)[:, None]
    position = torch.arange(n_blocks * block_size, device=q.device)[None]
    seen = (position < lens) & (position >= (lens - window if window else 0))
    # Table entries past a row's context may be anything: they are replaced before they are followed.
    used = torch.arange(n_blocks, device=q.device)[None] * block_size < lens
    blocks = block_tables[:, :n_blocks].to(torch.int64).masked_fill(~used, 0)
    hidden = ~seen[:, :, None, None]
    k = k_cache[blocks].flatten(1, 2).masked_fill(hidden, 0.0)
    v = v_cache[blocks].flatten(1, 2).masked_fill(hidden, 0.0)
    grouped = q.reshape(rows, kv_heads, heads // kv_heads, q.shape[2])
    scores = torch.einsum("rhgd,rthd->rhgt", grouped, k)
    weights = _weights(scores, seen[:, None, None, :], scale, softcap)
    weights = weights.masked_fill((lens == 0)[:, :, None, None], 0.0)
    return torch.einsum("rhgt,rthd->rhgd", weights, v).flatten(1, 2)


def _attend_chunk(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int, softcap: float) -> Tensor:
    """The last rows of one sequence, q [new, heads, dim], over its whole context, k and v [context, kv_heads, dim]."""
    context, shared = k.shape[0], q.shape[1] // k.shape[1]
    position = torch.arange(context - q.shape[0], context, device=q.device)[:, None]
    token = torch.arange(context, device=q.device)[None]
    seen = (token <= position) & (token > (position - window if window else -1))
    q, k, v = (part.transpose(0, 1) for part in (q, k, v))
    k, v = k.repeat_interleave(shared, dim=0), v.repeat_interleave(shared, dim=0)
    if softcap:
        return (_weights(q @ k.transpose(1, 2), seen, scale, softcap) @ v).transpose(0, 1)
    attended = functional.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=seen, scale=scale)
    return attended[0].transpose(0, 1)


def _weights(scores: Tensor, seen: Tensor, scale: float, softcap: float) -> Tensor:
    """Softmax over the last axis of the scaled and capped scores, among the columns that are seen."""
    scaled = scores * scale
    if softcap:
        scaled = softcap * torch.tanh(scaled / softcap)
    return torch.softmax(scaled.masked_fill(~seen, float("-inf")).float(), dim=-1).to(scores.dtype)


def apply_group(x: Tensor, y: Tensor, group: AdapterGroup) -> None:
    """Add one adapter group's product to `y` [rows, out] in place, for x [rows, in_features].

    Computed in the wider of both dtypes, so that bf16 rows don't round fp32 weights, and rounded once as it is added.
    """
    if x.shape[0] == 0:
        return
    wider = torch.promote_types(x.dtype, group.a.dtype)
    hidden = x.to(wider) @ group.a.to(wider).t()
    for part in group.slices:
        target = y[:, part.offset : part.offset + part.b.shape[1]]
        ranks = hidden[:, part.first_rank : part.first_rank + part.rank]
        if wider is target.dtype:
            target.addmm_(ranks, part.b.to(wider), alpha=part.scale)
        else:
            target.add_(ranks @ part.b.to(wider), alpha=part.scale)
