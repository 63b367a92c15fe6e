"""A canonical adapter put into a plain copy of its base, weight by weight, as canonical.py defines it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from livery_adapters.base_model import BaseShapes
from livery_adapters.canonical import (
    CanonicalAdapter,
    Delta,
    EmbeddingChange,
    InputTransform,
    Kronecker,
    LinearChange,
    LowRank,
    SharedBasis,
)


class ModelWeights:
    """`BaseWeights` of a model held in memory."""

    def __init__(self, model: Any, shapes: BaseShapes) -> None:
        self._modules = dict(model.named_modules())
        self._parameters = dict(model.named_parameters())
        self.shapes = shapes

    def weight(self, module: str) -> Tensor:
        weight: Tensor = self._modules[module].weight.detach()
        return weight.t() if isinstance(self._modules[module], Conv1D) else weight

    def bias(self, module: str) -> Tensor | None:
        bias: Tensor | None = self._modules[module].bias
        return None if bias is None else bias.detach()

    def parameter(self, path: str) -> Tensor:
        parameter: Tensor = self._parameters[path].detach()
        return parameter


def delta_weight(delta: Delta) -> Tensor:
    """The ΔW [out, in] of one additive part."""
    match delta:
        case LowRank():
            dense = delta.b.float() @ delta.a.float()
        case Kronecker():
            dense = torch.kron(delta.left.float(), delta.right.float().contiguous())
        case SharedBasis():
            dense = (delta.out_gain.float()[:, None] * delta.b) @ (delta.rank_gain.float()[:, None] * delta.a)
    return delta.scale * dense


def transformed(x: Tensor, transform: InputTransform) -> Tensor:
    """T(x), stage by stage."""
    if transform.diagonal is not None:
        x = x * transform.diagonal
    for stage in transform.stages:
        count, size, _ = stage.blocks.shape
        moved = x if stage.order is None else x[..., stage.order]
        pieces = moved.unflatten(-1, (count, size))
        moved = torch.einsum("...nk,nkc->...nc", pieces, stage.blocks).flatten(-2)
        x = moved if stage.order is None else torch.empty_like(moved).index_copy(-1, stage.order, moved)
    return x


def effective(change: LinearChange, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The weight [out, in] and bias with which a plain linear module does the same as the change."""
    changed = weight if change.weight is None else change.weight.float()
    if change.rows is not None:
        changed = changed.index_copy(0, change.rows.ids, change.rows.values.to(changed.dtype))
    if change.transform is not None:  # T is linear: its matrix is what it makes of the unit vectors
        changed = changed @ transformed(torch.eye(changed.shape[1]), change.transform).T
    for delta in change.deltas:
        changed = changed + delta_weight(delta)
    if change.gain is not None:
        changed = change.gain[:, None] * changed
    return changed, bias if change.bias is None else change.bias


def effective_embedding(change: EmbeddingChange, weight: Tensor) -> Tensor:
    """The weight [vocabulary, dim] with which a plain embedding does the same as the change."""
    changed = weight if change.weight is None else change.weight.float()
    if change.rows is not None:
        changed = changed.index_copy(0, change.rows.ids, change.rows.values.to(changed.dtype))
    if change.delta is not None:
        changed = changed + delta_weight(change.delta).T
    return changed if change.gain is None else changed * change.gain


def applied(adapter: CanonicalAdapter, model: Any) -> Any:
    """A copy of the model that does what the adapter asks for. Tied weights come apart where only one changes."""
    changed = copy.deepcopy(model)
    modules = dict(changed.named_modules())
    new: dict[tuple[Any, str], Tensor] = {}
    for path, linear in adapter.linears.items():
        module = modules[path]
        flip = isinstance(module, Conv1D)
        weight, bias = effective(linear, module.weight.T if flip else module.weight, module.bias)
        new[module, "weight"] = weight.T if flip else weight
        if bias is not None:
            new[module, "bias"] = bias
    for path, embedding in adapter.embeddings.items():
        new[modules[path], "weight"] = effective_embedding(embedding, modules[path].weight)
    for path, parameters in adapter.plain.items():
        new.update({(modules[path], name): value for name, value in parameters.items()})
    for (module, name), value in new.items():
        setattr(module, name, nn.Parameter(value.detach().float().clone().contiguous()))
    return changed
