"""What a PEFT type has to do with its tensors, with torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from livery_adapters.canonical import BaseWeights, EmbeddingChange, ExpertsChange, LinearChange, Rows
from livery_adapters.layout import AdapterManifest, TargetTensors

S = TypeVar("S")
Tensors = Mapping[str, Tensor]
# A mapping holds the new parameters of a module that is neither linear nor an embedding, by name.
Change = LinearChange | EmbeddingChange | ExpertsChange | Mapping[str, Tensor]


def wide(of_base: Tensor) -> Tensor:
    """A tensor of the base in fp32 beside those of the file, which are in the CPU's memory."""
    return of_base.detach().to("cpu", torch.float32)


class ReplacedWeights(BaseWeights, Protocol):
    """The base's weights as the adapter's complete parameters leave them: what PEFT's layers then work on."""

    @property
    def brought(self) -> frozenset[str]:
        """Paths of the parameters that the file overwrites the base's with, also where it repeats them."""
        ...


def trained_rows(module: str, rows: Rows, base: BaseWeights) -> LinearChange | EmbeddingChange:
    """The change of an embedding or a head some of whose rows are trained. PEFT computes such a head without bias."""
    shape = base.shapes.modules[module]
    if shape.kind == "embedding":
        return EmbeddingChange(rows=rows)
    return LinearChange(rows=rows, bias=torch.zeros(shape.out_features) if shape.has_bias else None)


def rows_by_id(ids: Sequence[int], values: Tensor) -> Rows:
    """Rows in the order of their ids, as the canonical form has them; `values` [tokens, width] has the file's order."""
    ascending, order = torch.tensor(ids, dtype=torch.int64).sort()
    return Rows(ascending, values[order])


@dataclass(frozen=True, slots=True)
class Dense:
    """A ΔW of full rank [out_features, in_features] in fp32, and the complete bias where the type alters it."""

    delta: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Conversion(Generic[S]):
    """How one PEFT type becomes canonical; `S` are its settings. All functions may raise AdapterRefused.

    `convert_module(target, tensors, settings, base)` gives the exact form of one module's change; `tensors` are its
    own by role, as the file has them, and the shared ones. Where it is None, or returns None for a module, there is
    no exact form, nor is one taken for a reducible target of a higher rank than was asked for. Then `dense`, with
    the same arguments, gives what the type adds to a linear module, and its ΔW is factorised to the rank that the
    operator asked for. `shared(manifest, tensors, base)` makes what all modules share, once, from the shared tensors
    of the file.
    """

    convert_module: Callable[[TargetTensors, Tensors, S, ReplacedWeights], Change | None] | None
    dense: Callable[[TargetTensors, Tensors, S, ReplacedWeights], Dense] | None = None
    shared: Callable[[AdapterManifest, Tensors, ReplacedWeights], Tensors] | None = None
