"""What a canonical change amounts to in dense weights, and how far it moves each module away from its base.

    norms = BaseNorms(base)                    # kept as long as the base: each norm is computed once
    effect = measure(adapter, base, norms)
    effect.modules["model.layers.0.self_attn.q_proj"].relative    # ‖W_adapted - W‖ / ‖W‖, Frobenius

Low-rank changes are measured without ever forming them; whatever needs the base's weight takes one module at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from livery_adapters.canonical import (
    BaseWeights,
    CanonicalAdapter,
    Delta,
    EmbeddingChange,
    ExpertsChange,
    InputTransform,
    Kronecker,
    LinearChange,
    LowRank,
    Rows,
    SharedBasis,
)
from livery_adapters.effect import AdapterEffect, ModuleEffect
from livery_adapters.sums import PairSums, Sums, TorchSums
from livery_adapters.tasks import HEAD

_CHUNK = 1 << 17  # values widened at a time: they stay in the cache
_BLOCK = 1 << 20  # values of an adapted weight formed at a time


def wide(tensor: Tensor, like: Tensor | None = None) -> Tensor:
    """The tensor in at least fp32, where half precision would round each product; on the device of `like`."""
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    return tensor.to(device=like.device if like is not None else None, dtype=dtype)


def as_low_rank(delta: Delta) -> LowRank | None:
    """The delta as B·A (a shared basis with its gains folded in, fp32), or None for a Kronecker product."""
    if isinstance(delta, LowRank):
        return delta
    if isinstance(delta, SharedBasis):
        a = wide(delta.rank_gain)[:, None] * wide(delta.a)
        return LowRank(a, wide(delta.out_gain)[:, None] * wide(delta.b), delta.scale)
    return None


def joined(parts: Sequence[LowRank]) -> LowRank:
    """Their sum as one pair with scale 1, rank the sum of the ranks. fp32: the scales are folded into B."""
    a = torch.cat([wide(part.a) for part in parts])
    return LowRank(a, torch.cat([wide(part.b) * part.scale for part in parts], dim=1), 1.0)


def dense(delta: Delta, like: Tensor | None = None) -> Tensor:
    """ΔW [out_features, in_features], fp32 or wider, on the device of `like`."""
    if isinstance(delta, Kronecker):
        return delta.scale * torch.kron(wide(delta.left, like), wide(delta.right, like))
    pair = as_low_rank(delta)
    assert pair is not None
    return delta.scale * (wide(pair.b, like) @ wide(pair.a, like))


def effective(
    change: LinearChange | EmbeddingChange | ExpertsChange, weight: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """The dense weight and bias that applying `change` amounts to, fp32 or wider, on the device of `weight`.

    `weight` is [out_features, in_features], [vocabulary, embedding_dim] or, for experts, [experts, out_features,
    in_features]; the result has its shape. A bias that the change doesn't replace is returned as it is.
    """
    if isinstance(change, ExpertsChange):
        return wide(weight) + change.scale * (wide(change.b, weight) @ wide(change.a, weight)), bias
    result = _with_rows(wide(change.weight if change.weight is not None else weight, weight), change.rows)
    if isinstance(change, EmbeddingChange):
        if change.delta is not None:
            result = result + dense(change.delta, weight).T
        return (result if change.gain is None else result * wide(change.gain, weight)), bias
    result = _transformed(result, change.transform)
    for delta in change.deltas:
        result = result + dense(delta, weight)
    if change.gain is not None:
        result = wide(change.gain, weight)[:, None] * result
    return result, bias if change.bias is None else wide(change.bias, weight)


def _with_rows(weight: Tensor, rows: Rows | None) -> Tensor:
    if rows is None:
        return weight
    return weight.index_copy(0, rows.ids.to(weight.device), rows.values.to(weight.device, weight.dtype))


def _transformed(weight: Tensor, transform: InputTransform | None) -> Tensor:
    """W·T as a matrix: each row of W goes backwards through the transposed stages."""
    if transform is None:
        return weight
    for stage in reversed(transform.stages):
        blocks = wide(stage.blocks, weight)
        order = None if stage.order is None else stage.order.to(weight.device)
        pieces = (weight if order is None else weight[:, order]).reshape(len(weight), *blocks.shape[:2])
        turned = torch.einsum("onj,nij->oni", pieces, blocks).flatten(1)
        weight = turned if order is None else torch.empty_like(turned).index_copy_(1, order, turned)
    return weight if transform.diagonal is None else weight * wide(transform.diagonal, weight)


def squared_norm(tensor: Tensor) -> float:
    """‖tensor‖² (Frobenius) summed in fp64, a chunk at a time: no overflow, no copy of the whole."""
    flat = tensor.T.reshape(-1) if tensor.dim() == 2 and tensor.T.is_contiguous() else tensor.reshape(-1)
    chunks = (chunk.double() for chunk in torch.split(flat, _CHUNK))
    return math.fsum(float(torch.dot(chunk, chunk)) for chunk in chunks)


def low_rank_norm(pair: LowRank | ExpertsChange) -> float:
    """‖scale · B·A‖; experts summed up. See `low_rank_norms`."""
    return low_rank_norms([pair], TorchSums())[0]


def low_rank_norms(pairs: Sequence[LowRank | ExpertsChange], sums: Sums) -> list[float]:
    """‖scale · B·A‖ of each from the Gram matrices.

    Their error is relative to ‖B‖²‖A‖²: where next to nothing is left of that, or it leaves fp32's range,
    ‖R_B·R_Aᵀ‖ of two QR factorisations in fp64 instead.
    """
    found = sums.low_rank([(pair.a, pair.b) for pair in pairs])
    return [_low_rank_norm(pair, one) for pair, one in zip(pairs, found, strict=True)]


def _low_rank_norm(pair: LowRank | ExpertsChange, found: PairSums) -> float:
    total = found.product
    if not (1e-25 < found.bound < 1e35 and total > found.bound * min(1e-3, 0.1 / pair.a.shape[-2])):
        total = _squared_by_qr(pair.a, pair.b)
    return abs(pair.scale) * math.sqrt(total)


def _squared_by_qr(a: Tensor, b: Tensor) -> float:
    right = torch.linalg.qr(a.mT.double(), mode="r").R
    left = torch.linalg.qr(b.double(), mode="r").R
    return squared_norm(left @ right.mT)


def delta_norm(deltas: Sequence[Delta]) -> float:
    """‖Σ ΔW‖ of one module; dense only where a Kronecker product meets another delta."""
    if len(deltas) == 1 and isinstance(deltas[0], Kronecker):
        only = deltas[0]
        return abs(only.scale) * math.sqrt(squared_norm(only.left) * squared_norm(only.right))
    pairs = [pair for delta in deltas if (pair := as_low_rank(delta)) is not None]
    if len(pairs) == len(deltas):
        return low_rank_norm(pairs[0] if len(pairs) == 1 else joined(pairs)) if pairs else 0.0
    return math.sqrt(squared_norm(sum((dense(delta) for delta in deltas[1:]), dense(deltas[0]))))


def rank_of(deltas: Iterable[Delta]) -> int:
    """The rank that ΔW can have: the sum of the deltas'. A Kronecker product has that of its factors, multiplied."""
    return sum(
        min(delta.left.shape) * min(delta.right.shape) if isinstance(delta, Kronecker) else int(delta.a.shape[0])
        for delta in deltas
    )


