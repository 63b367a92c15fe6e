"""One engine in this process, driven by hand: single steps for their speed, requests for everything else."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from transformers import AutoConfig

from livery.bench.physics import Base
from livery.engine.base import (
    AdapterRef,
    EngineConfig,
    EngineInfo,
    GenerationRequest,
    Grammar,
    SamplingParams,
)
from livery.engine.core import EngineCore
from livery.engine.plan import SampleSpec, SequenceSlice, StepPlan
from livery.engine.runner import ModelRunner
from livery_adapters.manifest import read_manifest
from livery_loadtest.random_adapters import LINEAR_MODULES

ITEMSIZE = {"float32": 4, "bfloat16": 2}
GREEDY = SampleSpec(temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, draw=0.0)
IDLE_WAIT = 0.05  # seconds an idle engine waits for its loader before it looks again


class BenchFailed(Exception):
    """A measurement could not be made; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Loads:
    """Adapters brought to device memory, by where they were before."""

    from_store: int = 0
    from_host: int = 0

    def __add__(self, other: Loads) -> Loads:
        return Loads(self.from_store + other.from_store, self.from_host + other.from_host)

    def __sub__(self, other: Loads) -> Loads:
        return Loads(self.from_store - other.from_store, self.from_host - other.from_host)

    def __str__(self) -> str:
        return f"{self.from_store} loads from the store, {self.from_host} from the host"


@dataclass(slots=True)
class Answer:
    """One request as it went. Times are seconds on one monotonic clock; `times` has one per token."""

    submitted: float
    tokens: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    done: bool = False

    @property
    def ttft(self) -> float:
        return self.times[0] - self.submitted


