"""What an adapter does to one linear module beside its low-rank deltas: owned by the device, and applied to rows.

y = gain ⊙ (W'·T(x) + Σ ΔW·x) + b' per segment of rows. The base's product and the low-rank deltas are computed for
many adapters at once (linear.py); the functions here see the rows of one adapter only, so that nothing of it can
reach others. Everything here is plain torch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from livery.engine.kernels import Kernels, Weight
from livery_adapters.canonical import AddedOutputs, InputTransform, Kronecker, LinearChange, LowRank, Rows, SharedBasis


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """What one module computes otherwise, beside low-rank deltas. `columns` are its own in its group's output."""

    columns: slice
    transform: InputTransform | None = None
    weight: Weight | None = None
    rows: Rows | None = None
    deltas: tuple[Kronecker | SharedBasis, ...] = ()


@dataclass(frozen=True, slots=True)
class PackedOutputs:
    """Output features behind those of a group: of a head, an adapter's own tokens."""

    weight: Weight  # [added, in_features]
    bias: Tensor | None = None  # [added]


@dataclass(frozen=True, slots=True)
class PackedGroup:
    """One adapter's share in a projection group, without the low-rank deltas: y = gain ⊙ y + shift in the end.

    The shift is b' - gain ⊙ b, as y has the base's bias b in it already. Both are as wide as the group's output,
    one and zero for members without them.
    """

    members: tuple[PackedLinear, ...]
    gain: Tensor | None = None
    shift: Tensor | None = None
    added: PackedOutputs | None = None


