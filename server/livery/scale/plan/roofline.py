"""How long steps take, from the bytes they read and the operations they compute, as linear costs.

With B rows, K tokens of context of all rows together and N distinct adapters; w, k and a the seconds to read the
weights, a token's keys and values, and an adapter; o and q those to compute a row, and a row over one key; x those in
which tensor parallelism exchanges a row:

    floor           max(w + k·K + a·N, o·B + q·K) + x·B            all reading beside all computing
    expected, GPU   max(w, o·B) + max(k·K, q·K) + a·N + x·B        kernels one after the other, each bound by its own
    expected, CPU   w + k·K + a·N + o·B + q·K                      a core reads or computes

The roofline model: Williams, Waterman and Patterson, CACM 52(4), 2009; by kernels: Yuan et al., "LLM inference
unveiled: survey and roofline model insights", 2024. Work and its units are those of `livery.bench.physics`, by which
the engine's own benchmark is judged.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from livery.bench.physics import Base, Peak
from livery.scale.plan.accelerators import Accelerator
from livery.scale.plan.shapes import ModelShape

REDUCES = 2  # sums over all GPUs a layer: after attention and after the MLP (Shoeybi et al., Megatron-LM, 2019)

Bound = Literal["bandwidth", "compute"]


class Overlap(StrEnum):
    """What of a step's reading goes on while it computes."""

    ALL = "all"
    KERNELS = "kernels"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class StepCosts:
    """Seconds per unit of what a step has; `peak` is what they are counted with."""

    base: Base
    peak: Peak
    overlap: Overlap
    rank: int
    chunk: int  # tokens of prompts a step takes
    weights: float
    key: float
    adapter: float
    row_operations: float  # of a row through the layers, with its adapter
    head_operations: float
    key_operations: float
    row_exchange: float

    @classmethod
    def of(
        cls, base: Base, peak: Peak, overlap: Overlap, rank: int, chunk: int, row_exchange: float = 0.0
    ) -> StepCosts:
        """With adapters of one rank, on a machine with that peak."""
        return cls(
            base=base,
            peak=peak,
            overlap=overlap,
            rank=rank,
            chunk=chunk,
            weights=base.weight_bytes / peak.bandwidth,
            key=base.kv_bytes_per_token / peak.bandwidth,
            adapter=base.adapter_bytes(rank) / peak.bandwidth,
            row_operations=2 * (base.body_weights + rank * base.adapter_width) / peak.flops,
            head_operations=2 * base.head_weights / peak.flops,
            key_operations=base.attention_flops_per_key / peak.flops,
            row_exchange=row_exchange,
        )

    def reading(self, keys: float, distinct: float) -> float:
        """Seconds to read what a decode step needs."""
        return self.weights + self.key * keys + self.adapter * distinct

    def computing(self, rows: float, keys: float) -> float:
        """Seconds to compute a decode step."""
        return (self.row_operations + self.head_operations) * rows + self.key_operations * keys

    def decode(self, rows: float, keys: float, distinct: float) -> float:
        """Seconds of a step of `rows` tokens whose sequences have `keys` tokens together."""
        return self._step(rows, rows, keys, keys, distinct)

    def decode_bound(self, rows: float, keys: float, distinct: float) -> Bound:
        return "bandwidth" if self.reading(keys, distinct) >= self.computing(rows, keys) else "compute"

    def prefill(self, tokens: int) -> float:
        """Seconds to read a prompt alone, in steps of `chunk` tokens, under an adapter."""
        seconds = 0.0
        for start in range(0, tokens, self.chunk):
            end = min(start + self.chunk, tokens)
            looks = (start + 1 + end) * (end - start) / 2  # every row sees itself and what is before it
            seconds += self._step(end - start, 1 if end == tokens else 0, end, looks, 1)
        return seconds

    def prefill_bound(self, tokens: int) -> Bound:
        work = self.base.prefill(tokens, self.chunk, self.rank)
        return "bandwidth" if work.nbytes / self.peak.bandwidth >= work.flops / self.peak.flops else "compute"

    def _step(self, rows: float, heads: float, keys: float, looks: float, distinct: float) -> float:
        """Rows through the layers, `heads` of them through the head; `looks` counts pairs of a row and a key."""
        products = self.row_operations * rows + self.head_operations * heads
        attention, cache = self.key_operations * looks, self.key * keys
        adapters = self.adapter * distinct
        if self.overlap is Overlap.KERNELS:
            seconds = max(self.weights, products) + max(cache, attention) + adapters
        elif self.overlap is Overlap.ALL:
            seconds = max(self.weights + cache + adapters, products + attention)
        else:
            seconds = self.weights + cache + adapters + products + attention
        return seconds + self.row_exchange * rows


def shared_peak(one: Accelerator, gpus: int, bandwidth: float = 1.0, compute: float = 1.0) -> Peak:
    """What `gpus` of a kind reach together at these efficiencies of their data sheet's numbers."""
    return Peak(gpus * bandwidth * one.peak.bandwidth, gpus * compute * one.peak.flops)


def exchange_seconds(one: Accelerator, model: ModelShape, gpus: int, itemsize: int) -> float:
    """Seconds in which `gpus` sum up one row, all layers: a ring sends 2 (g - 1) / g of it one way.

    Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms", 2009. The latency of each sum isn't in it.
    """
    row = REDUCES * model.num_hidden_layers * model.hidden_size * itemsize
    return 2 * (gpus - 1) / gpus * row / (one.link_gb_s * 1e9 / 2)
