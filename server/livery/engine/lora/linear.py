"""Linear modules that add each row's own adapter to the base model's output.

Modules that read the same input (q/k/v, gate/up) are one projection group: their weights are stacked, the first
member called computes for all, and the others take their columns. Rows without an adapter are never touched.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from livery.engine.kernels import Kernels, Weight
from livery.engine.lora.bank import AdapterBank, GroupLayout, Segment
from livery.engine.lora.parts import PackedLinear, add_deltas, replace_rows, scale_output, transformed
from livery.engine.structure import ModelStructure, is_linear, linear_features

Changes = Sequence[tuple[Segment, tuple[PackedLinear, ...]]]


class ProjectionGroup:
    """One matrix product and one grouped adapter product for all modules that read one input."""

    def __init__(self, index: int, weight: Weight, bias: Tensor | None, bank: AdapterBank, kernels: Kernels) -> None:
        self.weight = weight  # of all members, one below the other
        self.bias = bias
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
        changes = self._bank.linears(self._index)
        y = self._changed_base(rows, changes) if changes else self._kernels.linear(rows, self.weight, self.bias)
        if (segments := self._bank.segments(self._index)) is not None:
            self._kernels.grouped_lora(rows, y, segments)
        for segment, parts in changes:
            for part in parts:
                target = y[segment.start : segment.end, part.columns]
                add_deltas(part, rows[segment.start : segment.end], target)
                scale_output(part, target)
        return y.view(*x.shape[:-1], y.shape[-1])

    def _changed_base(self, x: Tensor, changes: Changes) -> Tensor:
        """W'·T(x) + b of every row, [rows, sum of out_features]."""
        alone = self._members == 1
        if alone:  # then one product serves all rows, whichever of them go into it transformed
            x = _transformed_rows(x, changes)

        def is_own(part: PackedLinear) -> bool:
            return part.weight is not None or (part.transform is not None and not alone)

        own = sum(s.end - s.start for s, parts in changes if sum(map(is_own, parts)) == self._members)
        if own < x.shape[0]:
            y = self._kernels.linear(x, self.weight, self.bias)
        else:  # no row of any member is computed from the base's weight and the input as it is
            y = x.new_empty((x.shape[0], self.weight.out_features))
        for segment, parts in changes:
            for part in parts:
                seen, target = x[segment.start : segment.end], y[segment.start : segment.end, part.columns]
                if part.transform is not None and not alone:
                    seen = transformed(part.transform, seen)
                bias = None if self.bias is None else self.bias[part.columns]
                if part.weight is not None:
                    target.copy_(self._kernels.linear(seen, part.weight, bias))
                elif is_own(part):
                    target.copy_(self._member_product(seen, part.columns))
                if part.rows is not None:
                    replace_rows(part.rows, seen, target, bias)
        return y

    def _member_product(self, x: Tensor, columns: slice) -> Tensor:
        """The base's product of one member alone, bias included."""
        weight, skip = self.weight.covering(columns.start, columns.stop)
        first = columns.start - skip
        bias = None if self.bias is None else self.bias[first : first + weight.out_features]
        return self._kernels.linear(x, weight, bias)[:, skip : skip + columns.stop - columns.start]


def _transformed_rows(x: Tensor, changes: Changes) -> Tensor:
    """The input of a group with one member, T(x) where an adapter transforms it."""
    if any(part.transform is not None for _, (part,) in changes):
        x = x.clone()
        for segment, (part,) in changes:
            if part.transform is not None:
                x[segment.start : segment.end] = transformed(part.transform, x[segment.start : segment.end])
    return x


class GroupedLinear(nn.Module):
    """Stands where a linear module of the base stood and answers with its columns of the group's output."""

    def __init__(self, group: ProjectionGroup, columns: slice, in_features: int, has_bias: bool) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = columns.stop - columns.start
        self._group = group
        self._columns = columns
        self._has_bias = has_bias

    @property
    def weight(self) -> Tensor:
        """The base weight, [out_features, in_features]; a copy where the kernels hold it packed."""
        weight, skip = self._group.weight.covering(self._columns.start, self._columns.stop)
        return weight.dense()[skip : skip + self.out_features]

    @property
    def bias(self) -> Tensor | None:
        """The base bias, [out_features], or None where the base has none."""
        return self._group.bias[self._columns] if self._has_bias and self._group.bias is not None else None

    @property
    def held(self) -> Weight:
        """What is in memory: the weight of the whole projection group, of which this module's is a part."""
        return self._group.weight

    def forward(self, x: Tensor) -> Tensor:
        return self._group.output(x)[..., self._columns]


def layouts_of(structure: ModelStructure) -> tuple[GroupLayout, ...]:
    """The projection groups of a model with their members' columns."""
    layouts = []
    for members in structure.groups:
        ends = [0]
        for path in members:
            ends.append(ends[-1] + structure.modules[path].out_features)
        columns = tuple(slice(start, end) for start, end in itertools.pairwise(ends))
        in_features = structure.modules[members[0]].in_features
        layouts.append(GroupLayout(members, columns, in_features, structure.head in members))
    return tuple(layouts)


def attach_linears(model: nn.Module, bank: AdapterBank, kernels: Kernels) -> Mapping[str, GroupedLinear]:
    """Put adapter-aware modules in place of the base's, whose weights they take over; none is held twice."""
    replaced: dict[str, GroupedLinear] = {}
    for index, layout in enumerate(bank.layouts):
        modules = [model.get_submodule(path) for path in layout.members]
        assert all(map(is_linear, modules))
        group = ProjectionGroup(index, kernels.pack(_stack(modules)), _stack_bias(modules), bank, kernels)
        for path, columns, module in zip(layout.members, layout.columns, modules, strict=True):
            replaced[path] = GroupedLinear(group, columns, layout.in_features, module.bias is not None)
            model.set_submodule(path, replaced[path])
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
