"""In which layout each projection group's weight is held, and what rounding it to fewer bits did to it.

Without being asked the base's numbers are never changed: each weight goes into the smallest layout that has them
exactly. Asked for fewer bits than they need, they are rounded in the model itself, so that everything that is made
or checked from it afterwards (the plain forward at start, adapters' norms) sees the numbers that are served.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from livery.engine.kernels import LAYOUTS, Kernels, Layout, LibraryLinear, LibraryWeight, PlainWeight, Weight
from livery.engine.quantized import QuantizedLinear, plain_linear

Storage = Layout | Literal["exact"]


class WeightHolder:
    """Lays out the weights of one model's projection groups."""

    def __init__(self, kernels: Kernels, storage: Storage) -> None:
        self._kernels = kernels
        self._storage = storage
        self._rounded: dict[int, Weight] = {}
        self._used: Counter[str] = Counter()
        self._by_library = False  # whether a library holds some of them
        self._lost = self._whole = 0.0  # sums of squares: of what rounding changed, and of the weights

    def round(self, groups: Sequence[Sequence[nn.Module]], head: int | None) -> None:
        """Round the linear modules of all groups, in place, where the storage asked for can't hold their numbers.

        `head` is the index of the group that makes logits: of 4 bits it would lose most, and keeps 8.
        """
        if self._storage == "exact" or self._storage == "fp32":
            return
        for index, modules in enumerate(groups):
            weight = stacked(modules)
            layout: Layout = "int8" if self._storage == "int4" and index == head else self._storage
            held = self._kernels.pack(weight, "exact")
            if isinstance(held, PlainWeight) or LAYOUTS.index(held.layout) < LAYOUTS.index(layout):
                held = self._kernels.pack(weight, layout)
                dense = held.dense()
                self._lost += float((dense - weight).double().square().sum())
                _write(dense, modules)
            self._rounded[index] = held
            self._whole += float(weight.double().square().sum())

    def hold(self, index: int, modules: Sequence[nn.Module]) -> Weight:
        """The weight of a group of linear modules, one below the other; left to its library where one is quantised."""
        if any(isinstance(module, QuantizedLinear) for module in modules):
            quantized = LibraryWeight(tuple(part for module in modules for part in _library_parts(module)))
            self._used[quantized.layout] += 1
            self._by_library = True
            return quantized
        held = self._rounded.pop(index, None)
        if held is None:
            held = self._kernels.pack(stacked(modules), "fp32" if self._storage == "fp32" else "exact")
        self._used[held.layout] += 1
        return held

    @property
    def relative_error(self) -> float:
        """‖what rounding changed‖ / ‖weights‖ over all linear modules; 0 where they are held as they are."""
        return (self._lost / self._whole) ** 0.5 if self._whole else 0.0

    def describe(self) -> str:
        """As in "int4 x 120, int8 x 1, exact"."""
        used = ", ".join(f"{layout} x {count}" for layout, count in self._used.most_common())
        error = self.relative_error
        as_quantized = "as quantised" if self._by_library else "exact"
        return f"{used}, {f'rounded (relative error {error:.1e})' if error else as_quantized}"


def _library_parts(module: nn.Module) -> tuple[LibraryLinear, ...]:
    """A module of a group that a library multiplies; beside quantised ones a plain one is multiplied by torch."""
    if isinstance(module, QuantizedLinear):
        return module.held.parts
    return (plain_linear(natural(module)),)


def natural(module: nn.Module) -> Tensor:
    """A linear module's weight as [out_features, in_features], contiguous."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return (weight.detach().t() if isinstance(module, Conv1D) else weight.detach()).contiguous()


def stacked(modules: Sequence[nn.Module]) -> Tensor:
    """The weights of linear modules with one input, one below the other, [sum of out_features, in_features]."""
    if len(modules) == 1:  # stays the very tensor: it may be tied to the embedding
        return natural(modules[0])
    return torch.cat([natural(module) for module in modules])


def _write(weight: Tensor, modules: Sequence[nn.Module]) -> None:
    """Put stacked numbers back into the modules they came from."""
    first = 0
    for module in modules:
        own = module.weight
        assert isinstance(own, Tensor)
        target = own.data.t() if isinstance(module, Conv1D) else own.data
        target.copy_(weight[first : first + target.shape[0]])
        first += target.shape[0]
