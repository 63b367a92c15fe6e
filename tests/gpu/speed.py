"""What the engine reaches on a device, with random weights of known models' shapes, beside what the device allows."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, Qwen3Config

from livery.engine import runner as runner_module
from livery.engine.base import AdapterRef, EngineConfig, GenerationRequest, SamplingParams
from livery.engine.core import EngineCore
from livery.engine.images import AdapterImage
from livery.engine.model import LoadedModel
from livery.engine.plan import SampleSpec, SequenceSlice, StepPlan
from livery.engine.runner import ModelRunner
from livery.engine.structure import discover
from livery_adapters.base_model import ModuleShape
from livery_adapters.canonical import CanonicalAdapter, LinearChange, LowRank
from livery_adapters.effect import AdapterEffect

GREEDY = SampleSpec(temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, draw=0.0)
ROUNDS = 3  # of each side of a comparison, in turns


def shapes_of(name: str) -> PreTrainedConfig:
    if name == "llama-3.1-8b":
        return LlamaConfig(
            vocab_size=128256,
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=128,
            max_position_embeddings=16384,
            rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
            tie_word_embeddings=False,
        )
    if name == "qwen3-0.6b":
        return Qwen3Config(
            vocab_size=151936,
            hidden_size=1024,
            intermediate_size=3072,
            num_hidden_layers=28,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=128,
            max_position_embeddings=16384,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
            tie_word_embeddings=True,
        )
    return LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )


@dataclass(frozen=True)
class Sizes:
    """How much of everything a measurement takes."""

    batches: tuple[int, ...]
    distinct: tuple[int, ...]
    prompts: tuple[int, ...]
    context: int
    steps: int
    max_model_len: int
    kv_bytes: int
    adapter_bytes: int
    load_seconds: float


GPU = Sizes((1, 8, 32, 128), (8, 32, 64), (512, 2048, 8192), 1024, 24, 9216, 36 << 30, 16 << 30, 4.0)
TINY = Sizes((1, 3), (2,), (20,), 30, 2, 128, 8 << 20, 4 << 20, 0.3)


class RandomRunner(ModelRunner):
    """The engine's runner over random weights; an adapter's digest says its rank, as in `r16-3`."""

    def __init__(self, shape: PreTrainedConfig, config: EngineConfig, tell: Callable[[str], None]) -> None:
        def load(config: EngineConfig, device: torch.device, dtype: torch.dtype) -> LoadedModel:
            torch.manual_seed(0)
            with torch.device(device):
                model: Any = AutoModelForCausalLM.from_config(shape, dtype=dtype, attn_implementation="eager")
            model = model.eval().requires_grad_(False)
            return LoadedModel(model, discover(model), dtype, shape.max_position_embeddings, shape.vocab_size, ())

        self.hidden_size = int(shape.hidden_size)
        self._parts: dict[int, CanonicalAdapter] = {}
        kept, runner_module.load_model = runner_module.load_model, load
        try:
            super().__init__(config, tell)
        finally:
            runner_module.load_model = kept
        for cache in self._caches:  # never time zeros: they are faster than numbers
            cache.k.normal_()
            cache.v.normal_()

    def read_adapter(self, adapter: AdapterRef) -> AdapterImage:
        rank = int(adapter.digest.split("-")[0][1:])
        if rank not in self._parts:
            self._parts[rank] = self._canonical(rank)
        kept = self._parts[rank]
        return self.pack(CanonicalAdapter(adapter.digest, kept.linears), AdapterEffect({}, 0))

    def _canonical(self, rank: int) -> CanonicalAdapter:
        """All linear modules of the layers, in bf16, shared by all adapters of a rank on the host."""
        changes = {}
        for path, shape in layer_linears(self).items():
            a = torch.randn((rank, shape.in_features)).bfloat16() * 0.02
            b = torch.randn((shape.out_features, rank)).bfloat16() * 0.02
            changes[path] = LinearChange(deltas=(LowRank(a, b, 1.0),))
        return CanonicalAdapter(f"r{rank}", changes)


class Workbench:
    """One engine, driven by hand."""

    def __init__(self, name: str, sizes: Sizes, device: str, kernels: str, tell: Callable[[str], None]) -> None:
        began = time.monotonic()
        self.sizes = sizes
        config = EngineConfig(
            "",
            device=device,
            kernels=kernels,  # type: ignore[arg-type]
            kv_memory_bytes=sizes.kv_bytes,
            adapter_memory_bytes=sizes.adapter_bytes,
            max_batch_tokens=max(sizes.prompts) + 64,
            max_model_len=sizes.max_model_len,
            max_running=max(sizes.batches),
            prefix_cache=False,
        )
        self.runner = RandomRunner(shapes_of(name), config, tell)
        self.core = EngineCore(self.runner, lambda: None)
        self.start_seconds = time.monotonic() - began
        self._cuda = self.runner.info.device.startswith("cuda")
        self._count = 0
        self._random = torch.Generator().manual_seed(1)

    def sync(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()

    def request(self, tokens: int, adapter: str | None, max_tokens: int = 1) -> str:
        self._count += 1
        prompt = torch.randint(3, self.runner.info.vocab_size, (tokens,), generator=self._random).tolist()
        params = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
        name = f"{self._count}"
        self.core.add(GenerationRequest(name, prompt, params, AdapterRef.of(adapter, "") if adapter else None))
        return name

    def resident(self, adapters: Sequence[str]) -> None:
        for adapter in adapters:
            self.request(2, adapter)
        self.drain()

    def drain(self) -> None:
        while self.core.has_work:
            for delta in self.core.step():
                assert not delta.error, delta.error

    def ttft(self, tokens: int, adapter: str | None) -> float:
        """Seconds from a request to its first token on an idle engine."""
        self.sync()
        began = time.monotonic()
        name = self.request(tokens, adapter)
        while True:
            for delta in self.core.step():
                assert not delta.error, delta.error
                if delta.request_id == name:
                    return time.monotonic() - began

    def step_seconds(self, adapters: Sequence[str | None]) -> float:
        """Median seconds of a decoding step with one row per entry, each under its adapter."""
        block, context = self.runner.info.block_size, self.sizes.context
        blocks = -(-context // block)
        assert blocks * len(adapters) <= self.runner.info.num_blocks, "too little KV memory for this batch"
        slices = tuple(
            SequenceSlice(
                str(row),
                (5 + row,),
                context - 1,
                tuple(range(row * blocks, (row + 1) * blocks)),
                adapter,
                (GREEDY,),
            )
            for row, adapter in enumerate(adapters)
        )
        times = []
        for _ in range(self.sizes.steps + 2):
            began = time.monotonic()
            result = self.runner.execute(StepPlan(slices))
            times.append(time.monotonic() - began)
            assert not result.failed, "random weights gave no numbers"
        return statistics.median(times[2:])

    def device_seconds(self, rows: int) -> float | None:
        """Seconds that the device alone takes for the step last replayed, or None where steps aren't recorded."""
        graphs = self.runner._graphs
        if graphs is None or not self._cuda:
            return None
        size = next(size for size in graphs._sizes if size >= rows)
        step = graphs._recorded[size, True]
        self.sync()
        began = time.monotonic()
        for _ in range(self.sizes.steps):
            step.replay()
        self.sync()
        return (time.monotonic() - began) / self.sizes.steps

    def streamed_bytes(self, rows: int, adapters: Sequence[str | None]) -> int:
        """What a step must read: weights, the rows' keys and values, each distinct adapter once."""
        linears = layer_linears(self.runner)
        head = self.runner.info.vocab_size * self.runner.hidden_size
        size = 2 if self.runner.info.dtype == "bfloat16" else 4
        weights = (head + sum(shape.in_features * shape.out_features for shape in linears.values())) * size
        caches = self.runner._caches
        kv = sum((cache.k[0, 0].numel() + cache.v[0, 0].numel()) * cache.k.element_size() for cache in caches)
        ranks = [int(name.split("-")[0][1:]) for name in set(filter(None, adapters))]
        wide = sum(shape.in_features + shape.out_features for shape in linears.values())
        return int(weights + rows * self.sizes.context * kv + sum(ranks) * wide * 2)


