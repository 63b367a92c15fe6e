"""What a plan is made for, checked."""

from __future__ import annotations

from dataclasses import dataclass

from livery.engine.step_size import chosen_batch_tokens
from livery.scale.plan.accelerators import Accelerator
from livery.scale.plan.refusal import PlanRefused, nearest
from livery.scale.plan.shapes import DTYPES, TARGETS, WEIGHTS, ModelShape

MOST_ADAPTERS = 1_000_000
# Shares of bandwidth and arithmetic that engines reach, to be replaced by one's own measurement. GPUs, of the data
# sheet's numbers: one stream of Llama 3.1 8B in gpt-fast reads 1,411 of an A100's 2,039 GB/s (README of
# pytorch-labs/gpt-fast); Llama 3 was trained at 38 to 43 % of arithmetic ("The Llama 3 herd of models", 2024, table 4).
# CPUs, of what is measured: this engine's (README.md beside this file).
EFFICIENCY = {"gpu": (0.69, 0.40), "cpu": (0.67, 0.87)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One base, adapters of one rank, a load, a kind of GPU. Bytes, seconds, requests a second; 0: not given."""

    gpu: Accelerator
    model: ModelShape
    adapters: int
    rank: int = 16
    targets: tuple[str, ...] = TARGETS
    zipf: float = 1.0
    rps: float = 0.0
    prompt_tokens: int = 1155  # means of the public Azure conversation trace of 2023
    output_tokens: int = 211
    context: int = 0  # the longest sequence; 0: prompt and answer
    weights: str = "bf16"
    dtype: str = "bfloat16"
    kv_dtype: str = ""  # that of dtype
    adapter_dtype: str = "bfloat16"
    max_running: int = 256
    adapter_memory: float = 0.0
    host_memory: float = 0.0  # of a replica, for adapters; 0: enough for all
    store_rate: float = 1e9  # bytes a second from disk or object store
    bandwidth_efficiency: float = 0.0  # 0: EFFICIENCY
    compute_efficiency: float = 0.0
    headroom: float = 0.8  # of a replica's capacity, how much is used
    slo_ttft: float = 0.0
    slo_tpot: float = 0.0
    price_per_hour: float = 0.0
    by_adapter: bool = False  # each adapter's requests go to one replica
    tensor_parallel: int = 0  # GPUs that share the model; 0: as many as make the fewest GPUs in all

    def __post_init__(self) -> None:
        """Raises PlanRefused."""
        _within("--adapters", self.adapters, 1, MOST_ADAPTERS, "a plan without adapters is any server's")
        _within("--prompt-tokens", self.prompt_tokens, 1, 10_000_000, "a mean in tokens")
        _within("--output-tokens", self.output_tokens, 1, 10_000_000, "a mean in tokens")
        _within("--max-running", self.max_running, 1, 100_000, "sequences computed together")
        _within("--zipf", self.zipf, 0, 10, "0 is uniform, 1 is usual")
        _within("--rps", self.rps, 0, 1e6, "requests a second")
        _within("--context", self.context, 0, 10_000_000, "tokens; 0: prompt and answer")
        _within("--adapter-memory", self.adapter_memory / 1e9, 0, 1e6, "GB; 0: a share of what weights leave")
        _within("--host-memory", self.host_memory / 1e9, 0, 1e6, "GB; 0: enough for all adapters")
        _within("--store-gb-s", self.store_rate / 1e9, 1e-3, 1e6, "GB/s from disk or store")
        _within("--slo-ttft-ms", 1e3 * self.slo_ttft, 0, 1e9, "0: none")
        _within("--slo-tpot-ms", 1e3 * self.slo_tpot, 0, 1e9, "0: none")
        _within("--price-per-hour", self.price_per_hour, 0, 1e9, "of one GPU, in any currency; 0: not told")
        for name in ("headroom", "bandwidth_efficiency", "compute_efficiency"):
            value = getattr(self, name)
            if value or name == "headroom":
                _within(f"--{name.replace('_', '-')}", value, 0.01, 1.0, "a share of what there is")
        for name in ("weights", "dtype", "adapter_dtype"):
            self._known(name, WEIGHTS if name == "weights" else DTYPES)
        if self.kv_dtype:
            self._known("kv_dtype", DTYPES)
        self._check_rank()
        longest = self.model.max_position_embeddings
        if self.sequence > longest:
            raise PlanRefused(
                f"sequences of {self.sequence:,} tokens: {self.model.name} takes {longest:,}; lower --context, "
                "--prompt-tokens or --output-tokens"
            )

    @property
    def sequence(self) -> int:
        """Tokens of the longest sequence that must fit."""
        return max(self.context, self.prompt_tokens + self.output_tokens)

    @property
    def efficiency(self) -> tuple[float, float]:
        """Shares of bandwidth and of arithmetic that are counted with."""
        bandwidth, compute = EFFICIENCY[self.gpu.kind]
        return self.bandwidth_efficiency or bandwidth, self.compute_efficiency or compute

    def chunk(self, rows: int) -> int:
        """Tokens of a prompt that a step takes where as many as `rows` sequences are computed together."""
        return chosen_batch_tokens(rows, on_cpu=self.gpu.kind == "cpu")

    def _known(self, name: str, choices: dict[str, float] | dict[str, int]) -> None:
        value = getattr(self, name)
        if value not in choices:
            raise PlanRefused(f"--{name.replace('_', '-')} {value}: unknown; {nearest(value, choices)}")

    def _check_rank(self) -> None:
        modules = self.model.shapes().modules
        widths = {
            path.rpartition(".")[2]: min(shape.in_features, shape.out_features) for path, shape in modules.items()
        }
        least = min(self.targets, key=lambda name: widths[name])
        why = f"a ΔW of {self.model.name}'s {least} has no higher rank"
        _within("--rank", self.rank, 1, widths[least], why)


def _within(option: str, value: float, low: float, high: float, why: str) -> None:
    if not low <= value <= high:
        raise PlanRefused(f"{option} {value:g}: expected {low:g} to {high:,.10g}; {why}")
