"""Linear modules that add each row's own adapter to the base model's output.

Modules that read the same input (q/k/v, gate/up) are one projection group: their weights are stacked, the first
member called computes for all, and the others take their columns. Rows without an adapter are never touched.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from livery.engine.kernels import Kernels, Weight
from livery.engine.lora.bank import AdapterBank, GroupLayout, Segment
from livery.engine.lora.holding import WeightHolder
from livery.engine.lora.parts import PackedGroup, PackedLinear, add_deltas, by_rows, replace_rows, transformed
from livery.engine.structure import ModelStructure, is_linear, linear_features
from livery_adapters.canonical import Rows

Changes = Sequence[tuple[Segment, PackedGroup]]

FEW_ROWS = 64  # up to here gains of several adapters are laid side by side and applied at once


class ProjectionGroup:
    """One matrix product and one grouped adapter product for all modules that read one input."""

    def __init__(self, index: int, weight: Weight, bias: Tensor | None, bank: AdapterBank, kernels: Kernels) -> None:
        self.weight = weight  # of all members, one below the other
        self.bias = bias
        self.index = index
        self._bank = bank
        self._kernels = kernels
        self._columns = bank.layouts[index].columns
        self._input: Tensor | None = None
        self._output: Tensor | None = None
        self._unread = 0

    def output(self, x: Tensor) -> Tensor:
        """All members' outputs for x [1, rows, in_features], as [1, rows, sum of out_features]."""
        if self._output is not None and self._input is x:
            y = self._output
        else:
            y = self.product(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)
            self._input, self._output, self._unread = x, y, len(self._columns)
        self._unread -= 1
        if self._unread == 0:  # nobody else asks: hold no activation longer than needed
            self._input = self._output = None
        return y

    def product(self, rows: Tensor) -> Tensor:
        """All members' outputs for rows [rows, in_features], adapters applied: [rows, sum of out_features].

        Wider where adapters have outputs of their own.
        """
        changes = self._bank.linears(self.index)
        y = self._changed_base(rows, changes) if changes else self._kernels.linear(rows, self.weight, self.bias)
        if (segments := self._bank.segments(self.index)) is not None:
            self._kernels.grouped_lora(rows, y, segments)
        for segment, group in changes:
            for part in group.members:
                seen, target = rows[segment.start : segment.end], y[segment.start : segment.end, part.columns]
                add_deltas(part, seen, target, self._bank.one_by_one)
        if changes:
            _scale(y, [(segment, group.gain) for segment, group in changes], Tensor.mul_)
            _scale(y, [(segment, group.shift) for segment, group in changes], Tensor.add_)
            y = self._widened(rows, y, changes)
        return y

    def _widened(self, x: Tensor, y: Tensor, changes: Changes) -> Tensor:
        """y with the outputs behind it that adapters have of their own, of x; zeros in other rows.

        As wide as the step's widest adapter asks for; itself where none asks for any.
        """
        own = [(segment, group.added) for segment, group in changes if group.added is not None]
        if not own:
            return y
        first = y.shape[1]
        wide = y.new_zeros((y.shape[0], first + max(added.weight.out_features for _, added in own)))
        wide[:, :first] = y
        for segment, added in own:
            rows, columns = slice(segment.start, segment.end), slice(first, first + added.weight.out_features)
            wide[rows, columns] = self._kernels.linear(x[rows], added.weight, added.bias)
        return wide

    def _changed_base(self, x: Tensor, changes: Changes) -> Tensor:
        """W'·T(x) + b of every row, [rows, sum of out_features]."""
        alone = len(self._columns) == 1
        if alone:  # then one product serves all rows, whichever of them go into it transformed
            x = _transformed_rows(x, changes, self._bank.one_by_one)

        def is_own(part: PackedLinear) -> bool:
            return part.weight is not None or (part.transform is not None and not alone)

        own = sum(s.end - s.start for s, group in changes if sum(map(is_own, group.members)) == len(self._columns))
        if own < x.shape[0]:
            y = self._kernels.linear(x, self.weight, self.bias)
        else:  # no row of any member is computed from the base's weight and the input as it is
            y = x.new_empty((x.shape[0], self.weight.out_features))
        for columns in self._columns:
            self._change_member(x, y[:, columns], columns, changes, transform=not alone)
        return y

    def _change_member(self, x: Tensor, y: Tensor, columns: slice, changes: Changes, transform: bool) -> None:
        """Compute one member's rows anew whose input or weight is another: y [rows, out_features], in place."""
        bias = None if self.bias is None else self.bias[columns]
        moved: list[tuple[Tensor, Tensor]] = []  # rows to multiply by the base's weight, and where the result goes
        replaced: list[tuple[Rows, Tensor, Tensor]] = []
        for segment, group in changes:
            for part in group.members:
                if part.columns != columns:
                    continue
                seen, target = x[segment.start : segment.end], y[segment.start : segment.end]
                if transform and part.transform is not None:
                    seen = by_rows(functools.partial(transformed, part.transform), seen, self._bank.one_by_one)
                if part.weight is not None:
                    target.copy_(self._kernels.linear(seen, part.weight, bias))
                elif transform and part.transform is not None:
                    moved.append((seen, target))
                if part.rows is not None:
                    replaced.append((part.rows, seen, target))
        if moved:  # of all adapters in one product, which reads the weight once
            product = self._member_product(torch.cat([seen for seen, _ in moved]), columns)
            for (_, target), piece in zip(moved, torch.split(product, [len(seen) for seen, _ in moved]), strict=True):
                target.copy_(piece)
        for rows, seen, target in replaced:
            replace_rows(rows, seen, target, bias, self._bank.one_by_one)

    def _member_product(self, x: Tensor, columns: slice) -> Tensor:
        """The base's product of one member alone, bias included."""
        weight, skip = self.weight.covering(columns.start, columns.stop)
        first = columns.start - skip
        bias = None if self.bias is None else self.bias[first : first + weight.out_features]
        return self._kernels.linear(x, weight, bias)[:, skip : skip + columns.stop - columns.start]