class BaseNorms:
    """‖W‖ (Frobenius) of the base's modules: computed when first asked for, then kept, one number per module.

    Not for several threads at once.
    """

    def __init__(self, base: BaseWeights) -> None:
        self._base = base
        self._modules: dict[str, float] = {}
        self._parameters: dict[str, float] = {}

    def module(self, path: str) -> float:
        """Of the weight of a linear module or an embedding."""
        if path not in self._modules:
            self._modules[path] = math.sqrt(squared_norm(self._base.weight(path)))
        return self._modules[path]

    def parameter(self, path: str) -> float:
        """Of any other parameter, by its dotted path."""
        if path not in self._parameters:
            self._parameters[path] = math.sqrt(squared_norm(self._base.parameter(path)))
        return self._parameters[path]


def measure(
    adapter: CanonicalAdapter, base: BaseWeights, norms: BaseNorms | None, sums: Sums | None = None
) -> AdapterEffect:
    """How far every module moves, relative to its own weight: without `norms`, only whether it does.

    Where the weight stays as it is and a bias doesn't, `relative` is that of the bias; of a replaced module it is that
    of all its parameters. Rows that the base lacks count as moved away from nothing. It is 1 where the base has only
    zeros, or no bias, and the adapter has something. Plain low-rank pairs, which most adapters are made of, are
    measured at once, with `sums`.
    """
    plain = {path: delta for path, linear in adapter.linears.items() if (delta := _only_pair(linear)) is not None}
    distances = dict(zip(plain, low_rank_norms(list(plain.values()), sums or TorchSums()), strict=True))
    modules: dict[str, ModuleEffect] = {}
    errors = adapter.errors
    for path, linear in adapter.linears.items():
        distance = distances[path] if path in distances else _linear_distance(linear, path, base)
        if linear.added is not None:
            distance = math.hypot(distance, math.sqrt(squared_norm(linear.added.weight)))
        moved = _relative(distance, norms.module(path) if norms else None)
        if moved == 0 and linear.bias is not None:
            moved = _bias_moved(linear.bias, base.bias(path))
        modules[path] = ModuleEffect(rank_of(linear.deltas), moved, errors.get(path, 0.0))
    for path, embedding in adapter.embeddings.items():
        distance = _embedding_distance(embedding, path, base)
        if embedding.added is not None:
            distance = math.hypot(distance, math.sqrt(squared_norm(embedding.added)))
        moved = _relative(distance, norms.module(path) if norms else None)
        rank = embedding.delta.rank if embedding.delta else 0
        modules[path] = ModuleEffect(rank, moved, errors.get(path, 0.0))
    for path, experts in adapter.experts.items():
        moved = _relative(low_rank_norm(experts), norms.parameter(path) if norms else None)
        modules[path] = ModuleEffect(int(experts.a.shape[1]), moved, errors.get(path, 0.0))
    for path, parameters in adapter.plain.items():
        distance = math.hypot(
            *(_distance(value, base.parameter(f"{path}.{name}")) for name, value in parameters.items())
        )
        size = math.hypot(*(norms.parameter(f"{path}.{name}") for name in parameters)) if norms else None
        modules[path] = ModuleEffect(0, _relative(distance, size), errors.get(path, 0.0))
    if adapter.head is not None:
        modules[HEAD] = ModuleEffect(0, 1.0 if squared_norm(adapter.head) else 0.0)  # the base has none
    return AdapterEffect(modules, adapter.nbytes)


