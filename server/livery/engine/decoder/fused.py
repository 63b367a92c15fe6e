"""The layers of a recognised decoder, computed by the kernels with nothing between them.

Products and everything that adapters do to them stay in the projection groups; only norms, rotary positions,
attention, activation and sums are strung together here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from livery.engine.attention import AttentionBatch, LayerCache
from livery.engine.decoder.native import NativeLayers
from livery.engine.decoder.parts import DecoderLayer, DecoderParts, Norm
from livery.engine.kernels import Kernels
from livery.engine.kernels.native import NativeKernels
from livery.engine.lora.bank import AdapterBank


class FusedDecoder:
    """The forward of one model. Keeps nothing of a step."""

    def __init__(self, parts: DecoderParts, bank: AdapterBank, kernels: Kernels, caches: Sequence[LayerCache]) -> None:
        self._native: NativeLayers | None = None
        if isinstance(kernels, NativeKernels) and NativeLayers.serves(parts):
            self._native = NativeLayers(parts, caches, kernels)
        self._parts = parts
        self._bank = bank
        self._kernels = kernels
        width, kv_width = parts.heads * parts.dim, parts.kv_heads * parts.dim
        self._cuts = [width, kv_width, kv_width]

    def hidden(self, tokens: Tensor, positions: Tensor, batch: AttentionBatch) -> Tensor:
        """The state after the final norm, [rows, hidden], for tokens and positions, int64 [rows] each.

        The bank has been told the step's segments.
        """
        parts = self._parts
        x = parts.embedding(tokens[None])[0]
        cos, sin = parts.cos[positions], parts.sin[positions]
        residual: Tensor | None = None
        if self._native is not None and (adapters := self._bank.native_rows()) is not None:
            self._native.run(x, cos, sin, adapters, batch)
        else:
            for index, layer in enumerate(parts.layers):
                residual = self._layer(index, layer, x, residual, cos, sin, batch)
        return self._norm(parts.norm, x, residual)

    def logits(self, hidden: Tensor) -> Tensor:
        """[rows, vocabulary] of the kept rows' states, [rows, hidden]."""
        return self._parts.head.product(hidden)

    def _layer(
        self,
        index: int,
        layer: DecoderLayer,
        x: Tensor,
        residual: Tensor | None,
        cos: Tensor,
        sin: Tensor,
        batch: AttentionBatch,
    ) -> Tensor:
        """Advance the stream x [rows, hidden] in place; returns the output of the last block, still to be added."""
        kernels, cache = self._kernels, batch.caches[index]
        product = layer.qkv.product(self._norm(layer.input_norm, x, residual))
        q, k, v = (part.view(len(x), -1, self._parts.dim) for part in torch.split(product, self._cuts, dim=1))
        if layer.head_norms is not None:
            q, k = (self._norm(norm, part) for norm, part in zip(layer.head_norms, (q, k), strict=True))
        kernels.rope(q, k, v, cos, sin, cache.k, cache.v, batch.slots)
        attended = kernels.paged_attention(
            q,
            cache.k,
            cache.v,
            batch.tables,
            batch.starts,
            batch.lens,
            layer.attention.scaling,
            layer.attention.window,
        )
        residual = layer.output.product(attended.flatten(1))
        gate_up = layer.gate_up.product(self._norm(layer.post_norm, x, residual))
        return layer.down.product(kernels.silu_mul(gate_up))

    def _norm(self, norm: Norm, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """The norm of x (and of x + residual, which becomes x), by each adapter's own weight where it has one."""
        y = self._kernels.rms_norm(x, norm.weight, norm.eps, residual)
        if self._bank.has_plain:
            for segment, parameters in self._bank.plain(norm.path):
                rows = slice(segment.start, segment.end)
                y[rows] = self._kernels.rms_norm(x[rows], parameters["weight"], norm.eps)
        return y
