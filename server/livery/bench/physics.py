"""The least that a step must move and compute, from shapes alone, and the time that takes at a machine's best.

    t >= max((W + K + N·a) / bandwidth, operations / peak)

with W the bytes of weights a step reads, K those of keys and values, a those of one adapter and N the distinct adapters
of the step. Knows no engine and no clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from statistics import median

from livery_adapters.base_model import BaseShapes

ADAPTER_ITEMSIZE = 2  # bytes a number, where nothing else is said: random adapters are written and held in bf16


@dataclass(frozen=True, slots=True)
class Peak:
    """What the machine reached, with the engine's number of threads: bytes a second, operations a second."""

    bandwidth: float
    flops: float

    @classmethod
    def typical(cls, found: Sequence[Peak]) -> Peak:
        """The medians of several measurements over a run.

        Others slow a machine down for a while, and a virtual one is lent more than its share for a while: neither is
        what the steps between them had.
        """
        return cls(median(peak.bandwidth for peak in found), median(peak.flops for peak in found))


@dataclass(frozen=True, slots=True)
class Work:
    """What a step needs at least: bytes of weights, of keys and values, and of adapters; and operations."""

    weight_bytes: float = 0.0
    kv_bytes: float = 0.0
    adapter_bytes: float = 0.0
    flops: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(Work)))

    @property
    def nbytes(self) -> float:
        return self.weight_bytes + self.kv_bytes + self.adapter_bytes

    def seconds(self, peak: Peak) -> float:
        """The floor: the larger of the time to read and the time to compute."""
        return max(self.nbytes / peak.bandwidth, self.flops / peak.flops)


@dataclass(frozen=True, slots=True)
class Base:
    """A base model's costs. `weight_bytes` is what one step reads of it, as it is held.

    `adapter_width` is the sum of in_features + out_features over the modules that the adapters target: a rank-r
    adapter has r times as many numbers.
    """

    weight_bytes: int
    body_weights: int  # numbers in the linear modules of the layers
    head_weights: int
    kv_bytes_per_token: int
    attention_flops_per_key: int  # of one query over one key, all layers
    adapter_width: int
    adapter_itemsize: int = ADAPTER_ITEMSIZE

    @classmethod
    def of(
        cls,
        shapes: BaseShapes,
        held_bytes: int,
        kv_bytes_per_token: int,
        attention_flops_per_key: int,
        embedding_itemsize: int,
        targets: Sequence[str],
        adapter_itemsize: int = ADAPTER_ITEMSIZE,
    ) -> Base:
        """From a model's shapes. `held_bytes` counts every weight in memory once.

        An embedding that isn't also the head is looked up row by row, so a step doesn't read it; a head is a linear
        module outside the layers.
        """
        linears = {path: shape for path, shape in shapes.modules.items() if shape.kind == "linear"}
        heads = {path for path in linears if path in shapes.tied or path.rpartition(".")[2] == "lm_head"}
        aside = sum(
            shape.in_features * shape.out_features * embedding_itemsize
            for path, shape in shapes.modules.items()
            if shape.kind == "embedding" and path not in shapes.tied.values()
        )
        targeted = [shape for path, shape in linears.items() if path.rpartition(".")[2] in targets]
        return cls(
            weight_bytes=held_bytes - aside,
            body_weights=sum(s.in_features * s.out_features for path, s in linears.items() if path not in heads),
            head_weights=sum(linears[path].in_features * linears[path].out_features for path in heads),
            kv_bytes_per_token=kv_bytes_per_token,
            attention_flops_per_key=attention_flops_per_key,
            adapter_width=sum(shape.in_features + shape.out_features for shape in targeted),
            adapter_itemsize=adapter_itemsize,
        )

    def adapter_bytes(self, rank: int) -> int:
        """Bytes of one adapter at its true rank."""
        return self.adapter_itemsize * rank * self.adapter_width

    def share(self, rank: int) -> float:
        """An adapter's bytes over the base's."""
        return self.adapter_bytes(rank) / self.weight_bytes

    def decode(self, rows: float, context: float, ranks: Sequence[int] = (), row_ranks: Sequence[int] = ()) -> Work:
        """One step of `rows` sequences, each of `context` tokens so far.

        `ranks` are those of the distinct adapters of the step, `row_ranks` the rank under which each row runs, where
        any does.
        """
        return Work(
            weight_bytes=self.weight_bytes,
            kv_bytes=rows * context * self.kv_bytes_per_token,
            adapter_bytes=sum(map(self.adapter_bytes, ranks)),
            flops=2 * rows * (self.body_weights + self.head_weights)
            + rows * context * self.attention_flops_per_key
            + 2 * sum(row_ranks) * self.adapter_width,
        )

    def prefill(self, tokens: int, chunk: int, rank: int = 0) -> Work:
        """Reading a prompt of `tokens` in steps of `chunk`; the head sees only the last row."""
        work = Work()
        for start in range(0, tokens, chunk):
            end = min(start + chunk, tokens)
            keys = (start + 1 + end) * (end - start) // 2  # every row sees itself and what is before it
            work += Work(
                weight_bytes=self.weight_bytes,
                kv_bytes=end * self.kv_bytes_per_token,
                adapter_bytes=self.adapter_bytes(rank),
                flops=2 * (end - start) * (self.body_weights + rank * self.adapter_width)
                + (2 * self.head_weights if end == tokens else 0)
                + keys * self.attention_flops_per_key,
            )
        return work


def physical_ratio(base: Work, mixed: Work, peak: Peak) -> float:
    """The best that speed with adapters over speed without can be, by bytes and operations at the machine's peaks."""
    return base.seconds(peak) / mixed.seconds(peak)


def bytes_ratio(base: Work, mixed: Work) -> float:
    """The same where only bytes count: (W + K) / (W + K + N·a)."""
    return base.nbytes / mixed.nbytes
