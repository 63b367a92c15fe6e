"""Embedding modules whose rows under an adapter get that adapter's change."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from livery.engine.base import ModelRefused
from livery.engine.kernels import PlainWeight, Weight
from livery.engine.lora.bank import AdapterBank, PackedEmbedding
from livery.engine.lora.linear import GroupedLinear
from livery.engine.lora.parts import by_rows
from livery.engine.structure import ModelStructure
from livery_adapters.canonical import Rows


class AdapterEmbedding(nn.Module):
    """Stands where an embedding of the base stood."""

    def __init__(self, base: nn.Embedding, weight: Weight, path: str, bank: AdapterBank) -> None:
        super().__init__()
        self.held = weight
        self._path = path
        self._bank = bank
        # Embeddings that scale their output (Gemma) scale what adapters make of it as well.
        self.scale: Tensor | None = getattr(base, "embed_scale", None)
        self.padding_idx = base.padding_idx

    @property
    def weight(self) -> Tensor:
        """The base weight, [vocabulary, dim]; a copy where a tied head holds it packed."""
        return self.held.dense()

    def forward(self, ids: Tensor) -> Tensor:
        """ids [1, rows] -> [1, rows, dim]."""
        changes = self._bank.embeddings(self._path)
        known = ids[0]
        if any(part.added is not None for _, part in changes):  # no other rows have ids behind the base's
            known = known.clamp(max=self.held.out_features - 1)
        y = self.held.rows(known)
        for segment, part in changes:
            rows = slice(segment.start, segment.end)
            y[rows] = _changed(part, known[rows], y[rows], self._bank.one_by_one)
            if part.added is not None:
                y[rows] = _with_added(part.added, ids[0, rows] - self.held.out_features, y[rows])
        if self.scale is not None:
            y = y * self.scale.to(y.dtype)
        return y[None]


def _changed(part: PackedEmbedding, ids: Tensor, y: Tensor, one_by_one: bool) -> Tensor:
    """One adapter's embedding of ids [rows], given the base's, y [rows, dim]."""
    if part.weight is not None:
        y = part.weight.rows(ids)
    if part.rows is not None:
        y = _with_replaced(part.rows, ids, y)
    if part.a is not None and part.b is not None:
        a, b = part.a[ids], part.b
        wider = torch.promote_types(y.dtype, a.dtype)
        product = by_rows(lambda a: a @ b.to(wider), a.to(wider), one_by_one)
        y = y + (product * part.scale).to(y.dtype)
    return y if part.gain is None else y * part.gain


def _with_added(added: Tensor, places: Tensor, y: Tensor) -> Tensor:
    """y [rows, dim] with the rows of the adapter's own tokens, by their places [rows]; those below 0 are the base's."""
    return torch.where((places >= 0)[:, None], added[places.clamp(0, len(added) - 1)], y)


def _with_replaced(rows: Rows, ids: Tensor, y: Tensor) -> Tensor:
    """y [rows, dim] with the trained tokens' rows put in, by their place among the ascending ids."""
    place = torch.searchsorted(rows.ids, ids).clamp_(max=rows.ids.shape[0] - 1)
    return torch.where((rows.ids[place] == ids)[:, None], rows.values[place], y)


def attach_embeddings(
    model: nn.Module, structure: ModelStructure, bank: AdapterBank, linears: Mapping[str, GroupedLinear]
) -> None:
    """Put adapter-aware modules in place of the base's embeddings; one that is tied to a head reads the head's memory.

    Raises ModelRefused when an embedding does more than look up rows and scale them.
    """
    heads = {embedding: head for head, embedding in structure.shapes.tied.items()}
    for path, shape in structure.modules.items():
        if shape.kind != "embedding":
            continue
        embedding = model.get_submodule(path)
        assert isinstance(embedding, nn.Embedding)
        if type(embedding) is not nn.Embedding and not hasattr(embedding, "embed_scale"):
            raise ModelRefused(f"{path} is a {type(embedding).__name__}, an embedding this engine doesn't know")
        if type(embedding.weight) is not nn.Parameter:
            raise ModelRefused(
                f"{path} is quantised ({type(embedding.weight).__name__}), and this engine looks up rows of numbers; "
                "quantise linear modules only"
            )
        table = linears[heads[path]].held if path in heads else PlainWeight(embedding.weight.detach())
        model.set_submodule(path, AdapterEmbedding(embedding, table, path, bank))