class Packer:
    """Copies tensors of one adapter to the device, each memory once however many modules share it.

    Nothing that it returns keeps the files it was read from alive.
    """

    def __init__(self, device: torch.device, compute: torch.dtype, kernels: Kernels) -> None:
        self.device = device
        self.compute = compute
        self._kernels = kernels
        # By identity of the source, which is kept beside its copy so that no other takes its address meanwhile.
        self._tensors: dict[tuple[object, ...], tuple[Tensor, Tensor]] = {}
        self._weights: dict[tuple[object, ...], Weight] = {}

    def tensor(self, source: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """A contiguous copy in the dtype computed in, or the given one; indices stay what they are.

        Of one thing that is repeated along the first axis (OFT's shared block) the one thing is copied.
        """
        if source.dim() > 1 and source.shape[0] > 1 and source.stride(0) == 0:
            return self.tensor(source[:1], dtype).expand(source.shape)
        target = dtype or (self.compute if source.is_floating_point() else source.dtype)
        key = (*_identity(source), target)
        if key not in self._tensors:
            copy = torch.empty(source.shape, dtype=target, device=self.device).copy_(source)
            self._tensors[key] = source, copy
        return self._tensors[key][1]

    def weight(self, source: Tensor) -> Weight:
        """A weight [out_features, in_features] as the kernels multiply it."""
        key = _identity(source)
        if key not in self._weights:
            self._weights[key] = self._kernels.pack(self.tensor(source))
            del self._tensors[(*key, self.compute)]  # the weight holds it, if it isn't laid out anew
        return self._weights[key]

    def part(self, part: Any) -> Any:  # noqa: ANN401 (any dataclass of tensors comes back as its own kind)
        """The same dataclass with every tensor in it copied."""
        if isinstance(part, Tensor):
            return self.tensor(part)
        if isinstance(part, tuple):
            return tuple(map(self.part, part))
        if is_dataclass(part) and not isinstance(part, type):
            return replace(part, **{item.name: self.part(getattr(part, item.name)) for item in fields(part)})
        return part

    def group(
        self, changes: Sequence[LinearChange | None], columns: Sequence[slice], biases: Sequence[Tensor | None]
    ) -> PackedGroup | None:
        """The parts of a projection group's members other than low-rank deltas, or None without any.

        `biases` are the base's, [out_features] each.
        """
        members = tuple(
            member
            for change, own in zip(changes, columns, strict=True)
            if change is not None and (member := self._linear(change, own)) is not None
        )
        added = next((self._outputs(change.added) for change in changes if change and change.added), None)
        if all(change is None or (change.gain is None and change.bias is None) for change in changes):
            return PackedGroup(members, added=added) if members or added else None
        gain, shift = torch.ones(columns[-1].stop), torch.zeros(columns[-1].stop)
        for change, own, bias in zip(changes, columns, biases, strict=True):
            if change is not None:
                gain[own], shift[own] = _affine(change, bias, gain[own])
        return PackedGroup(
            members,
            gain=self.tensor(gain) if any(change and change.gain is not None for change in changes) else None,
            shift=self.tensor(shift) if bool(shift.any()) else None,
            added=added,
        )

    def _outputs(self, added: AddedOutputs) -> PackedOutputs:
        return PackedOutputs(self.weight(added.weight), None if added.bias is None else self.tensor(added.bias))

    def _linear(self, change: LinearChange, columns: slice) -> PackedLinear | None:
        deltas = [delta for delta in change.deltas if not isinstance(delta, LowRank)]
        if not deltas and all(part is None for part in (change.transform, change.weight, change.rows)):
            return None
        return PackedLinear(
            columns,
            transform=self.part(change.transform),
            weight=None if change.weight is None else self.weight(change.weight),
            rows=self.part(change.rows),
            deltas=tuple(map(self.part, deltas)),
        )

    def share_bases(self, bases: list[SharedBasis]) -> None:
        """Copy what several modules' A and B are views of, once, so that `part` finds views of the copy.

        Views of one memory that begin at the same element are taken for one matrix and cuts of it.
        """
        views: dict[tuple[object, ...], list[Tensor]] = {}
        for view in (tensor for basis in bases for tensor in (basis.a, basis.b)):
            key = (view.untyped_storage().data_ptr(), view.storage_offset(), view.dtype)
            views.setdefault(key, []).append(view)
        for cuts in views.values():
            span = max(sum((n - 1) * step for n, step in zip(c.shape, c.stride(), strict=True)) + 1 for c in cuts)
            memory = self.tensor(cuts[0].as_strided((span,), (1,), cuts[0].storage_offset()))
            for cut in cuts:
                self._tensors[(*_identity(cut), self.compute)] = cut, memory.as_strided(cut.shape, cut.stride())


def low_rank(change: LinearChange | None) -> LowRank | None:
    """All low-rank deltas of a module as one: stacked by rank where there are several."""
    parts = [part for part in change.deltas if isinstance(part, LowRank)] if change else []
    if len(parts) < 2:
        return parts[0] if parts else None
    scale = parts[0].scale
    if all(part.scale == scale for part in parts):
        return LowRank(torch.cat([part.a for part in parts]), torch.cat([part.b for part in parts], dim=1), scale)
    a = torch.cat([part.a.float() for part in parts])
    return LowRank(a, torch.cat([part.b.float() * part.scale for part in parts], dim=1), 1.0)


def by_rows(compute: Callable[[Tensor], Tensor], x: Tensor, one_by_one: bool) -> Tensor:
    """compute(x) for x [rows, ...]; one row at a time where the number of rows must not show in the bits.

    torch chooses the order of its sums by shape and by how memory is aligned, so each row is a tensor of its own.
    """
    if not one_by_one or len(x) < 2:
        return compute(x.clone() if one_by_one else x)
    return torch.cat([compute(x[row : row + 1].clone()) for row in range(len(x))])


def transformed(transform: InputTransform, x: Tensor) -> Tensor:
    """T(x) for x [rows, in_features]: the diagonal, then each stage's blocks on the columns it names."""
    if transform.diagonal is not None:
        x = x * transform.diagonal
    for stage in transform.stages:
        count, size, _ = stage.blocks.shape
        pieces = x if stage.order is None else x[:, stage.order]
        pieces = torch.bmm(pieces.reshape(-1, count, size).transpose(0, 1), stage.blocks)
        result = pieces.transpose(0, 1).reshape(x.shape)
        x = result if stage.order is None else torch.empty_like(result).index_copy_(1, stage.order, result)
    return x


def replace_rows(rows: Rows, x: Tensor, y: Tensor, bias: Tensor | None, one_by_one: bool) -> None:
    """Compute the replaced output features of y [rows, out_features] anew from x, which is transformed already."""
    values = by_rows(lambda x: x @ rows.values.t(), x, one_by_one)
    y.index_copy_(1, rows.ids, values if bias is None else values + bias[rows.ids])


def add_deltas(change: PackedLinear, x: Tensor, y: Tensor, one_by_one: bool) -> None:
    """Add the Kronecker and shared-basis products of x [rows, in_features] to y [rows, out_features]."""
    for delta in change.deltas:
        y += by_rows(functools.partial(_product, delta), x, one_by_one)


def _product(delta: Kronecker | SharedBasis, x: Tensor) -> Tensor:
    return _kronecker(delta, x) if isinstance(delta, Kronecker) else _shared_basis(delta, x)


def _kronecker(delta: Kronecker, x: Tensor) -> Tensor:
    """scale · (left ⊗ right) x without the full matrix: x as [rows, q, v] meets right on v and left on q."""
    (p, q), (u, v) = delta.left.shape, delta.right.shape
    pieces = x.reshape(-1, q, v)
    if q * v * u + q * u * p <= p * q * v + p * v * u:  # whichever order multiplies less
        pieces = _on_middle(delta.left, pieces @ delta.right.t())
    else:
        pieces = _on_middle(delta.left, pieces) @ delta.right.t()
    return pieces.reshape(-1, p * u) * delta.scale


def _on_middle(factor: Tensor, x: Tensor) -> Tensor:
    """factor [p, q] on the middle axis of x [rows, q, n], as one plain product: small ones are all overhead."""
    return (x.transpose(1, 2) @ factor.t()).transpose(1, 2)


def _shared_basis(delta: SharedBasis, x: Tensor) -> Tensor:
    return ((x @ delta.a.t() * delta.rank_gain) @ delta.b.t()) * (delta.out_gain * delta.scale)


def _affine(change: LinearChange, base_bias: Tensor | None, ones: Tensor) -> tuple[Tensor, Tensor]:
    """(gain, b' - gain ⊙ b) in fp32, [out_features] each."""
    gain = ones if change.gain is None else change.gain.float().cpu()
    base = torch.zeros_like(ones) if base_bias is None else base_bias.float().cpu()
    return gain, (base if change.bias is None else change.bias.float().cpu()) - gain * base


def _identity(tensor: Tensor) -> tuple[object, ...]:
    """The same for two tensors only if they are the same elements of the same memory."""
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


BiasOf = Callable[[str], Tensor | None]  # a linear module's path -> the base's bias