def _transformed_rows(x: Tensor, changes: Changes, one_by_one: bool) -> Tensor:
    """The input of a group with one member, T(x) where an adapter transforms it."""
    found = [
        (slice(segment.start, segment.end), part.transform)
        for segment, group in changes
        for part in group.members
        if part.transform is not None
    ]
    if found:
        x = x.clone()
        for rows, transform in found:
            x[rows] = by_rows(functools.partial(transformed, transform), x[rows], one_by_one)
    return x


def _scale(
    y: Tensor, vectors: Sequence[tuple[Segment, Tensor | None]], operate: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """Multiply or add each segment's vector, in place, neighbouring segments of few rows in one operation."""
    run: list[tuple[Segment, Tensor]] = []
    for segment, vector in vectors:
        if vector is None:
            continue
        if run and (segment.start != run[-1][0].end or segment.end - run[0][0].start > FEW_ROWS):
            _scale_run(y, run, operate)
            run = []
        run.append((segment, vector))
    if run:
        _scale_run(y, run, operate)


def _scale_run(y: Tensor, run: Sequence[tuple[Segment, Tensor]], operate: Callable[[Tensor, Tensor], Tensor]) -> None:
    start, end = run[0][0].start, run[-1][0].end
    if len(run) == 1:
        operate(y[start:end], run[0][1])
        return
    rows = [vector for segment, vector in run for _ in range(segment.start, segment.end)]
    operate(y[start:end], torch.stack(rows))


class GroupedLinear(nn.Module):
    """Stands where a linear module of the base stood and answers with its columns of the group's output."""

    def __init__(self, group: ProjectionGroup, columns: slice, in_features: int, has_bias: bool) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = columns.stop - columns.start
        self.group = group
        self._columns = columns
        self._is_alone = columns == slice(0, group.weight.out_features)
        self._has_bias = has_bias

    @property
    def weight(self) -> Tensor:
        """The base weight, [out_features, in_features]; a copy where the kernels hold it packed."""
        weight, skip = self.group.weight.covering(self._columns.start, self._columns.stop)
        return weight.dense()[skip : skip + self.out_features]

    @property
    def bias(self) -> Tensor | None:
        """The base bias, [out_features], or None where the base has none."""
        return self.group.bias[self._columns] if self._has_bias and self.group.bias is not None else None

    @property
    def held(self) -> Weight:
        """What is in memory: the weight of the whole projection group, of which this module's is a part."""
        return self.group.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.group.output(x)
        return y if self._is_alone else y[..., self._columns]  # alone it may be wider than the base's


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


def grouped_modules(model: nn.Module, layouts: Sequence[GroupLayout]) -> list[list[nn.Module]]:
    """The linear modules of each projection group."""
    return [[model.get_submodule(path) for path in layout.members] for layout in layouts]


def attach_linears(
    model: nn.Module, bank: AdapterBank, kernels: Kernels, holder: WeightHolder
) -> Mapping[str, GroupedLinear]:
    """Put adapter-aware modules in place of the base's, whose weights they take over; none is held twice."""
    replaced: dict[str, GroupedLinear] = {}
    for index, (layout, modules) in enumerate(zip(bank.layouts, grouped_modules(model, bank.layouts), strict=True)):
        assert all(map(is_linear, modules))
        group = ProjectionGroup(index, holder.hold(index, modules), _stack_bias(modules), bank, kernels)
        for path, columns, module in zip(layout.members, layout.columns, modules, strict=True):
            replaced[path] = GroupedLinear(group, columns, layout.in_features, module.bias is not None)
            model.set_submodule(path, replaced[path])
    return replaced


def _stack_bias(modules: Sequence[nn.Module]) -> Tensor | None:
    biases = [module.bias for module in modules]
    if all(bias is None for bias in biases):
        return None
    like = next(bias for bias in biases if isinstance(bias, Tensor))
    return torch.cat(
        [
            bias.detach() if isinstance(bias, Tensor) else like.new_zeros(linear_features(module)[1])
            for module, bias in zip(modules, biases, strict=True)
        ]
    )
