"""Launches the kernels that treat each row by itself. Shapes and meaning are documented in reference.py."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from livery.engine.kernels.cuda.row_kernels import norm_kernel, rope_kernel, silu_mul_kernel

HEADS = 8  # of one row that a program turns
COLUMNS = 1024  # of one row that a program activates


class TritonRows:
    """Norms, rotary positions and activations."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Tensor:
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        width = x.shape[-1]
        heads, x_head = (x.shape[1], x.stride(1)) if x.dim() == 3 else (1, 0)
        if x.numel():
            norm_kernel[(x.shape[0], heads)](
                x,
                x if residual is None else residual,
                weight,
                out,
                eps,
                width,
                heads,
                x.stride(0),
                x_head,
                0 if residual is None else residual.stride(0),
                RESIDUAL=residual is not None,
                BLOCK=triton.next_power_of_2(width),
                num_warps=max(1, min(8, width // 256)),
            )
        return out

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
        rows, heads, width = q.shape
        kv_heads, v_width = v.shape[1:]
        if rows == 0:
            return
        for name, part in (("q", q), ("k", k), ("v", v)):
            if part.stride(2) != 1 or (part.shape[1] > 1 and part.stride(1) != part.shape[2]):
                raise ValueError(f"{name} needs each row's heads side by side, got strides {part.stride()}")
        if not all(tensor.is_contiguous() for tensor in (cos, sin, k_cache, v_cache)):
            raise ValueError("cos, sin and the caches need to be contiguous")
        q_blocks, k_blocks = triton.cdiv(heads, HEADS), triton.cdiv(kv_heads, HEADS)
        rope_kernel[(rows, q_blocks + 2 * k_blocks)](
            q,
            k,
            v,
            cos,
            sin,
            k_cache,
            v_cache,
            slots,
            heads,
            kv_heads,
            width // 2,
            v_width,
            q.stride(0),
            k.stride(0),
            v.stride(0),
            q_blocks,
            k_blocks,
            H=HEADS,
            HALF=triton.next_power_of_2(width // 2),
            DV=triton.next_power_of_2(v_width),
        )

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        rows, width = gate_up.shape[0], gate_up.shape[1] // 2
        out = torch.empty((rows, width), dtype=gate_up.dtype, device=gate_up.device)
        if out.numel():
            silu_mul_kernel[(rows, triton.cdiv(width, COLUMNS))](
                gate_up, out, width, gate_up.stride(0), BLOCK=min(COLUMNS, triton.next_power_of_2(width))
            )
        return out
