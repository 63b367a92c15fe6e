"""Launches the grouped low-rank products: how many programs, over which parts of the input, with which tiles."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from livery.engine.kernels.cuda.lora_kernels import expand_kernel, reduce_kernel, shrink_kernel
from livery.engine.kernels.tables import FEW_ROWS, HEADER, PER_SLICE, DeviceSegments

PER_SPLIT = 512  # input features that one program of a shrink sums
MOST_SPLITS = 16
COLUMNS = 128  # output features of one program of an expand
RANK_PROGRAMS = 4  # that share the ranks of a tile of few rows; each takes as many turns as needed
RANKS = 64  # of one turn of a program that reads many rows
PROGRAMS = 132  # below so many, long inputs are shared out over more of them


_TRITON = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@dataclass(frozen=True, slots=True)
class LoraPlan:
    """How one grouped product is cut up. Depends on nothing but bounds known before the launch.

    Few plans are possible, as each is compiled: that takes longer than many steps.
    """

    tile_rows: int
    splits: int
    rank_block: int
    rank_programs: int
    partial: bool  # whether the expand adds up the planes of the shrink itself

    @classmethod
    def of(cls, segments: DeviceSegments, in_features: int, half: bool) -> LoraPlan:
        step = segments.step
        most = min(MOST_SPLITS, triton.next_power_of_2(triton.cdiv(in_features, PER_SPLIT)))
        if step.tile_rows == FEW_ROWS:
            return cls(FEW_ROWS, most, 16, RANK_PROGRAMS, True)
        wanted = triton.next_power_of_2(triton.cdiv(PROGRAMS, max(step.tiles, 1)))
        return cls(step.tile_rows, min(most, wanted), RANKS, 1, not half)


def grouped_lora(x: Tensor, y: Tensor, segments: DeviceSegments) -> None:
    """Add each tile's low-rank product to its rows of y, in place.

    x: [rows, in_features] in fp32, bf16 or fp16, y: [rows, out] likewise, both with contiguous rows. Weights are
    fp32 or, for rows in half precision, of the rows' own dtype; for fp32 rows bf16.
    """
    step = segments.step
    if step.tiles == 0 or step.rank == 0:
        return
    rows, in_features = x.shape
    half = x.dtype != torch.float32
    kind = _TRITON[x.dtype if half else torch.bfloat16]
    plan = LoraPlan.of(segments, in_features, half)
    cap = triton.cdiv(step.rank, 16) * 16
    words = HEADER + PER_SLICE * segments.members
    direct = not plan.partial and plan.splits == 1
    common = {"WORDS": words, "HALF": kind, "M": plan.tile_rows}
    planes = (3, rows, cap) if direct else (plan.splits, rows, cap)
    hidden = torch.empty(planes, dtype=x.dtype if direct else torch.float32, device=x.device)
    shrink_kernel[(plan.splits * plan.rank_programs, step.tiles)](
        x,
        step.words,
        hidden,
        segments.group,
        in_features,
        x.stride(0),
        hidden.stride(1),
        hidden.stride(0),
        **common,
        SPLITS=plan.splits,
        RANK_PROGRAMS=plan.rank_programs,
        PARTIAL=not direct,
        X_HALF=half,
        N=plan.rank_block,
        K=128 if plan.tile_rows == FEW_ROWS else 64,
        ALIGNED=step.is_aligned,
        num_stages=3,
    )
    if not plan.partial and not direct:
        partial, hidden = hidden, torch.empty((3, rows, cap), dtype=x.dtype, device=x.device)
        reduce_kernel[(triton.cdiv(cap, 16), step.tiles)](
            partial,
            step.words,
            hidden,
            segments.group,
            partial.stride(1),
            partial.stride(0),
            hidden.stride(1),
            hidden.stride(0),
            **common,
            SPLITS=plan.splits,
            N=16,
        )
    expand_kernel[(triton.cdiv(segments.widest, COLUMNS), segments.members, step.tiles)](
        hidden,
        step.words,
        y,
        segments.group,
        y.stride(0),
        hidden.stride(1),
        hidden.stride(0),
        **common,
        SPLITS=plan.splits if plan.partial else 1,
        PARTIAL=plan.partial,
        X_HALF=half,
        N=COLUMNS,
        R=16,
        ALIGNED=step.is_aligned,
        num_stages=1,
    )
