"""How long steps take: the larger of bytes over bandwidth and operations over arithmetic, as linear costs.

    decode(B, K, N) = max(w + k·K + a·N, o·B + q·K) + c·B

with B rows, K tokens of context of all rows together and N distinct adapters; w, k and a are the seconds to read the
weights, a token's keys and values, and an adapter; o and q those to compute a row, and a row over one key; c those in
which tensor parallelism exchanges a row. Work and its units are those of `livery.bench.physics`, by which the engine's
own benchmark is judged (the roofline model: Williams, Waterman and Patterson, CACM 52(4), 2009).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from livery.bench.physics import Base, Peak
from livery.scale.plan.accelerators import Accelerator
from livery.scale.plan.shapes import ModelShape

REDUCES = 2  # sums over all GPUs a layer: after attention and after the MLP (Shoeybi et al., Megatron-LM, 2019)

Bound = Literal["bandwidth", "compute"]


@dataclass(frozen=True, slots=True)
class StepCosts:
    """Seconds per unit of what a step has; `peak` is what they are counted with."""

    base: Base
    peak: Peak
    rank: int
    chunk: int  # tokens of prompts a step takes
    weights: float
    key: float
    adapter: float
    row_operations: float
    key_operations: float
    row_exchange: float

    @classmethod
    def of(cls, base: Base, peak: Peak, rank: int, chunk: int, row_exchange: float = 0.0) -> StepCosts:
        """With adapters of one rank, on a machine with that peak."""
        row = base.decode(1, 0, row_ranks=[rank])
        return cls(
            base=base,
            peak=peak,
            rank=rank,
            chunk=chunk,
            weights=base.weight_bytes / peak.bandwidth,
            key=base.kv_bytes_per_token / peak.bandwidth,
            adapter=base.adapter_bytes(rank) / peak.bandwidth,
            row_operations=row.flops / peak.flops,
            key_operations=base.attention_flops_per_key / peak.flops,
            row_exchange=row_exchange,
        )

    def reading(self, keys: float, distinct: float) -> float:
        """Seconds to read what a decode step needs."""
        return self.weights + self.key * keys + self.adapter * distinct

    def computing(self, rows: float, keys: float) -> float:
        """Seconds to compute a decode step."""
        return self.row_operations * rows + self.key_operations * keys

    def decode(self, rows: float, keys: float, distinct: float) -> float:
        """Seconds of a step of `rows` tokens whose sequences have `keys` tokens together."""
        return max(self.reading(keys, distinct), self.computing(rows, keys)) + self.row_exchange * rows

    def decode_bound(self, rows: float, keys: float, distinct: float) -> Bound:
        return "bandwidth" if self.reading(keys, distinct) >= self.computing(rows, keys) else "compute"

    def prefill(self, tokens: int) -> float:
        """Seconds to read a prompt alone, in steps of `chunk` tokens, under an adapter."""
        return self.base.prefill(tokens, self.chunk, self.rank).seconds(self.peak) + self.row_exchange * tokens

    def prefill_bound(self, tokens: int) -> Bound:
        work = self.base.prefill(tokens, self.chunk, self.rank)
        return "bandwidth" if work.nbytes / self.peak.bandwidth >= work.flops / self.peak.flops else "compute"


def shared_peak(one: Accelerator, gpus: int, bandwidth: float = 1.0, compute: float = 1.0) -> Peak:
    """What `gpus` of a kind reach together at these efficiencies of their data sheet's numbers."""
    return Peak(gpus * bandwidth * one.peak.bandwidth, gpus * compute * one.peak.flops)


def exchange_seconds(one: Accelerator, model: ModelShape, gpus: int, itemsize: int) -> float:
    """Seconds in which `gpus` sum up one row, all layers: a ring sends 2 (g - 1) / g of it one way.

    Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms", 2009. The latency of each sum isn't in it.
    """
    row = REDUCES * model.num_hidden_layers * model.hidden_size * itemsize
    return 2 * (gpus - 1) / gpus * row / (one.link_gb_s * 1e9 / 2)
