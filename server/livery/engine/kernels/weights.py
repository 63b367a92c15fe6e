"""A linear layer's weight as the kernels hold it: natural for torch, in panels for the native product.

Panels hold fp32, bf16, or codes on a grid (grid.py). All give the same product as fp32 panels of their `dense()`.
Each weight is held once. A tied embedding reads its rows out of the same memory, whichever layout that is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from livery.engine.kernels.grid import BLOCK, Bits, Grid, exact_grid, nearest_grid
from livery.engine.kernels.library import LibraryWeight

Layout = Literal["fp32", "bf16", "int8", "int4"]
LAYOUTS: tuple[Layout, ...] = ("fp32", "bf16", "int8", "int4")  # from large to small, as numbered in linear.cpp

_TORCH_WIDTH = 32  # of panels, which torch has no use for
_ROWS_AT_ONCE = 1 << 20  # weights taken apart at once: what that needs beside them stays small


@dataclass(frozen=True, slots=True)
class PlainWeight:
    """[out_features, in_features], as torch multiplies it."""

    tensor: Tensor

    @property
    def out_features(self) -> int:
        return int(self.tensor.shape[0])

    @property
    def in_features(self) -> int:
        return int(self.tensor.shape[1])

    @property
    def layout(self) -> str:
        return str(self.tensor.dtype).removeprefix("torch.")

    @property
    def nbytes(self) -> int:
        return self.tensor.nbytes

    def dense(self) -> Tensor:
        """The weight as [out_features, in_features]."""
        return self.tensor

    def covering(self, start: int, stop: int) -> tuple[PlainWeight, int]:
        """Output features [start, stop) in the same memory, and how many features lie in front of them."""
        return PlainWeight(self.tensor[start:stop]), 0

    def rows(self, ids: Tensor) -> Tensor:
        """Rows of the weight, [len(ids), in_features]."""
        return self.tensor[ids]


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """Panels of output columns, [panels, in_features, width], fp32 or bf16; the last one is filled up with zeros.

    In bf16 a panel's column c has column c + width / 2 beside it: one word holds both, and a shift widens each.
    """

    panels: Tensor
    out_features: int

    @classmethod
    def of(cls, weight: Tensor, width: int, dtype: torch.dtype = torch.float32) -> PackedWeight:
        """Pack a weight [out_features, in_features], fp32, rounding it to `dtype`."""
        outs, ins = weight.shape
        count, whole = -(-outs // width), outs // width
        order = _column_order(width, dtype)
        panels = torch.empty((count, ins, width), dtype=dtype, device=weight.device)
        panels[:whole] = weight[: whole * width].reshape(whole, width, ins)[:, order].transpose(1, 2)
        if whole < count:
            last = weight.new_zeros((width, ins))
            last[: outs - whole * width] = weight[whole * width :]
            panels[whole] = last[order].t()
        return cls(panels, outs)

    @property
    def in_features(self) -> int:
        return int(self.panels.shape[1])

    @property
    def layout(self) -> Layout:
        return "fp32" if self.panels.dtype is torch.float32 else "bf16"

    @property
    def nbytes(self) -> int:
        return self.panels.nbytes

    def dense(self) -> Tensor:
        """The weight as fp32 [out_features, in_features]; a copy."""
        count, ins, width = self.panels.shape
        columns = self.panels.transpose(1, 2)[:, _places(width, self.panels.dtype)]
        return columns.reshape(count * width, ins)[: self.out_features].float()

    def covering(self, start: int, stop: int) -> tuple[PackedWeight, int]:
        """Whole panels of the same memory that hold output features [start, stop), and how many lie in front."""
        width = self.panels.shape[2]
        first, last = start // width, -(-stop // width)
        outs = min(last * width, self.out_features) - first * width
        return PackedWeight(self.panels[first:last], outs), start - first * width

    def rows(self, ids: Tensor) -> Tensor:
        """Rows of the weight, fp32 [len(ids), in_features]."""
        width = self.panels.shape[2]
        places = _places(width, self.panels.dtype).to(ids.device)
        return self.panels[torch.div(ids, width, rounding_mode="floor"), :, places[ids % width]].float()


def _column_order(width: int, dtype: torch.dtype) -> Tensor:
    """Which column lies at each place of a panel."""
    columns = torch.arange(width)
    return columns if dtype is torch.float32 else columns.reshape(2, -1).t().flatten()


def _places(width: int, dtype: torch.dtype) -> Tensor:
    """At which place of a panel each column lies."""
    columns = torch.arange(width)
    return columns if dtype is torch.float32 else columns.reshape(-1, 2).t().flatten()


@dataclass(frozen=True, slots=True)
class GridWeight:
    """Panels of output columns as codes on a grid: bytes [panels, blocks of in_features, bytes of a block].

    A block holds the scales of its columns in fp16, with 4 bits their least values too, and then the codes as
    panels.hpp describes. Columns that fill up the last panel are zeros.
    """

    panels: Tensor
    bits: Bits
    width: int
    out_features: int
    in_features: int

    @classmethod
    def of(cls, weight: Tensor, width: int, bits: Bits, *, exact: bool) -> GridWeight | None:
        """Pack a weight [out_features, in_features], fp32: None where it isn't on a grid and only `exact` will do."""
        outs, ins = weight.shape
        if exact and exact_grid(weight[:1], bits) is None:  # most that don't fit show in their first row
            return None
        packed = []
        for rows in torch.split(weight, max(1, _ROWS_AT_ONCE // (ins * width)) * width):
            grid = exact_grid(rows, bits) if exact else nearest_grid(rows, bits)
            if grid is None:
                return None
            packed.append(_panels(grid, width))
        return cls(torch.cat(packed), bits, width, outs, ins)

    @property
    def layout(self) -> Layout:
        return "int4" if self.bits == 4 else "int8"

    @property
    def nbytes(self) -> int:
        return self.panels.nbytes

    def dense(self) -> Tensor:
        """The weight as fp32 [out_features, in_features]; a copy."""
        scale, least, codes = self._parts()
        values = codes.float() * scale[:, :, None] + least[:, :, None]  # [panels, blocks, BLOCK, width]
        return values.flatten(1, 2).transpose(1, 2).flatten(0, 1)[: self.out_features, : self.in_features].contiguous()

    def covering(self, start: int, stop: int) -> tuple[GridWeight, int]:
        """Whole panels of the same memory that hold output features [start, stop), and how many lie in front."""
        first, last = start // self.width, -(-stop // self.width)
        outs = min(last * self.width, self.out_features) - first * self.width
        return GridWeight(self.panels[first:last], self.bits, self.width, outs, self.in_features), (
            start - first * self.width
        )

    def rows(self, ids: Tensor) -> Tensor:
        """Rows of the weight, fp32 [len(ids), in_features]."""
        panel, column = torch.div(ids, self.width, rounding_mode="floor"), ids % self.width
        scale, least, codes = GridWeight(
            self.panels[panel], self.bits, self.width, len(ids) * self.width, self.in_features
        )._parts()
        n = torch.arange(len(ids), device=ids.device)
        picked = codes[n, :, :, column].float() * scale[n, :, column][..., None] + least[n, :, column][..., None]
        return picked.flatten(1)[:, : self.in_features]

    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """fp32 scale and least [panels, blocks, width], and codes [panels, blocks, BLOCK, width]."""
        count, blocks, _ = self.panels.shape
        head = self.panels[..., : 2 * self.width].contiguous().view(torch.float16).float()
        if self.bits == 8:
            codes = self.panels[..., 2 * self.width :].view(torch.int8)
            return head, torch.zeros_like(head), codes.reshape(count, blocks, BLOCK, self.width)
        least = self.panels[..., 2 * self.width : 4 * self.width].contiguous().view(torch.float16).float()
        words = self.panels[..., 4 * self.width :].contiguous().view(torch.int32)
        words = words.reshape(count, blocks, BLOCK // 8, 1, self.width)
        codes = (words >> _shifts(words.device)[:, None]) & 15
        return head, least, codes.reshape(count, blocks, BLOCK, self.width)


def _panels(grid: Grid, width: int) -> Tensor:
    """Bytes [panels, blocks, bytes of a block] of a grid with any number of rows."""
    outs, blocks, _ = grid.codes.shape
    count = -(-outs // width)

    def columns(values: Tensor) -> Tensor:
        """[out_features, blocks, n] -> bytes [panels, blocks, n * width]."""
        filled = values.new_zeros((count * width, *values.shape[1:]))
        filled[:outs] = values
        side_by_side = filled.reshape(count, width, blocks, -1).permute(0, 2, 3, 1).contiguous()
        return side_by_side.flatten(2).view(torch.uint8)

    if grid.bits == 8:
        return torch.cat([columns(grid.scale[..., None]), columns(grid.codes)], dim=-1)
    nibbles = grid.codes.reshape(outs, blocks, BLOCK // 8, 8).to(torch.int32)
    words = (nibbles << _shifts(nibbles.device)).sum(dim=-1, dtype=torch.int32)
    return torch.cat([columns(grid.scale[..., None]), columns(grid.least[..., None]), columns(words)], dim=-1)


def _shifts(device: torch.device) -> Tensor:
    return torch.arange(0, 32, 4, dtype=torch.int32, device=device)


Weight = PlainWeight | PackedWeight | GridWeight | LibraryWeight


def pack_rounded(weight: Tensor, width: int, layout: Layout) -> PackedWeight | GridWeight:
    """A weight [out_features, in_features], fp32, in the given layout, its numbers rounded to what that can hold."""
    if layout in ("int4", "int8"):
        packed = GridWeight.of(weight, width, 4 if layout == "int4" else 8, exact=False)
        assert packed is not None
        return packed
    return PackedWeight.of(weight, width, torch.float32 if layout == "fp32" else torch.bfloat16)


def pack_for_torch(weight: Tensor, layout: Layout | Literal["exact"]) -> Weight:
    """A weight as torch multiplies it, or rounded to a layout of fewer bits, which each product then unpacks."""
    if layout == "exact" or layout == "fp32":
        return PlainWeight(weight)
    return pack_rounded(weight.float(), _TORCH_WIDTH, layout)


def pack_exactly(weight: Tensor, width: int) -> PackedWeight | GridWeight:
    """A weight [out_features, in_features], fp32, in the smallest layout that has its very numbers."""
    bits: Bits
    for bits in (4, 8):
        if packed := GridWeight.of(weight, width, bits, exact=True):
            return packed
    pieces = torch.split(weight, _ROWS_AT_ONCE // weight.shape[1] + 1)
    is_short = all(torch.equal(rows.bfloat16().float(), rows) for rows in pieces)
    return PackedWeight.of(weight, width, torch.bfloat16 if is_short else torch.float32)
