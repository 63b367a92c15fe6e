"""Random canonical changes of every kind, and a base model that is nothing but its weights."""

from __future__ import annotations

import torch
from torch import Tensor

from livery_adapters.base_model import BaseShapes
from livery_adapters.canonical import (
    BlockStage,
    CanonicalAdapter,
    Delta,
    InputTransform,
    Kronecker,
    LinearChange,
    LowRank,
    Rows,
    SharedBasis,
)

OUT, IN = 12, 8
KINDS = ("low rank", "kronecker", "shared basis")


class Weights:
    """A base's parameters by path: a module's weight is under the module's own path."""

    def __init__(self, weights: dict[str, Tensor], biases: dict[str, Tensor] | None = None) -> None:
        self._weights, self._biases = weights, biases or {}
        self.shapes = BaseShapes({})
        self.asked: list[str] = []

    def weight(self, module: str) -> Tensor:
        self.asked.append(module)
        return self._weights[module]

    def bias(self, module: str) -> Tensor | None:
        return self._biases.get(module)

    def parameter(self, path: str) -> Tensor:
        self.asked.append(path)
        return self._weights[path]


def randn(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def a_delta(kind: str, seed: int = 0, rank: int = 3, dtype: torch.dtype = torch.float32) -> Delta:
    """A random ΔW [OUT, IN] of one kind; `rank` is that of the low-rank ones."""
    if kind == "kronecker":
        return Kronecker(randn(4, 2, seed=seed, dtype=dtype), randn(3, 4, seed=seed + 1, dtype=dtype), 0.7)
    a, b = randn(rank, IN, seed=seed, dtype=dtype), randn(OUT, rank, seed=seed + 1, dtype=dtype)
    if kind == "low rank":
        return LowRank(a, b, 1.5)
    return SharedBasis(a, b, randn(rank, seed=seed + 2, dtype=dtype), randn(OUT, seed=seed + 3, dtype=dtype), 0.5)


def dense_delta(delta: Delta) -> Tensor:
    """ΔW in fp64 by its definition, entry by entry where there is a choice."""
    if isinstance(delta, Kronecker):
        left, right = delta.left.double(), delta.right.double()
        rows, columns = left.shape[0] * right.shape[0], left.shape[1] * right.shape[1]
        entries = [
            left[i // right.shape[0], j // right.shape[1]] * right[i % right.shape[0], j % right.shape[1]]
            for i in range(rows)
            for j in range(columns)
        ]
        return delta.scale * torch.stack(entries).reshape(rows, columns)
    if isinstance(delta, LowRank):
        return delta.scale * delta.b.double() @ delta.a.double()
    gains = torch.diag(delta.out_gain.double()), torch.diag(delta.rank_gain.double())
    return delta.scale * gains[0] @ delta.b.double() @ gains[1] @ delta.a.double()


def a_transform(seed: int = 0) -> InputTransform:
    """A diagonal, then two stages of different sizes, the second one shuffled."""
    order = torch.randperm(IN, generator=torch.Generator().manual_seed(seed))
    stages = BlockStage(randn(2, 4, 4, seed=seed)), BlockStage(randn(4, 2, 2, seed=seed + 1), order)
    return InputTransform(randn(IN, seed=seed + 2), stages)


def everything(seed: int = 0) -> LinearChange:
    """A change with every part present."""
    return LinearChange(
        deltas=tuple(a_delta(kind, seed + index) for index, kind in enumerate(KINDS)),
        transform=a_transform(seed),
        weight=randn(OUT, IN, seed=seed + 7),
        rows=Rows(torch.tensor([1, 5]), randn(2, IN, seed=seed + 8)),
        gain=randn(OUT, seed=seed + 9),
        bias=randn(OUT, seed=seed + 10),
    )


def applied(change: LinearChange, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """y of the canonical form for rows x [n, IN], step by step as it is defined, in fp64."""
    x, z = x.double(), x.double()
    if change.transform is not None:
        if change.transform.diagonal is not None:
            z = z * change.transform.diagonal.double()
        for stage in change.transform.stages:
            order = torch.arange(IN) if stage.order is None else stage.order
            pieces = [
                piece @ block.double() for piece, block in zip(_cut(z[:, order], stage), stage.blocks, strict=True)
            ]
            z = torch.empty_like(z)
            z[:, order] = torch.cat(pieces, dim=1)
    weight = (weight if change.weight is None else change.weight).double().clone()
    if change.rows is not None:
        weight[change.rows.ids] = change.rows.values.double()
    y = z @ weight.T
    for delta in change.deltas:
        y = y + x @ dense_delta(delta).T
    if change.gain is not None:
        y = change.gain.double() * y
    full = bias if change.bias is None else change.bias
    return y if full is None else y + full.double()


def _cut(z: Tensor, stage: BlockStage) -> tuple[Tensor, ...]:
    return tuple(z.reshape(len(z), *stage.blocks.shape[:2]).unbind(1))


def additive(digest: str, *kinds: str, seed: int = 0, module: str = "m", rank: int = 3) -> CanonicalAdapter:
    """An adapter that only adds ΔW's of these kinds to one module."""
    deltas = tuple(a_delta(kind, seed + 10 * index, rank) for index, kind in enumerate(kinds))
    return CanonicalAdapter(digest, linears={module: LinearChange(deltas=deltas)})
