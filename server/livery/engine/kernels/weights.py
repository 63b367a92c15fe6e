"""A linear layer's weight as the kernels hold it: natural for torch, in panels for the native product.

Each weight is held once. A tied embedding reads its rows out of the same memory, whichever layout that is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PlainWeight:
    """[out_features, in_features], as torch multiplies it."""

    tensor: Tensor

    @property
    def out_features(self) -> int:
        return int(self.tensor.shape[0])

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
    """Panels of output columns, [panels, in_features, width]; the last panel is filled up with zeros."""

    panels: Tensor
    out_features: int

    @classmethod
    def of(cls, weight: Tensor, width: int) -> PackedWeight:
        """Pack a weight [out_features, in_features], fp32."""
        outs, ins = weight.shape
        count = -(-outs // width)
        if outs == count * width:
            panels = weight.reshape(count, width, ins).transpose(1, 2).contiguous()
        else:
            panels = weight.new_zeros((count, ins, width))
            whole = outs // width
            panels[:whole] = weight[: whole * width].reshape(whole, width, ins).transpose(1, 2)
            panels[whole, :, : outs - whole * width] = weight[whole * width :].t()
        return cls(panels, outs)

    @property
    def nbytes(self) -> int:
        return self.panels.nbytes

    def dense(self) -> Tensor:
        """The weight as [out_features, in_features]; a copy."""
        count, ins, width = self.panels.shape
        return self.panels.transpose(1, 2).reshape(count * width, ins)[: self.out_features]

    def covering(self, start: int, stop: int) -> tuple[PackedWeight, int]:
        """Whole panels of the same memory that hold output features [start, stop), and how many lie in front."""
        width = self.panels.shape[2]
        first, last = start // width, -(-stop // width)
        outs = min(last * width, self.out_features) - first * width
        return PackedWeight(self.panels[first:last], outs), start - first * width

    def rows(self, ids: Tensor) -> Tensor:
        """Rows of the weight, [len(ids), in_features]."""
        width = self.panels.shape[2]
        return self.panels[torch.div(ids, width, rounding_mode="floor"), :, ids % width]


Weight = PlainWeight | PackedWeight
