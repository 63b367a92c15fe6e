"""Changes of a grown embedding or head cut in two: what they do to the base's rows, and the rows behind those.

Conversions see the vocabulary as the adapter was trained on it, V + E rows. What the adapter makes of the E rows that
the base doesn't have is worked out here, once: no other adapter shares them, and they are few.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from livery_adapters.canonical import AddedOutputs, EmbeddingChange, Kronecker, LinearChange, Rows
from livery_adapters.measure import effective, of_rows
from livery_adapters.refusal import AdapterRefused


def cut_embedding(change: EmbeddingChange, rows: int, added: Tensor) -> EmbeddingChange:
    """`added` [added, dim] are the rows behind the first `rows` as they are without the change."""
    kept, more = of_rows(change, slice(0, rows)), _behind(change, rows, len(added))
    assert isinstance(kept, EmbeddingChange)
    if more != EmbeddingChange():
        added = effective(more, added)[0]
    return replace(kept, rows=_any(kept.rows), added=added)


def cut_linear(module: str, change: LinearChange, rows: int, added: Tensor, bias: Tensor | None) -> LinearChange:
    """`added` [added, in_features] and `bias` [added] are the outputs behind the first `rows` without the change.

    Raises AdapterRefused.
    """
    if any(isinstance(delta, Kronecker) for delta in change.deltas):
        raise AdapterRefused(
            "unsupported_combination",
            f"{module} has more rows than the base's and a Kronecker product over all of them, which can't be cut; "
            "leave the head out of target_modules",
        )
    kept, more = of_rows(change, slice(0, rows)), _behind(change, rows, len(added))
    assert isinstance(kept, LinearChange) and isinstance(more, LinearChange)
    if change.bias is not None:
        kept = replace(kept, bias=change.bias[:rows])
        bias = change.bias[rows:] if len(change.bias) > rows else bias
    if replace(more, bias=None) != LinearChange():
        added = effective(replace(more, bias=None), added)[0]
    return replace(kept, rows=_any(kept.rows), added=AddedOutputs(added, bias))


def _behind(change: LinearChange | EmbeddingChange, rows: int, added: int) -> LinearChange | EmbeddingChange:
    """What the change does to the rows behind; a replaced weight may be of the base's rows alone."""
    if change.weight is not None and len(change.weight) == rows:
        change = replace(change, weight=None)
    more = of_rows(change, slice(rows, rows + added))
    return replace(more, rows=_any(more.rows))


def _any(rows: Rows | None) -> Rows | None:
    return rows if rows is not None and len(rows.ids) else None
