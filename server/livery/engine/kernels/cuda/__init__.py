"""Kernels for CUDA devices, in Triton. Import it only where Triton is there, as it is with torch's CUDA builds."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional

from livery.engine.kernels.cuda import attention, lora, varlen
from livery.engine.kernels.cuda.rows import TritonRows
from livery.engine.kernels.group import GroupSegments
from livery.engine.kernels.library import LibraryWeight
from livery.engine.kernels.tables import DeviceSegments
from livery.engine.kernels.weights import Layout, Weight, pack_for_torch


class TritonKernels(TritonRows):
    """Shapes and meaning are documented in reference.py. Nothing here waits for the device."""

    name = "triton"
    reads_tables = True

    def __init__(self) -> None:
        self._prompts = varlen.PromptAttention(attention.paged_attention)

    def grouped_lora(self, x: Tensor, y: Tensor, segments: GroupSegments) -> None:
        if not isinstance(segments, DeviceSegments):
            segments = DeviceSegments.from_entries(segments.entries, x.device)
        lora.grouped_lora(x, y, segments)

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
        if query_starts is not None and self._prompts.takes(q, k_cache, v_cache, window, softcap):
            found = varlen.varlen(q, k_cache, v_cache, block_tables, query_starts, context_lens, scale, window)
            return found if out is None else out.copy_(found)
        return attention.paged_attention(
            q, k_cache, v_cache, block_tables, query_starts, context_lens, scale, window, softcap, out
        )

    def pack(self, weight: Tensor, layout: Layout | Literal["exact"] = "fp32") -> Weight:
        return pack_for_torch(weight, layout)

    def linear(self, x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
        if isinstance(weight, LibraryWeight):
            return weight.product(x, bias)
        return functional.linear(x, weight.dense().to(x.dtype), bias)
