"""Routed experts held as one 3-D parameter each, with low-rank deltas per expert for the rows under an adapter.

Modules that go through transformers' experts interface all compute the same thing, described by a few attributes that
the interface puts on them; that computation is written out here for rows under an adapter. All other rows take
the base's own way, in one call as before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from livery.engine.lora.bank import AdapterBank
from livery.engine.structure import expert_projections
from livery_adapters.base_model import ExpertsShape
from livery_adapters.canonical import ExpertsChange


def experts_forward(
    module: Any,  # noqa: ANN401 (transformers has no class for what its interface decorates)
    x: Tensor,
    chosen: Tensor,
    shares: Tensor,
    up: ExpertsChange | None,
    down: ExpertsChange | None,
) -> Tensor:
    """The routed sum of experts with an adapter's deltas: x [rows, hidden], chosen and shares [rows, k] -> like x."""
    first, second = expert_projections(module)
    rows, k = chosen.shape
    results = x.new_empty((rows * k, x.shape[1]))
    experts = chosen.reshape(-1)
    for expert in torch.unique(experts).tolist():
        pairs = (experts == expert).nonzero()[:, 0]
        hidden = _projected(module, first, expert, x[pairs // k], up)
        hidden = module._apply_gate(hidden) if module.has_gate else module.act_fn(hidden)
        hidden = _projected(module, second, expert, hidden, down)
        results[pairs] = module.post_expert_norm(hidden) if module.has_post_expert_norm else hidden
    weighted = results * shares.reshape(-1, 1)
    return weighted.view(rows, k, -1).sum(dim=1).to(x.dtype)


def _projected(
    module: Any,  # noqa: ANN401
    name: str,
    expert: int,
    x: Tensor,
    change: ExpertsChange | None,
) -> Tensor:
    weight = getattr(module, name)[expert]
    bias = getattr(module, f"{name}_bias")[expert] if module.has_bias else None
    y: Tensor = functional.linear(x, weight.t() if module.is_transposed else weight, bias)
    if change is not None:
        wider = torch.promote_types(x.dtype, change.a.dtype)
        a, b = change.a[expert].to(wider), change.b[expert].to(wider)
        y.add_(x.to(wider) @ a.t() @ b.t(), alpha=change.scale)
    return y


def proven(model: nn.Module, shapes: Mapping[str, ExpertsShape]) -> dict[str, ExpertsShape]:
    """Those parameters whose modules compute what `experts_forward` computes, by trying one of each kind of module."""
    verdicts: dict[type[nn.Module], bool] = {}
    found = {}
    for path, shape in shapes.items():
        module = model.get_submodule(path.rpartition(".")[0])
        if type(module) not in verdicts:
            verdicts[type(module)] = _agrees(module, shape)
        if verdicts[type(module)]:
            found[path] = shape
    return found


def _agrees(module: nn.Module, shape: ExpertsShape) -> bool:
    like: Tensor = getattr(module, expert_projections(module)[0])
    generator = torch.Generator().manual_seed(0)
    k = min(2, shape.experts)
    x = torch.randn((5, shape.in_features), generator=generator).to(like)
    scores = torch.rand((5, shape.experts), generator=generator).to(like).topk(k)
    try:
        with torch.inference_mode():
            expected: Tensor = module(x, scores.indices, scores.values)
            found = experts_forward(module, x, scores.indices, scores.values, None, None)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError):  # other parts than described
        return False
    tolerance = 1e-3 if like.dtype is torch.float32 else 6e-2
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


class AdapterExperts:
    """The forward of one experts module."""

    def __init__(self, base: nn.Module, path: str, bank: AdapterBank) -> None:
        self._base = base
        self._base_forward = base.forward
        self._paths = [f"{path}.{name}" for name in expert_projections(base)]
        self._bank = bank

    def forward(self, x: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
        """x [rows, hidden], the experts chosen and their shares [rows, k] -> like x."""
        if not self._bank.has_experts or not (changes := self._bank.experts(self._paths)):
            unchanged: Tensor = self._base_forward(x, chosen, shares)
            return unchanged
        y = torch.empty_like(x)
        others = torch.ones(x.shape[0], dtype=torch.bool)
        for segment, (up, down) in changes:
            rows = slice(segment.start, segment.end)
            others[rows] = False
            y[rows] = experts_forward(self._base, x[rows], chosen[rows], shares[rows], up, down)
        if others.any():
            left = others.nonzero()[:, 0].to(x.device)
            y[left] = self._base_forward(x[left], chosen[left], shares[left])
        return y


def attach_experts(model: nn.Module, parameters: Iterable[str], bank: AdapterBank) -> None:
    """Let the modules that own these parameters apply adapters. They stay the modules that they are."""
    for path in dict.fromkeys(parameter.rpartition(".")[0] for parameter in parameters):
        module = model.get_submodule(path)
        module.forward = AdapterExperts(module, path, bank).forward
