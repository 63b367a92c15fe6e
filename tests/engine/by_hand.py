"""Adapters written down in canonical form with random tensors, and the dense model that each amounts to.

`Scribe` makes the parts; `ReferenceModels` puts effective weights into a plain transformers model, which knows no
segments, groups or kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from engine.oracle import Oracle, load_base
from livery_adapters.base_model import BaseShapes, ModuleShape
from livery_adapters.canonical import (
    BlockStage,
    CanonicalAdapter,
    EmbeddingChange,
    ExpertsChange,
    InputTransform,
    Kronecker,
    LinearChange,
    LowRank,
    Rows,
    SharedBasis,
)
from livery_adapters.measure import effective

STD = 0.15  # as the base's own weights, so that every part shows and none drowns the others


class Scribe:
    """Random parts for the modules of one base model."""

    def __init__(self, shapes: BaseShapes, seed: int) -> None:
        self.shapes = shapes
        self._random = torch.Generator().manual_seed(seed)
        widest = max(shape.in_features for shape in self._linears().values())
        tallest = max(shape.out_features for shape in self._linears().values())
        self._basis_a, self._basis_b = self.normal(6, widest), self.normal(tallest, 6)

    def normal(self, *shape: int, std: float = STD) -> Tensor:
        return torch.randn(shape, generator=self._random) * std

    def near_one(self, *shape: int) -> Tensor:
        return 1 + self.normal(*shape, std=0.3)

    def low_rank(self, shape: ModuleShape, rank: int = 3) -> LowRank:
        return LowRank(self.normal(rank, shape.in_features), self.normal(shape.out_features, rank), 1.5)

    def kronecker(self, shape: ModuleShape) -> Kronecker:
        p, q = (4 if width % 4 == 0 else 1 for width in (shape.out_features, shape.in_features))
        return Kronecker(self.normal(p, q), self.normal(shape.out_features // p, shape.in_features // q), 2.0)

    def shared(self, shape: ModuleShape) -> SharedBasis:
        """Cuts of two matrices that all modules share."""
        a, b = self._basis_a[:, : shape.in_features], self._basis_b[: shape.out_features]
        return SharedBasis(a, b, self.near_one(6), self.near_one(shape.out_features), 2.0)

    def transform(self, shape: ModuleShape) -> InputTransform:
        """A diagonal and two stages, the second on shuffled columns."""
        width = shape.in_features
        order = torch.randperm(width, generator=self._random)
        stages = (BlockStage(self._blocks(width, 8)), BlockStage(self._blocks(width, 4), order))
        return InputTransform(self.near_one(width), stages)

    def rows(self, shape: ModuleShape) -> Rows:
        """Trained tokens of an embedding, or output features of a linear module."""
        embedding = shape.kind == "embedding"
        count, width = (shape.in_features, shape.out_features) if embedding else (shape.out_features, shape.in_features)
        ids = torch.randperm(count, generator=self._random)[: count // 3].sort().values
        return Rows(ids, self.normal(len(ids), width))

    def linears(self, *endings: str, **parts: Any) -> dict[str, LinearChange]:
        """A change of every linear module (with one of the endings, if given), each part made for its shape.

        `deltas` is a tuple of makers, `transform` and `rows` are makers; `weight`, `gain`, `bias` are wanted or not.
        """
        changes = {}
        for path, shape in self._linears().items():
            if endings and not path.endswith(endings):
                continue
            outs, ins = shape.out_features, shape.in_features
            changes[path] = LinearChange(
                deltas=tuple(make(shape) for make in parts.get("deltas", ())),
                transform=parts["transform"](shape) if "transform" in parts else None,
                weight=self.normal(outs, ins) if "weight" in parts else None,
                rows=parts["rows"](shape) if "rows" in parts else None,
                gain=self.near_one(outs) if "gain" in parts else None,
                bias=self.normal(outs) if "bias" in parts else None,
            )
        return changes

    def embeddings(self, **parts: Any) -> dict[str, EmbeddingChange]:
        """A change of every embedding; `weight`, `rows`, `delta` and `gain` are wanted or not."""
        changes = {}
        for path, shape in self.shapes.modules.items():
            if shape.kind != "embedding":
                continue
            count, dim = shape.in_features, shape.out_features
            changes[path] = EmbeddingChange(
                delta=LowRank(self.normal(3, count), self.normal(dim, 3), 1.5) if "delta" in parts else None,
                weight=self.normal(count, dim) if "weight" in parts else None,
                rows=self.rows(shape) if "rows" in parts else None,
                gain=self.near_one(dim) if "gain" in parts else None,
            )
        return changes

    def plain(self) -> dict[str, dict[str, Tensor]]:
        return {
            path: {name: self.near_one(*shape) for name, shape in parameters.items()}
            for path, parameters in self.shapes.plain.items()
        }

    def experts(self) -> dict[str, ExpertsChange]:
        return {
            path: ExpertsChange(
                self.normal(shape.experts, 2, shape.in_features), self.normal(shape.experts, shape.out_features, 2), 2.0
            )
            for path, shape in self.shapes.experts.items()
        }

    def _blocks(self, width: int, size: int) -> Tensor:
        return torch.eye(size) + self.normal(width // size, size, size)

    def _linears(self) -> dict[str, ModuleShape]:
        return {path: shape for path, shape in self.shapes.modules.items() if shape.kind == "linear"}


class ReferenceModels(Oracle):
    """An oracle that also knows canonical adapters, by digest."""

    def __init__(self, base: Path, max_model_len: int, adapters: Mapping[str, CanonicalAdapter]) -> None:
        super().__init__(base, max_model_len)
        for digest, adapter in adapters.items():
            model = load_base(base, max_model_len)
            with torch.no_grad():
                _put(model, adapter)
            self._models[Path(digest)] = model


def _put(model: Any, adapter: CanonicalAdapter) -> None:
    """Give a model the effective weights. Every changed tensor is new, so that nothing tied changes along."""
    for path, change in adapter.linears.items():
        module = model.get_submodule(path)
        transposed = isinstance(module, Conv1D)
        weight, bias = effective(change, module.weight.t() if transposed else module.weight, module.bias)
        module.weight = nn.Parameter(weight.t() if transposed else weight)
        module.bias = None if bias is None else nn.Parameter(bias)
    for path, embedding in adapter.embeddings.items():
        module = model.get_submodule(path)
        module.weight = nn.Parameter(effective(embedding, module.weight)[0])
    for path, experts in adapter.experts.items():
        parameter = model.get_parameter(path)
        parameter.copy_(effective(experts, parameter)[0])
    for path, parameters in adapter.plain.items():
        for name, value in parameters.items():
            model.get_submodule(path).get_parameter(name).copy_(value)
