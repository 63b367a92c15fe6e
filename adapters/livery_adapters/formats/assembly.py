"""From the tensors of a file to a whole canonical adapter: each module by its type, then what all types share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from livery_adapters.approximate import factorise
from livery_adapters.base_model import BaseShapes
from livery_adapters.canonical import (
    BaseWeights,
    CanonicalAdapter,
    EmbeddingChange,
    ExpertsChange,
    LinearChange,
)
from livery_adapters.formats.added import cut_embedding, cut_linear
from livery_adapters.formats.base import Change, Conversion, Tensors, trained_rows
from livery_adapters.grown import Vocabulary, added_rows, grown
from livery_adapters.layout import AdapterManifest, FullTensor, TargetTensors
from livery_adapters.refusal import AdapterRefused


class ReplacedBase:
    """The base's weights as the adapter's complete parameters leave them: what PEFT's layers then work on.

    `own` are parameters of one module alone, `written` those that overwrite the base's, also under the name of a
    module that is tied to it. What merely repeats the base's is in neither. Of a vocabulary grown by `added` rows these
    are the base's rows alone; `behind` are those that follow, by path.
    """

    def __init__(self, full: tuple[FullTensor, ...], tensors: Tensors, base: BaseWeights, added: int = 0) -> None:
        self._base = base
        self._shapes = grown(base.shapes, added)
        self._behind_own: dict[str, Tensor] = {}
        self._behind_written: dict[str, Tensor] = {}
        self.own: dict[str, Tensor] = {}
        self.written: dict[str, Tensor] = {}
        self._brought = frozenset(item.path for item in full if not item.own)
        for item in full:
            value, there = self._natural(item, tensors[item.entry.name]), self._of_base(item)
            if there is not None and len(value) > len(there):
                (self._behind_own if item.own else self._behind_written)[item.path] = value[len(there) :]
                value = value[: len(there)]
            if not _repeats(value, there):
                (self.own if item.own else self.written)[item.path] = value
        for head, embedding in base.shapes.tied.items():
            for written in (self.written, self._behind_written):
                _tie(written, f"{head}.weight", f"{embedding}.weight")

    @property
    def shapes(self) -> BaseShapes:
        return self._shapes

    @property
    def brought(self) -> frozenset[str]:
        return self._brought

    def weight(self, module: str) -> Tensor:
        found = self.replaced(f"{module}.weight")
        weight = self._base.weight(module) if found is None else found
        return self._whole(module, weight, self.behind(f"{module}.weight"))

    def bias(self, module: str) -> Tensor | None:
        found = self.replaced(f"{module}.bias")
        bias = self._base.bias(module) if found is None else found
        return None if bias is None else self._whole(module, bias, self.behind(f"{module}.bias"))

    def parameter(self, path: str) -> Tensor:
        found = self.replaced(path)
        return self._base.parameter(path) if found is None else found

    def replaced(self, path: str) -> Tensor | None:
        """The parameter at `path` where the adapter brings one that differs from the base's."""
        return self.own.get(path, self.written.get(path))

    def behind(self, path: str) -> Tensor | None:
        """The rows of a parameter behind the base's, where the file has such."""
        return self._behind_own.get(path, self._behind_written.get(path))

    def _whole(self, module: str, rows: Tensor, behind: Tensor | None) -> Tensor:
        """The base's rows and those behind them, zeros where they come from elsewhere."""
        shape = self._shapes.modules[module]
        missing = (shape.in_features if shape.kind == "embedding" else shape.out_features) - len(rows)
        if not missing:
            return rows
        return torch.cat([rows, rows.new_zeros((missing, *rows.shape[1:])) if behind is None else behind.to(rows)])

    def _natural(self, item: FullTensor, tensor: Tensor) -> Tensor:
        """In the layout of BaseWeights: a weight of GPT-2's Conv1D lies the other way round in the file."""
        shape = self.shapes.modules.get(item.module)
        if shape is not None and shape.input_first and item.parameter == "weight":
            return tensor.t().contiguous()
        return tensor

    def _of_base(self, item: FullTensor) -> Tensor | None:
        if item.module not in self.shapes.modules:
            return self._base.parameter(item.path)
        return self._base.bias(item.module) if item.parameter == "bias" else self._base.weight(item.module)


def _tie(written: dict[str, Tensor], head: str, embedding: str) -> None:
    """Give both what the file writes to one of them. Raises AdapterRefused."""
    one, other = written.get(head), written.get(embedding)
    if one is not None and other is not None and not torch.equal(one, other):
        raise _different(head, embedding)
    both = other if one is None else one
    if both is not None:
        written[head] = written[embedding] = both


