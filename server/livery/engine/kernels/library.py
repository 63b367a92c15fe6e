"""Weights that another library holds quantised, and multiplies itself: no product of ours, and no copy in full."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LibraryLinear:
    """One linear module's weight. `dequantize` makes a new tensor each time: ask for it seldom, and drop it."""

    layout: str  # in words, as in "bitsandbytes nf4"
    in_features: int
    out_features: int
    multiply: Callable[[Tensor], Tensor]  # rows [n, in_features] -> [n, out_features], without a bias
    dequantize: Callable[[], Tensor]  # -> [out_features, in_features]
    count_bytes: Callable[[], int]  # of everything the library keeps of it, scales and codebooks included


@dataclass(frozen=True, slots=True)
class LibraryWeight:
    """The weights of modules that read one input, one below the other; each is multiplied on its own."""

    parts: tuple[LibraryLinear, ...]

    @property
    def out_features(self) -> int:
        return sum(part.out_features for part in self.parts)

    @property
    def in_features(self) -> int:
        return self.parts[0].in_features

    @property
    def layout(self) -> str:
        return ", ".join(dict.fromkeys(part.layout for part in self.parts))

    @property
    def nbytes(self) -> int:
        """As the library holds them."""
        return sum(part.count_bytes() for part in self.parts)

    def dense(self) -> Tensor:
        """The weight as [out_features, in_features]; a copy, dequantised."""
        found = [part.dequantize() for part in self.parts]
        return found[0] if len(found) == 1 else torch.cat(found)

    def covering(self, start: int, stop: int) -> tuple[LibraryWeight, int]:
        """The modules that hold output features [start, stop), and how many features lie in front of them."""
        kept: list[LibraryLinear] = []
        first, skip = 0, start
        for part in self.parts:
            if first < stop and start < first + part.out_features:
                skip = start - first if not kept else skip
                kept.append(part)
            first += part.out_features
        return LibraryWeight(tuple(kept)), skip

    def rows(self, ids: Tensor) -> Tensor:
        """Rows of the weight, [len(ids), in_features]."""
        return self.dense()[ids]

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """`x @ weight.T + bias` for x [rows, in_features], like x."""
        y = torch.cat([part.multiply(x).to(x.dtype) for part in self.parts], dim=1)
        return y if bias is None else y.add_(bias)
