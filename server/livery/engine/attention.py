"""Attention over the paged KV cache, as transformers' AttentionInterface calls it.

A step's rows of many sequences lie flattened in one row of the model's input. This writes their keys and values
to their slots and lets each row see its own sequence only: rows with one new token go to the kernels in one
call per layer, longer chunks to torch's scaled-dot-product attention, one call each. What a step looks like
comes in through the keyword `livery`; there is no global state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface

from livery.engine.kernels import Kernels
from livery.engine.plan import SequenceSlice

PAGED = "livery_paged"
IMPLEMENTED_KEYWORDS = frozenset({"livery", "scaling", "dropout", "sliding_window", "softcap"})
# Passed along by models, without effect on the result of a causal forward without a transformers cache.
NEUTRAL_KEYWORDS = frozenset(
    {
        "cache_position",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "position_ids",
        "return_dict",
        "use_cache",
    }
)


@dataclass(frozen=True, slots=True)
class LayerCache:
    """Keys and values of one layer: [num_blocks, block_size, kv_heads, head_dim] each."""

    k: Tensor
    v: Tensor

    @classmethod
    def empty(
        cls, blocks: int, block_size: int, shape: KVShape, dtype: torch.dtype, device: torch.device
    ) -> LayerCache:
        # Zeros, not uninitialised memory: what a client can be shown never comes from a stranger's allocation.
        k = torch.zeros((blocks, block_size, shape.heads, shape.k_dim), dtype=dtype, device=device)
        v = torch.zeros((blocks, block_size, shape.heads, shape.v_dim), dtype=dtype, device=device)
        return cls(k, v)


@dataclass(frozen=True, slots=True)
class KVShape:
    """What one layer keeps per position."""

    heads: int
    k_dim: int
    v_dim: int

    def bytes_per_token(self, itemsize: int) -> int:
        return self.heads * (self.k_dim + self.v_dim) * itemsize


@dataclass(frozen=True, slots=True)
class Chunk:
    """Several new tokens of one sequence: rows [first, last) of the step, `context` positions in all."""

    first: int
    last: int
    context: int
    slots: Tensor | None  # flat slots of the whole context; None when all of it is in this step


@dataclass(frozen=True, slots=True)
class AttentionBatch:
    """One step as attention sees it. Built fresh from the plan, never kept."""

    caches: Sequence[LayerCache]
    kernels: Kernels
    slots: Tensor  # [rows] flat slot of each row's own position
    chunks: tuple[Chunk, ...]
    decode_rows: Tensor | None  # [decodes] rows with one new token; None when that is every row
    decode_tables: Tensor  # [decodes, blocks] int32
    decode_lens: Tensor  # [decodes] int32, the row's own position included

    @classmethod
    def of(
        cls,
        slices: Sequence[SequenceSlice],
        caches: Sequence[LayerCache],
        kernels: Kernels,
        block_size: int,
        device: torch.device,
    ) -> AttentionBatch:
        slots: list[int] = []
        chunks: list[Chunk] = []
        rows: list[int] = []
        tables: list[tuple[int, ...]] = []
        lens: list[int] = []
        for part in slices:
            first, end = len(slots), part.start + len(part.token_ids)
            table = part.block_table
            slots += [table[p // block_size] * block_size + p % block_size for p in range(part.start, end)]
            if len(part.token_ids) == 1:
                rows.append(first)
                tables.append(table[: -(-end // block_size)])
                lens.append(end)
            else:
                context = _context_slots(table, end, block_size, device) if part.start else None
                chunks.append(Chunk(first, len(slots), end, context))
        width = max(map(len, tables), default=0)
        padded = [table + (0,) * (width - len(table)) for table in tables]
        return cls(
            caches=caches,
            kernels=kernels,
            slots=torch.tensor(slots, device=device),
            chunks=tuple(chunks),
            decode_rows=torch.tensor(rows, device=device) if chunks else None,
            decode_tables=torch.tensor(padded, dtype=torch.int32, device=device).reshape(len(rows), width),
            decode_lens=torch.tensor(lens, dtype=torch.int32, device=device),
        )


def paged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    livery: AttentionBatch | None = None,
    **neutral: object,  # transformers passes its whole forward's keywords; the load-time check refused unknown ones
) -> tuple[Tensor, None]:
    """query [1, heads, rows, dim], key and value [1, kv_heads, rows, dim] -> [1, rows, heads, v_dim]."""
    assert livery is not None, "the model dropped the step's context on its way to attention"
    layer = module.layer_idx
    assert isinstance(layer, int)
    cache = livery.caches[layer]
    q, k, v = query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1)  # [rows, heads, dim]
    cache.k.view(-1, *cache.k.shape[2:])[livery.slots] = k
    cache.v.view(-1, *cache.v.shape[2:])[livery.slots] = v
    scale = scaling if scaling is not None else q.shape[-1] ** -0.5
    window, cap = sliding_window or 0, softcap or 0.0
    if not livery.chunks:
        out = livery.kernels.decode_attention(
            q, cache.k, cache.v, livery.decode_tables, livery.decode_lens, scale, window, cap
        )
        return out.unsqueeze(0), None
    out = q.new_empty((q.shape[0], q.shape[1], v.shape[-1]))
    for chunk in livery.chunks:
        keys, values = _context(chunk, cache, k, v)
        out[chunk.first : chunk.last] = _attend_chunk(q[chunk.first : chunk.last], keys, values, scale, window, cap)
    if livery.decode_rows is not None and len(livery.decode_rows):
        rows = livery.decode_rows
        out[rows] = livery.kernels.decode_attention(
            q[rows], cache.k, cache.v, livery.decode_tables, livery.decode_lens, scale, window, cap
        )
    return out.unsqueeze(0), None


def _context_slots(table: tuple[int, ...], length: int, block_size: int, device: torch.device) -> Tensor:
    blocks = torch.tensor(table[: -(-length // block_size)], device=device)
    offsets = torch.arange(block_size, device=device)
    return (blocks[:, None] * block_size + offsets).flatten()[:length]


def _context(chunk: Chunk, cache: LayerCache, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of a chunk's whole context, [context, kv_heads, dim]."""
    if chunk.slots is None:
        return k[chunk.first : chunk.last], v[chunk.first : chunk.last]
    return cache.k.flatten(0, 1)[chunk.slots], cache.v.flatten(0, 1)[chunk.slots]