def layer_linears(runner: ModelRunner) -> dict[str, ModuleShape]:
    """The linear modules of the layers: all but the head."""
    modules = runner.info.shapes.modules.items()
    return {path: shape for path, shape in modules if shape.kind == "linear" and "lm_head" not in path}


def bandwidth(device: torch.device, size: int) -> float:
    """Bytes per second, read and written, of a large copy on the device."""
    source = torch.randn(size // 4, device=device)
    target = torch.empty_like(source)
    times = []
    for _ in range(6):
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.monotonic()
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.monotonic() - began)
    return 2 * size / min(times)


def in_turns(sides: dict[str, Callable[[], float]]) -> dict[str, float]:
    """The median of each side over rounds in which all sides take their turn."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(ROUNDS):
        for name, measure in sides.items():
            found[name].append(measure())
    return {name: statistics.median(times) for name, times in found.items()}


def decode(bench: Workbench, rate: float) -> Iterator[dict[str, object]]:
    """Base, one adapter, distinct ones and mixed ranks; `rate` is the measured bandwidth."""
    for rows in bench.sizes.batches:
        mixes: dict[str, list[str | None]] = {"base": [None] * rows, "one r16": ["r16-0"] * rows}
        for count in bench.sizes.distinct:
            if rows >= count:
                mixes[f"{count} distinct r16"] = [f"r16-{row % count}" for row in range(rows)]
        if rows >= 8:
            mixes["mixed r8-r64"] = [f"r{(8, 16, 32, 64)[row % 4]}-{row // 4 % 4}" for row in range(rows)]
        bench.resident(sorted({name for mix in mixes.values() for name in mix if name}))
        times = in_turns({name: lambda mix=mix: bench.step_seconds(mix) for name, mix in mixes.items()})  # type: ignore[misc]
        bench.step_seconds(mixes["one r16"])
        device = bench.device_seconds(rows)
        base_bytes = bench.streamed_bytes(rows, mixes["base"])
        for name, mix in mixes.items():
            need = bench.streamed_bytes(rows, mix)
            yield {
                "what": "decode",
                "rows": rows,
                "adapters": name,
                "ms": 1e3 * times[name],
                "tokens_per_second": rows / times[name],
                "to_base": times["base"] / times[name],
                "to_physical": times["base"] * need / base_bytes / times[name],
                "roofline": need / rate / times[name],
                "device_ms": 1e3 * device if device and name == "one r16" else None,
            }


def prefill(bench: Workbench) -> Iterator[dict[str, object]]:
    bench.resident(["r16-0"])
    for tokens in bench.sizes.prompts:
        sides = {"base": lambda n=tokens: bench.ttft(n, None), "one r16": lambda n=tokens: bench.ttft(n, "r16-0")}  # type: ignore[misc]
        for measure in sides.values():
            measure()
        times = in_turns(sides)
        for name, seconds in times.items():
            yield {
                "what": "prefill",
                "tokens": tokens,
                "adapters": name,
                "ms": 1e3 * seconds,
                "to_base": times["base"] / seconds,
            }


def cold(bench: Workbench) -> Iterator[dict[str, object]]:
    """First token of a prompt whose adapter is on the host only, beside one whose adapter is on the device."""
    tokens, fresh = bench.sizes.prompts[0], iter(range(1000, 2000))
    bench.resident(["r16-0"])
    times = in_turns(
        {
            "warm": lambda: bench.ttft(tokens, "r16-0"),
            "cold": lambda: bench.ttft(tokens, f"r16-{next(fresh)}"),
        }
    )
    yield {
        "what": "cold/warm",
        "tokens": tokens,
        **{f"{name}_ms": 1e3 * t for name, t in times.items()},
        "ratio": times["cold"] / times["warm"],
    }


def loads(bench: Workbench, per_second: float = 10.0) -> Iterator[dict[str, object]]:
    """The 99th percentile of time between tokens of running answers, with and without new adapters' requests."""
    fresh = iter(range(3000, 9000))

    def p99(with_loads: bool) -> float:
        rows = min(16, max(bench.sizes.batches) - 1)
        longest = bench.sizes.max_model_len - 64
        for _ in range(rows):
            bench.request(16, "r16-0", max_tokens=longest)
        while bench.core.stats().waiting:
            bench.core.step()
        times, began, due = [], time.monotonic(), time.monotonic()
        while (now := time.monotonic()) - began < bench.sizes.load_seconds and bench.core.stats().running >= rows:
            if with_loads and now >= due:
                due += 1 / per_second
                bench.request(2, f"r16-{next(fresh)}")
            bench.core.step()
            times.append(time.monotonic() - now)
        for name in range(bench._count + 1):
            bench.core.abort(str(name))
        bench.drain()
        return sorted(times)[int(0.99 * (len(times) - 1))]

    bench.resident(["r16-0"])
    times = in_turns({"without": lambda: p99(False), "with": lambda: p99(True)})
    yield {
        "what": f"p99 between tokens, {per_second:.0f} loads/s",
        **{f"{k}_ms": 1e3 * t for k, t in times.items()},
        "ratio": times["with"] / times["without"],
    }


def profile(bench: Workbench) -> Iterator[dict[str, object]]:
    """What a decoding step's time on the device goes to, launched kernel by kernel."""
    graphs, bench.runner._graphs = bench.runner._graphs, None
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if bench._cuda:
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    try:
        for rows in (bench.sizes.batches[0], bench.sizes.batches[-1]):
            bench.step_seconds(["r16-0"] * rows)
            with torch.profiler.profile(activities=kinds) as found:
                bench.step_seconds(["r16-0"] * rows)
            cost = "self_device_time_total" if bench._cuda else "self_cpu_time_total"
            events = sorted(found.key_averages(), key=lambda event: -float(getattr(event, cost)))
            total = sum(float(getattr(event, cost)) for event in events) or 1.0
            top = {event.key[:60]: round(float(getattr(event, cost)) / total, 3) for event in events[:8]}
            yield {"what": "profile", "rows": rows, "shares": top}
    finally:
        bench.runner._graphs = graphs
