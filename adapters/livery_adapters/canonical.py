"""The one form in which engines apply adapters, whatever PEFT type they came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class LowRank:
    """An additive ΔW = scale · B·A of one module.

    For a linear module `a` is [rank, in_features] and `b` [out_features, rank]. For an embedding `a` is
    [rank, vocabulary] and `b` [embedding_dim, rank], as PEFT stores them. Both keep the dtype of the file:
    the scale stays apart so that folding it never rounds bf16 weights.
    """

    a: Tensor
    b: Tensor
    scale: float

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])

    @property
    def nbytes(self) -> int:
        return self.a.nbytes + self.b.nbytes


@dataclass(frozen=True, slots=True)
class CanonicalAdapter:
    """What one adapter version does to the base model, keyed by the base's module paths.

    `exact` is True when applying this gives PEFT's own forward up to rounding.
    """

    digest: str
    linears: Mapping[str, LowRank] = field(default_factory=dict)
    embeddings: Mapping[str, LowRank] = field(default_factory=dict)
    exact: bool = True

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (*self.linears.values(), *self.embeddings.values()))


class BaseWeights(Protocol):
    """What a conversion may ask of the base model; the caller supplies it, dequantised where needed."""

    def weight(self, module: str) -> Tensor:
        """The weight of a module as [out_features, in_features], or [vocabulary, dim] for an embedding."""
        ...
