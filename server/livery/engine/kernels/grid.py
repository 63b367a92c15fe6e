"""Weights on a grid of few levels: codes of 4 or 8 bits, with an fp16 scale (and least value) per 32 inputs.

    4 bits: w = scale * code + least, code 0 to 15 (GGUF's Q4_1; Q4_0 with least = -8 * scale)
    8 bits: w = scale * code, code -128 to 127 (GGUF's Q8_0; Q5_0 and Q4_0 as well)

`exact_grid` finds the grid that a weight lies on, from its numbers alone: whoever wrote them out in full, and in
whatever order of rows. `nearest_grid` rounds to one. Products of an fp16 and a code are exact in fp32, so that a grid
has one meaning, here and in panels.hpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Bits = Literal[4, 8]
BLOCK = 32
_SEARCHED = 64  # blocks for which all scales are tried at once
_CODES = {4: (0, 15), 8: (-128, 127)}


@dataclass(frozen=True, slots=True)
class Grid:
    """A weight [out_features, blocks * BLOCK] taken apart."""

    bits: Bits
    scale: Tensor  # fp16 [out_features, blocks]
    least: Tensor  # the same; zeros for 8 bits
    codes: Tensor  # int8 [out_features, blocks, BLOCK]

    def values(self) -> Tensor:
        """fp32 [out_features, blocks * BLOCK]."""
        return _values(self.codes, self.scale, self.least).flatten(1)


def exact_grid(weight: Tensor, bits: Bits) -> Grid | None:
    """The grid that has exactly these numbers, or None. weight: fp32 [out_features, in_features].

    A last block that is not full is filled up with the row's last value.
    """
    blocks = _blocks(weight)
    flat = blocks.flatten(0, 1)
    scale, least = _widest(flat, bits)
    codes, fits = _fitted(flat, scale, least, bits)
    left = (~fits).nonzero()[:, 0]
    for some in torch.split(left, _SEARCHED):
        found = _search(flat[some], bits)
        if found is None:
            return None
        scale[some], least[some], codes[some] = found
    return _grid(bits, blocks, scale, least, codes)


def nearest_grid(weight: Tensor, bits: Bits) -> Grid:
    """The grid over each block's range, with every number rounded to its nearest level."""
    blocks = _blocks(weight)
    flat = blocks.flatten(0, 1)
    scale, least = _widest(flat, bits)
    return _grid(bits, blocks, scale, least, _codes(flat, scale, least, bits))


def _blocks(weight: Tensor) -> Tensor:
    """[out_features, blocks, BLOCK]."""
    outs, ins = weight.shape
    if missing := -ins % BLOCK:
        weight = torch.cat([weight, weight[:, -1:].expand(outs, missing)], dim=1)
    return weight.reshape(outs, -1, BLOCK)


def _grid(bits: Bits, blocks: Tensor, scale: Tensor, least: Tensor, codes: Tensor) -> Grid:
    per_row = blocks.shape[:2]
    return Grid(bits, scale.reshape(per_row), least.reshape(per_row), codes.reshape(blocks.shape))


def _widest(blocks: Tensor, bits: Bits) -> tuple[Tensor, Tensor]:
    """(scale, least), fp16 [n] each, with which the codes reach over the whole range of blocks [n, BLOCK]."""
    low, high = blocks.aminmax(dim=-1)
    if bits == 4:
        return ((high - low) / 15).half(), low.half()
    return (torch.maximum(high, -low) / 127).half(), torch.zeros_like(low, dtype=torch.float16)


def _values(codes: Tensor, scale: Tensor, least: Tensor) -> Tensor:
    return codes.float() * scale.float()[..., None] + least.float()[..., None]


def _codes(blocks: Tensor, scale: Tensor, least: Tensor, bits: Bits) -> Tensor:
    """Nearest codes, int8 like blocks [..., BLOCK]."""
    steps = torch.where(scale == 0, 1, scale).float()[..., None]
    codes = torch.round((blocks - least.float()[..., None]) / steps)
    return codes.nan_to_num(0).clamp_(*_CODES[bits]).to(torch.int8)


def _fitted(blocks: Tensor, scale: Tensor, least: Tensor, bits: Bits) -> tuple[Tensor, Tensor]:
    """The nearest codes, and for which blocks they give the very numbers."""
    codes = _codes(blocks, scale, least, bits)
    return codes, (_values(codes, scale, least) == blocks).all(dim=-1)


def _search(blocks: Tensor, bits: Bits) -> tuple[Tensor, Tensor, Tensor] | None:
    """(scale, least, codes) for blocks [n, BLOCK] that don't use their grid's ends; None unless all are found."""
    low, high = blocks.aminmax(dim=-1)
    if bits == 4:
        # All numbers of steps between the lowest and the highest value, and of unused levels before the first one.
        steps, unused = (
            part.flatten() for part in torch.meshgrid(torch.arange(1, 16), torch.arange(16), indexing="ij")
        )
        possible = steps + unused <= 15
        steps, unused = steps[possible, None], unused[possible, None]
        rising = ((high - low) / steps).half()
        scale = torch.cat([rising, -rising])
        least = torch.cat([low - unused * rising.float(), high + unused * rising.float()]).half()
    else:
        scale = (torch.maximum(high, -low) / torch.arange(1, 129)[:, None]).half()
        least = torch.zeros_like(scale)
    codes, fits = _fitted(blocks, scale, least, bits)
    if not bool(fits.any(dim=0).all()):
        return None
    which = fits.int().argmax(dim=0), torch.arange(len(blocks))
    return scale[which], least[which], codes[which]