class Workbench:
    """An engine core and its runner. For one thread."""

    def __init__(self, config: EngineConfig, tell: Callable[[str], None]) -> None:
        """Load and prove the model. Raises livery.engine.base.ModelRefused."""
        self._woken = threading.Event()
        self.config = config
        self.runner = ModelRunner(config, tell)
        self.core = EngineCore(self.runner, self._woken.set)
        self.answers: dict[str, Answer] = {}
        self._read: set[str] = set()
        self._numbers = itertools.count()
        self._random = random.Random(0)

    def close(self) -> None:
        self.core.stop()

    @property
    def info(self) -> EngineInfo:
        return self.runner.info

    def base(self) -> Base:
        """The model's costs, for floors."""
        config = AutoConfig.from_pretrained(self.config.model_path, local_files_only=True).get_text_config()
        heads = config.num_attention_heads
        dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        itemsize = ITEMSIZE[self.info.dtype]
        return Base.of(
            self.info.shapes,
            self.info.weight_bytes,
            kv_bytes_per_token=2 * config.num_hidden_layers * kv_heads * dim * itemsize,
            attention_flops_per_key=4 * config.num_hidden_layers * heads * dim,
            embedding_itemsize=itemsize,
            targets=LINEAR_MODULES,
        )

    def tokens(self, count: int) -> list[int]:
        """A prompt of random ordinary tokens, another one each time."""
        special = set(self.info.eos_token_ids)
        found: list[int] = []
        while len(found) < count:
            token = self._random.randrange(self.info.vocab_size)
            if token not in special:
                found.append(token)
        return found

    # -- requests --------------------------------------------------------------------------------------

    def submit(
        self,
        prompt: Sequence[int],
        max_tokens: int,
        adapter: AdapterRef | None = None,
        grammar: Grammar | None = None,
    ) -> str:
        """Queue a greedy request that never stops before its grammar is complete; returns its id."""
        name = f"bench-{next(self._numbers)}"
        self.answers[name] = Answer(time.perf_counter())
        params = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True, grammar=grammar)
        self.core.add(GenerationRequest(name, list(prompt), params, adapter))
        return name

    def step(self) -> None:
        """One step; where there is nothing to do but wait for the loader, wait for it. Raises BenchFailed."""
        self._woken.clear()
        deltas = self.core.step()
        now = time.perf_counter()
        for outcome in self.core.take_loads():
            if outcome.error:
                raise BenchFailed(f"adapter {outcome.digest[:12]}: {outcome.error}")
            self._read.add(outcome.digest)
        for delta in deltas:
            if delta.error:
                raise BenchFailed(f"request {delta.request_id}: {delta.error}")
            answer = self.answers[delta.request_id]
            answer.tokens += delta.token_ids
            answer.times += [now] * len(delta.token_ids)
            answer.done = delta.finish_reason is not None
        if not deltas and self.core.is_idle:
            self._woken.wait(IDLE_WAIT)

    def run(
        self, requests: Iterable[tuple[Sequence[int], int, AdapterRef | None]], grammar: Grammar | None = None
    ) -> list[Answer]:
        """Submit all at once, all held to one grammar, run to the end, and return the answers in order."""
        names = [self.submit(*request, grammar) for request in requests]
        self.settle()
        return [self.answers.pop(name) for name in names]

    def ready(self, adapters: Iterable[AdapterRef]) -> None:
        """Have these in device memory, as far as the budget goes: a short request ran under each."""
        self.run([(self.tokens(2), 1, adapter) for adapter in adapters])

    @property
    def loads(self) -> Loads:
        """All loads so far."""
        stats = self.core.stats()
        return Loads(stats.adapter_loads - stats.adapter_loads_from_host, stats.adapter_loads_from_host)

    def evict(self, adapters: Iterable[AdapterRef]) -> None:
        """Have these in host memory only."""
        for adapter in adapters:
            self.core.evict_adapter(adapter.digest)
        self.core.step()

    def drop(self, adapters: Iterable[AdapterRef]) -> None:
        """Have these in the store only."""
        for adapter in adapters:
            self.core.unload_adapter(adapter.digest)
        self.core.step()

    def settle(self) -> None:
        """Step until every request is answered."""
        while self.core.has_work:
            self.step()

    def make_known(self, adapters: Sequence[AdapterRef]) -> None:
        """Have the engine read and check these, as it does when adapters are added."""
        self._read.clear()
        for adapter in adapters:
            self.core.load_adapter(adapter)
        while not all(adapter.digest in self._read for adapter in adapters):
            self.step()

    # -- single steps ----------------------------------------------------------------------------------

    def decoder(self, rows: int, context: int, adapters: Sequence[AdapterRef | None]) -> Callable[[], object]:
        """A step of `rows` sequences with `context` tokens each; row i runs under adapters[i % len]."""
        blocks = -(-(context + 1) // self.info.block_size)
        if rows * blocks > self.info.num_blocks:
            raise BenchFailed(f"{rows} sequences of {context} tokens don't fit the {self.info.num_blocks} KV blocks")
        slices = [
            self._slice(
                f"row-{row}", self.tokens(1), context, row * blocks, blocks, adapters[row % len(adapters)], True
            )
            for row in range(rows)
        ]
        plan = StepPlan(tuple(slices))
        return lambda: self.runner.execute(plan)

    def reader(self, tokens: int, adapter: AdapterRef | None) -> Callable[[], object]:
        """All steps of one prompt of `tokens`, each of as many tokens as the engine takes at a time."""
        chunk = self.info.max_batch_tokens
        blocks = -(-tokens // self.info.block_size)
        plans = []
        for start in range(0, tokens, chunk):
            count = min(chunk, tokens - start)
            last = start + count == tokens
            plans.append(StepPlan((self._slice("prompt", self.tokens(count), start, 0, blocks, adapter, last),)))

        def read() -> None:
            for plan in plans:
                self.runner.execute(plan)

        return read

    def _slice(
        self,
        name: str,
        tokens: Sequence[int],
        start: int,
        first_block: int,
        blocks: int,
        adapter: AdapterRef | None,
        sampled: bool,
    ) -> SequenceSlice:
        return SequenceSlice(
            request_id=name,
            token_ids=tuple(tokens),
            start=start,
            block_table=tuple(range(first_block, first_block + blocks)),
            adapter=adapter.digest if adapter else None,
            samples=(GREEDY,) if sampled else (),
        )


def reference(folder: Path) -> AdapterRef:
    """An adapter's directory as the engine is asked for it."""
    return AdapterRef.of(read_manifest(folder).digest, str(folder))