def _only_pair(change: LinearChange) -> LowRank | None:
    """The pair that is all of what happens to the weight, if one is."""
    only = change.deltas[0] if len(change.deltas) == 1 else None
    rest = (change.weight, change.transform, change.gain, change.rows)
    return only if isinstance(only, LowRank) and all(part is None for part in rest) else None


def _linear_distance(change: LinearChange, path: str, base: BaseWeights) -> float:
    if change.weight is None and change.transform is None and change.gain is None:
        if change.rows is None:
            return delta_norm(change.deltas)
        if not change.deltas:
            return _rows_distance(change.rows, base.weight(path))
    return _moved(change, base.weight(path))


def _embedding_distance(change: EmbeddingChange, path: str, base: BaseWeights) -> float:
    if change.weight is None and change.gain is None:
        if change.rows is None:
            return low_rank_norm(change.delta) if change.delta else 0.0
        if change.delta is None:
            return _rows_distance(change.rows, base.weight(path))
    return _moved(change, base.weight(path))


def _moved(change: LinearChange | EmbeddingChange, weight: Tensor) -> float:
    """‖W_adapted - W‖ of a module, formed a block of rows at a time: no copy of the whole. Kronecker products are."""
    whole = isinstance(change, LinearChange) and any(isinstance(delta, Kronecker) for delta in change.deltas)
    step = len(weight) if whole else max(1, _BLOCK // weight.shape[1])
    squares = []
    for start in range(0, len(weight), step):
        rows = slice(start, min(start + step, len(weight)))
        part = change if whole else of_rows(change, rows)
        squares.append(squared_norm(effective(part, weight[rows])[0] - wide(weight[rows])))
    return math.sqrt(math.fsum(squares))


def of_rows(change: LinearChange | EmbeddingChange, rows: slice) -> LinearChange | EmbeddingChange:
    """What the change does to these rows of the weight. Kronecker products can't be cut."""
    weight, replaced = change.weight, change.rows
    if weight is not None:
        weight = weight[rows]
    if replaced is not None:
        inside = (replaced.ids >= rows.start) & (replaced.ids < rows.stop)
        replaced = Rows(replaced.ids[inside] - rows.start, replaced.values[inside])
    if isinstance(change, EmbeddingChange):
        delta = None if change.delta is None else replace(change.delta, a=change.delta.a[:, rows])
        return replace(change, weight=weight, rows=replaced, delta=delta)
    return replace(
        change,
        weight=weight,
        rows=replaced,
        deltas=tuple(_delta_rows(delta, rows) for delta in change.deltas),
        gain=None if change.gain is None else change.gain[rows],
    )


def _delta_rows(delta: Delta, rows: slice) -> Delta:
    if isinstance(delta, SharedBasis):
        return replace(delta, b=delta.b[rows], out_gain=delta.out_gain[rows])
    assert isinstance(delta, LowRank)
    return replace(delta, b=delta.b[rows])


def _rows_distance(rows: Rows, weight: Tensor) -> float:
    return _distance(rows.values, weight[rows.ids.to(weight.device)])


def _bias_moved(bias: Tensor, before: Tensor | None) -> float | None:
    before = torch.zeros_like(bias) if before is None else before
    return _relative(_distance(bias, before), math.sqrt(squared_norm(before)))


def _distance(after: Tensor, before: Tensor) -> float:
    return math.sqrt(squared_norm(wide(after, before) - wide(before)))


def _relative(distance: float, size: float | None) -> float | None:
    if distance == 0:
        return 0.0
    if size is None:
        return None
    return distance / size if size else 1.0
