"""Linear and embedding modules that add each row's own adapter to the base model's output.

Modules that read the same input (q/k/v, gate/up) are one projection group: their weights are stacked, the first
member called computes for all, and the others take their columns. Rows without an adapter are never touched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from livery.engine.base import ModelRefused
from livery.engine.kernels import Kernels, PlainWeight, Weight
from livery.engine.lora.bank import AdapterBank, GroupLayout
from livery.engine.structure import ModelStructure, is_linear, linear_features


class ProjectionGroup:
    """One matrix product and one grouped adapter product for all modules that read one input."""

    def __init__(self, index: int, weight: Weight, bias: Tensor | None, bank: AdapterBank, kernels: Kernels) -> None:
        self.weight = weight  # of all members, one below the other
        self._bias = bias
        self._index = index
        self._bank = bank
        self._kernels = kernels
        self._members = len(bank.layouts[index].members)
        self._input: Tensor | None = None
        self._output: Tensor | None = None
        self._unread = 0

    def output(self, x: Tensor) -> Tensor:
        """All members' outputs for x [1, rows, in_features], as [1, rows, sum of out_features]."""
        if self._output is not None and self._input is x:
            y = self._output
        else:
            y = self._compute(x)
            self._input, self._output, self._unread = x, y, self._members
        self._unread -= 1
        if self._unread == 0:  # nobody else asks: hold no activation longer than needed
            self._input = self._output = None
        return y

    def _compute(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        y = self._kernels.linear(rows, self.weight, self._bias)
        if (segments := self._bank.segments(self._index)) is not None:
            self._kernels.grouped_lora(rows, y, segments)
        return y.view(*x.shape[:-1], y.shape[-1])


class GroupedLinear(nn.Module):
    """Stands where a linear module of the base stood and answers with its columns of the group's output."""

    def __init__(self, group: ProjectionGroup, offset: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self._group = group
        self._columns = slice(offset, offset + out_features)

    @property
    def weight(self) -> Tensor:
        """The base weight, [out_features, in_features]; a copy where the kernels hold it packed."""
        return self._group.weight.dense()[self._columns]

    @property
    def held(self) -> Weight:
        """What is in memory: the weight of the whole projection group, of which this module's is a part."""
        return self._group.weight

    def forward(self, x: Tensor) -> Tensor:
        return self._group.output(x)[..., self._columns]


class AdapterEmbedding(nn.Module):
    """An embedding whose rows under an adapter get that adapter's low-rank change."""

    def __init__(self, base: nn.Embedding, weight: Weight, path: str, bank: AdapterBank) -> None:
        super().__init__()
        self.held = weight
        self._path = path
        self._bank = bank
        # Embeddings that scale their output (Gemma) scale what adapters add to it as well.
        self._scale: Tensor | None = getattr(base, "embed_scale", None)
        self.padding_idx = base.padding_idx

    @property
    def weight(self) -> Tensor:
        """The base weight, [vocabulary, dim]; a copy where a tied head holds it packed."""
        return self.held.dense()

    def forward(self, ids: Tensor) -> Tensor:
        """ids [1, rows] -> [1, rows, dim]."""
        y = self.held.rows(ids[0])
        for segment, part in self._bank.embeddings(self._path):
            delta = (part.a[ids[0, segment.start : segment.end]] @ part.b) * part.scale
            y[segment.start : segment.end] += delta.to(y.dtype)
        if self._scale is not None:
            y = y * self._scale.to(y.dtype)
        return y[None]


def layouts_of(structure: ModelStructure) -> tuple[GroupLayout, ...]:
    """The projection groups of a model with their members' columns."""
    layouts = []
    for members in structure.groups:
        outs = [structure.modules[path].out_features for path in members]
        offsets = tuple(sum(outs[:i]) for i in range(len(outs)))
        layouts.append(
            GroupLayout(members, offsets, structure.modules[members[0]].in_features, structure.head in members)
        )
    return tuple(layouts)


def attach(
    model: nn.Module, structure: ModelStructure, bank: AdapterBank, kernels: Kernels
) -> Mapping[str, GroupedLinear]:
    """Put adapter-aware modules in place of the base's, whose weights they take over; none is held twice.

    Raises ModelRefused when an embedding does more than look up rows and scale them.
    """
    replaced: dict[str, GroupedLinear] = {}
    packed: dict[int, Weight] = {}  # by address of the original, for weights that modules share
    for index, layout in enumerate(bank.layouts):
        modules = [model.get_submodule(path) for path in layout.members]
        assert all(map(is_linear, modules))
        stacked = _stack(modules)
        weight = packed[stacked.data_ptr()] = kernels.pack(stacked)
        group = ProjectionGroup(index, weight, _stack_bias(modules), bank, kernels)
        for path, offset, module in zip(layout.members, layout.offsets, modules, strict=True):
            replaced[path] = GroupedLinear(group, offset, *linear_features(module))
            _replace(model, path, replaced[path])
    for path, shape in structure.modules.items():
        if shape.kind == "embedding":
            embedding = model.get_submodule(path)
            assert isinstance(embedding, nn.Embedding)
            if type(embedding) is not nn.Embedding and not hasattr(embedding, "embed_scale"):
                raise ModelRefused(f"{path} is a {type(embedding).__name__}, an embedding this engine doesn't know")
            table = packed.get(embedding.weight.data_ptr()) or PlainWeight(embedding.weight.detach())
            _replace(model, path, AdapterEmbedding(embedding, table, path, bank))
    return replaced


def _natural(module: nn.Module) -> Tensor:
    """A linear module's weight as [out_features, in_features], contiguous."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return (weight.detach().t() if isinstance(module, Conv1D) else weight.detach()).contiguous()


def _stack(modules: Sequence[nn.Module]) -> Tensor:
    if len(modules) == 1:  # stays the very tensor: it may be tied to the embedding
        return _natural(modules[0])
    return torch.cat([_natural(module) for module in modules])


def _stack_bias(modules: Sequence[nn.Module]) -> Tensor | None:
    biases = [module.bias for module in modules]
    if all(bias is None for bias in biases):
        return None
    parts = []
    for module, bias in zip(modules, biases, strict=True):
        weight = module.weight
        assert isinstance(weight, Tensor)
        missing = torch.zeros(linear_features(module)[1], dtype=weight.dtype, device=weight.device)
        parts.append(bias.detach() if isinstance(bias, Tensor) else missing)
    return torch.cat(parts)


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