def _attend_chunk(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int, softcap: float) -> Tensor:
    """Causal attention of a chunk's last rows over its context: q [new, heads, dim] -> [new, heads, v_dim]."""
    new, heads, _ = q.shape
    context, kv_heads, _ = k.shape
    shared = heads // kv_heads
    q = q.transpose(0, 1)
    k = k.transpose(0, 1).repeat_interleave(shared, dim=0)
    v = v.transpose(0, 1).repeat_interleave(shared, dim=0)
    whole = new == context and not (0 < window < context)
    mask = None if whole and not softcap else _causal_mask(new, context, window, q.device)
    if not softcap:
        attended = functional.scaled_dot_product_attention(
            q[None], k[None], v[None], attn_mask=mask, is_causal=mask is None, scale=scale
        )[0]
        return attended.transpose(0, 1)
    scores = torch.tanh((q @ k.transpose(1, 2)) * scale / softcap) * softcap
    assert mask is not None
    weights = scores.masked_fill(~mask, float("-inf")).float().softmax(dim=-1).to(v.dtype)
    return (weights @ v).transpose(0, 1)


def _causal_mask(new: int, context: int, window: int, device: torch.device) -> Tensor:
    """[new, context], True where a row may look."""
    position = torch.arange(context - new, context, device=device)[:, None]
    seen = torch.arange(context, device=device)[None]
    allowed = seen <= position
    return allowed & (seen > position - window) if window else allowed


def _no_mask(*_: object, **__: object) -> None:
    """Rows are kept apart by the cache, not by a mask over the flattened step."""


AttentionInterface.register(PAGED, paged_attention)
AttentionMaskInterface.register(PAGED, _no_mask)
