"""Attention over the paged KV cache, as transformers' AttentionInterface calls it.

A step's rows of many sequences lie flattened in one row of the model's input. This writes their keys and values
to their slots and lets each row see its own sequence only, in one call of the kernels per layer. What a step
looks like comes in through the keyword `livery`; there is no global state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
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
class AttentionBatch:
    """One step as attention sees it. Built fresh from the plan, never kept."""

    caches: Sequence[LayerCache]
    kernels: Kernels
    slots: Tensor  # [rows] flat slot of each row's own position
    tables: Tensor  # [sequences, blocks] int32
    starts: Tensor | None  # [sequences + 1] int32, where each sequence's rows begin; None: one row each
    lens: Tensor  # [sequences] int32, positions in all, this step's included

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
        starts, tables, lens = [0], [], []
        for part in slices:
            end, table = part.start + len(part.token_ids), part.block_table
            slots += [table[p // block_size] * block_size + p % block_size for p in range(part.start, end)]
            starts.append(len(slots))
            tables.append(table[: -(-end // block_size)])
            lens.append(end)
        width = max(map(len, tables))
        padded = [table + (0,) * (width - len(table)) for table in tables]
        return cls(
            caches=caches,
            kernels=kernels,
            slots=torch.tensor(slots, device=device),
            tables=torch.tensor(padded, dtype=torch.int32, device=device),
            starts=None if len(slots) == len(slices) else torch.tensor(starts, dtype=torch.int32, device=device),
            lens=torch.tensor(lens, dtype=torch.int32, device=device),
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
    """query [1, heads, rows, dim], key and value [1, kv_heads, rows, dim] -> [1, rows, heads, dim]."""
    assert livery is not None, "the model dropped the step's context on its way to attention"
    layer = module.layer_idx
    assert isinstance(layer, int)
    cache = livery.caches[layer]
    q, k, v = query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1)  # [rows, heads, dim]
    cache.k.view(-1, *cache.k.shape[2:])[livery.slots] = k
    cache.v.view(-1, *cache.v.shape[2:])[livery.slots] = v
    out = livery.kernels.paged_attention(
        q,
        cache.k,
        cache.v,
        livery.tables,
        livery.starts,
        livery.lens,
        scaling if scaling is not None else q.shape[-1] ** -0.5,
        sliding_window or 0,
        softcap or 0.0,
    )
    return out.unsqueeze(0), None


def _no_mask(*_: object, **__: object) -> None:
    """Rows are kept apart by the cache, not by a mask over the flattened step."""


AttentionInterface.register(PAGED, paged_attention)
AttentionMaskInterface.register(PAGED, _no_mask)