class Assembly:
    """One conversion. `adapter()` is the result; raises AdapterRefused."""

    def __init__(
        self,
        manifest: AdapterManifest,
        conversion: Conversion[Any],
        tensors: Tensors,
        base: BaseWeights,
        approximate: int,
    ) -> None:
        self._manifest = manifest
        self._conversion = conversion
        self._tensors = tensors
        self._added = added_rows(manifest, base.shapes)
        self._vocabulary = Vocabulary.of(base.shapes)
        self._base = ReplacedBase(manifest.full, tensors, base, self._added)
        self._approximate = approximate
        self._linears: dict[str, LinearChange] = {}
        self._embeddings: dict[str, EmbeddingChange] = {}
        self._experts: dict[str, ExpertsChange] = {}
        self._plain: dict[str, dict[str, Tensor]] = {}
        self._errors: dict[str, float] = {}

    def adapter(self) -> CanonicalAdapter:
        shared = {role: self._tensors[entry.name] for role, entry in self._manifest.shared.items()}
        if self._conversion.shared is not None:
            shared = dict(self._conversion.shared(self._manifest, shared, self._base))
        for target in self._manifest.targets:
            own = {role: self._tensors[entry.name] for role, entry in target.tensors.items()}
            self._put(target, self._change(target, {**shared, **own}))
        for path, value in {**self._base.written, **self._base.own}.items():
            module, _, parameter = path.rpartition(".")
            self._replace(module, parameter, value)
        for head, embedding in self._base.shapes.tied.items():
            self._tie(head, embedding)
        if self._added:
            self._cut()
        return CanonicalAdapter(
            digest=self._manifest.digest,
            linears=self._linears,
            embeddings=self._embeddings,
            experts=self._experts,
            plain=self._plain,
            head=None if self._manifest.head is None else self._tensors[self._manifest.head.entry.name],
            errors=self._errors,
        )

    def _change(self, target: TargetTensors, tensors: Tensors) -> Change:
        settings, conversion = self._manifest.settings, self._conversion
        reduced = target.reducible and 0 < self._approximate < target.rank
        if conversion.convert_module is not None and not reduced:
            change = conversion.convert_module(target, tensors, settings, self._base)
            if change is not None:
                return change
        if not self._approximate or conversion.dense is None:
            raise AdapterRefused(
                "no_exact_form",
                f"{self._manifest.peft_type} has no exact form here; add it with --approximate RANK to serve its "
                "best approximation of that rank, or merge it into the base",
            )
        dense = conversion.dense(target, tensors, settings, self._base)
        pair, self._errors[target.path] = factorise(dense.delta, self._approximate)
        return LinearChange(deltas=(pair,), bias=dense.bias)

    def _put(self, target: TargetTensors, change: Change) -> None:
        match change:
            case LinearChange() if change == LinearChange():
                pass  # pruned away: nothing is left to apply
            case LinearChange():
                self._linears[target.module] = change
            case EmbeddingChange():
                self._embeddings[target.module] = change
            case ExpertsChange():
                self._experts[target.path] = change
            case Mapping():
                self._plain.setdefault(target.module, {}).update(change)

    def _replace(self, module: str, parameter: str, value: Tensor) -> None:
        """Put in a complete parameter, unless the type's own conversion did."""
        shape = self._base.shapes.modules.get(module)
        if shape is None:
            self._plain.setdefault(module, {}).setdefault(parameter, value)
        elif shape.kind == "embedding":
            embedding = self._embeddings.get(module, EmbeddingChange())
            if embedding.weight is None:
                self._embeddings[module] = replace(embedding, weight=value)
        else:
            linear = self._linears.get(module, LinearChange())
            if parameter == "weight" and linear.weight is None:
                self._linears[module] = replace(linear, weight=value)
            elif parameter == "bias" and linear.bias is None:
                self._linears[module] = replace(linear, bias=value)

    def _cut(self) -> None:
        """Part what the grown embedding and head became into the base's rows and the adapter's own."""
        base, found = self._base, self._vocabulary
        assert found is not None

        def behind(module: str) -> Tensor:
            rows = base.behind(f"{module}.weight")
            return base.weight(module)[found.rows :] if rows is None else rows

        embedding = self._embeddings.get(found.embedding, EmbeddingChange())
        self._embeddings[found.embedding] = cut_embedding(embedding, found.rows, behind(found.embedding))
        if self._manifest.task == "generate":
            head, bias = self._linears.get(found.head, LinearChange()), base.behind(f"{found.head}.bias")
            self._linears[found.head] = cut_linear(found.head, head, found.rows, behind(found.head), bias)

    def _tie(self, head: str, embedding: str) -> None:
        """Give a head the rows that its embedding got, unless the file trains other tokens of it."""
        change = self._embeddings.get(embedding)
        followed = any(target.tied for target in self._manifest.targets if target.module == embedding)
        if change is None or change.rows is None or not followed:
            return
        ours = self._linears.get(head, LinearChange())
        if ours.rows is None:
            rows = trained_rows(head, change.rows, self._base)
            assert isinstance(rows, LinearChange)
            self._linears[head] = replace(ours, rows=rows.rows, bias=ours.bias if rows.bias is None else rows.bias)
        elif torch.equal(ours.rows.ids, change.rows.ids) and not torch.equal(ours.rows.values, change.rows.values):
            raise _different(f"rows of {head}", f"rows of {embedding}")


def _different(head: str, embedding: str) -> AdapterRefused:
    return AdapterRefused(
        "replaced_weight",
        f"the file replaces {head} and {embedding}, which are one weight in this base, by different ones; "
        "train on a base whose head has its own weight, or save the adapter again",
    )


def _repeats(saved: Tensor, base: Tensor | None) -> bool:
    """Equal once rounded to the coarser of the two dtypes: a bf16 copy of an fp32 base, or the reverse."""
    if base is None:
        return False
    base = base.to(saved.device)
    return torch.equal(base.to(saved.dtype), saved) or torch.equal(saved.to(base.dtype), base)
