"""What pooled requests get: one vector each, made of their rows' final hidden states.

Sums over a prompt's rows are one chain of additions in fp64 in the order of positions, so that it doesn't show how a
prompt was cut into steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from livery.engine.base import Pooling
from livery.engine.plan import NOT_FINITE, PoolSpec, SequenceSlice

NO_HEAD = "this adapter has no classification head"
HeadOf = Callable[[str], Tensor | None]  # an adapter's digest -> its head, [labels, hidden]


@dataclass(frozen=True, slots=True)
class PooledRows:
    """What one slice's rows give: on the device, fp64; None where the adapter lacks the head that was asked for."""

    request_id: str
    spec: PoolSpec
    vector: Tensor | None


def pool(slices: Sequence[SequenceSlice], hidden: Tensor, head_of: HeadOf) -> list[PooledRows]:
    """Pool the slices that ask for it. `hidden` [rows, hidden size] are the rows of all slices in order."""
    found = []
    end = 0
    for part in slices:
        start, end = end, end + len(part.token_ids)
        if part.pool is not None:
            vector: Tensor | None = _pooled(part.pool, hidden[start:end], part.start)
            if part.pool.pooling.head:
                vector = _classified(vector, part.adapter, head_of)
            found.append(PooledRows(part.request_id, part.pool, vector))
    return found


def results(pooled: Sequence[PooledRows]) -> tuple[Mapping[str, bytes], Mapping[str, str]]:
    """Wait for the numbers: each request's vector as the scheduler hands it on, and why others have none.

    A request's last vector is fp32, sums before that are fp64.
    """
    vectors = [one.vector for one in pooled if one.vector is not None]
    copied = iter(torch.split(torch.cat(vectors).cpu(), [len(vector) for vector in vectors]) if vectors else ())
    found, failed = {}, {}
    for one in pooled:
        if one.vector is None:
            failed[one.request_id] = NO_HEAD
            continue
        vector = next(copied)
        if one.spec.last:
            vector = _finished(vector, one.spec.pooling)
        if bool(torch.isfinite(vector).all()):
            found[one.request_id] = vector.numpy().tobytes()
        else:
            failed[one.request_id] = NOT_FINITE
    return found, failed


def _pooled(spec: PoolSpec, rows: Tensor, start: int) -> Tensor:
    """fp64 [hidden size]: the last of `rows`; or their sum with what came `before`, and in the end their mean."""
    if spec.pooling.kind == "last":
        return rows[-1].double()
    rows = rows.double()
    if spec.before:
        before = torch.frombuffer(bytearray(spec.before), dtype=torch.float64)
        rows = torch.cat([before.to(rows.device)[None], rows])
    total = rows.cumsum(0)[-1]
    return total / (start + len(rows) - bool(spec.before)) if spec.last else total


def _classified(vector: Tensor | None, adapter: str | None, head_of: HeadOf) -> Tensor | None:
    """The logits of an adapter's classes, fp64 [labels]."""
    head = None if adapter is None else head_of(adapter)
    return None if head is None or vector is None else head.double() @ vector


def _finished(vector: Tensor, pooling: Pooling) -> Tensor:
    """The vector that a client gets, fp32."""
    if pooling.head:
        return vector.float()
    vector = vector[: pooling.dimensions or None]
    if pooling.normalize:
        vector = vector / vector.norm().clamp(min=torch.finfo(torch.float64).tiny)
    return vector.float()
