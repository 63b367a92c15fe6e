"""PEFT and transformers as the judge of what the engine computes.

An adapter here always has random weights that visibly move the base's output, or a test with it would prove
nothing. `Bench` runs requests through the real scheduler and runner, forced into small chunks and few blocks,
and keeps the logits behind every token.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from livery.engine.arena import Arena
from livery.engine.base import AdapterRef, EngineConfig, GenerationRequest, Pooling, SamplingParams, TokenDelta
from livery.engine.core import EngineCore
from livery.engine.images import AdapterImage
from livery.engine.plan import SequenceSlice
from livery.engine.rope import freeze_rope
from livery.engine.runner import ModelRunner
from livery_adapters.canonical import CanonicalAdapter
from livery_adapters.effect import AdapterEffect
from livery_adapters.manifest import read_manifest

TOLERANCE = 1e-4  # max |Δ| / max |logit|
VISIBLE = 1e-2  # an adapter must move the base's logits by more than this, relative
KV_BYTES = 128 << 20  # unless told otherwise: zeroing the usual gigabyte takes longer than most tests
IDLE_WAIT_S = 0.05  # at most, for what is done beside the step loop
GAP = 1e-3  # greedy tokens must agree where the top two logits are further apart than this


def load_base(path: Path, max_model_len: int) -> Any:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    freeze_rope(model, max_model_len)
    return model


def save_adapter(base: Path, folder: Path, seed: int, config: LoraConfig, std: float = 0.3) -> Path:
    """Save a PEFT adapter with random non-zero weights."""
    torch.manual_seed(seed)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=std)
    model.save_pretrained(folder)
    return folder


def save_tuned(base: Path, folder: Path, seed: int, config: PeftConfig, std: float = 0.3) -> Path:
    """Save an adapter of any PEFT type whose trainable parameters all moved at random."""
    torch.manual_seed(seed)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += torch.randn_like(weight) * std
    model.save_pretrained(folder)
    return folder


def save_grown(base: Path, folder: Path, seed: int, config: PeftConfig, rows: int, **saving: Any) -> Path:
    """Save an adapter trained on a vocabulary of so many rows, every trainable parameter moved at random."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.resize_token_embeddings(rows)
    tuned = get_peft_model(model, config)
    with torch.no_grad():
        for weight in tuned.parameters():
            if weight.requires_grad:
                weight += torch.randn_like(weight) * 0.3
    tuned.save_pretrained(folder, **saving)
    return folder


def ref(folder: Path, added_tokens: int = 0) -> AdapterRef:
    return AdapterRef.of(read_manifest(folder).digest, str(folder), added_tokens)


@dataclass
class Recorded:
    tokens: list[int] = field(default_factory=list)
    logits: dict[int, Tensor] = field(default_factory=dict)  # position of the newest token -> logits after it
    finish: str | None = None
    error: str | None = None
    read: int = 0  # prompt tokens that the last delta of one that failed tells
    cached: int = 0  # prompt tokens found in the prefix cache
    pooled: Tensor | None = None  # the vector of a pooled request


class RecordingRunner(ModelRunner):
    """The real runner, remembering the logits it sampled from, and taking adapters in canonical form as well."""

    def __init__(self, config: EngineConfig) -> None:
        self.seen: dict[tuple[str, int], Tensor] = {}
        self.by_hand: dict[str, CanonicalAdapter] = {}  # by digest, instead of files
        super().__init__(config, lambda _: None)

    def read_adapter(self, adapter: AdapterRef) -> AdapterImage:
        if adapter.digest in self.by_hand:
            return self.pack(self.by_hand[adapter.digest], AdapterEffect({}, 0))
        return super().read_adapter(adapter)

    def forward(self, slices: Sequence[SequenceSlice]) -> Tensor:
        logits = super().forward(slices)
        ends = [(part, part.start + len(part.token_ids)) for part in slices]
        sampled = [(part.request_id, at) for part, end in ends for at in range(end - len(part.samples), end)]
        for key, row in zip(sampled, logits, strict=False):
            self.seen[key] = row.float().clone()
        return logits


class Bench:
    """An engine core in this process, driven to the end by hand."""

    def __init__(self, config: EngineConfig, arena: Callable[[int, torch.device], Arena] | None = None) -> None:
        """`arena`: compute adapters from device memory of their own instead of from their images."""
        if not config.kv_memory_bytes:
            config = msgspec.structs.replace(config, kv_memory_bytes=KV_BYTES)
        self.runner = RecordingRunner(config)
        if arena is not None:
            self.runner._arena = arena(config.adapter_memory_bytes, self.runner.device)
        self.runner.seen.clear()  # the load-time canary ran too
        self._woken = threading.Event()
        self.core = EngineCore(self.runner, self._woken.set)
        self.results: dict[str, Recorded] = {}

    def add(
        self,
        name: str,
        prompt: list[int],
        adapter: AdapterRef | None,
        max_tokens: int,
        *,
        adapter_start: int = 0,
        **sampling: Any,
    ) -> None:
        params = SamplingParams(max_tokens=max_tokens, **{"temperature": 0.0, "ignore_eos": True, **sampling})
        self.results[name] = Recorded()
        self.core.add(GenerationRequest(name, prompt, params, adapter, adapter_start))

    def pool(self, name: str, prompt: list[int], adapter: AdapterRef | None, pooling: Pooling) -> None:
        """Ask for a vector in place of tokens."""
        self.results[name] = Recorded()
        self.core.add(GenerationRequest(name, prompt, SamplingParams(max_tokens=1), adapter, pooling=pooling))

    def step(self) -> list[TokenDelta]:
        """One step; where only what runs beside the loop can change anything, the core is left to that."""
        self._woken.clear()
        deltas = self.core.step()
        for delta in deltas:
            result = self.results[delta.request_id]
            result.tokens += delta.token_ids
            result.finish, result.error = delta.finish_reason, delta.error
            result.read = delta.prompt_tokens
            result.cached += delta.cached_tokens
            if delta.pooled:
                result.pooled = torch.frombuffer(bytearray(delta.pooled), dtype=torch.float32)
        if not deltas and self.core.is_idle:
            self._woken.wait(IDLE_WAIT_S)
        return deltas

    def run(self) -> dict[str, Recorded]:
        while self.core.has_work:
            self.step()
            self.core.check_invariants()
        for (name, position), logits in self.runner.seen.items():
            self.results[name].logits[position] = logits
        return self.results


class Oracle:
    """transformers and PEFT on one sequence alone."""

    def __init__(self, base: Path, max_model_len: int) -> None:
        self._base = base
        self._max_model_len = max_model_len
        self._models: dict[Path | None, Any] = {None: load_base(base, max_model_len)}
        self.rows: dict[Path, int] = {}  # of an adapter's vocabulary, where it isn't the base's

    def logits(self, tokens: list[int], adapter: Path | None) -> Tensor:
        """[tokens, vocabulary]"""
        if adapter not in self._models:
            assert adapter is not None
            base = load_base(self._base, self._max_model_len)
            if adapter in self.rows:
                base.resize_token_embeddings(self.rows[adapter], mean_resizing=False)
            model = PeftModel.from_pretrained(base, adapter)
            self._models[adapter] = model.eval()
        with torch.no_grad():
            logits: Tensor = self._models[adapter](torch.tensor([tokens]), use_cache=False).logits[0]
        return logits

    def assert_visible(self, prompt: list[int], adapter: Path) -> None:
        base, adapted = self.logits(prompt, None), self.logits(prompt, adapter)
        adapted = adapted[:, : base.shape[1]]
        moved = float((adapted - base).abs().max() / base.abs().max())
        assert moved > VISIBLE, f"{adapter.name} hardly moves the base ({moved:.1e}); the test would prove nothing"

    def assert_same(self, prompt: list[int], result: Recorded, adapter: Path | None, count: int) -> None:
        """All `count` tokens' logits as PEFT computes them for this request alone, and greedy choices equal."""
        assert result.error is None, result.error
        assert (len(result.tokens), result.finish) == (count, "length")
        expected = self.logits(prompt + result.tokens, adapter)
        scale = expected.abs().max()
        for index, token in enumerate(result.tokens):
            position = len(prompt) - 1 + index
            error = float((result.logits[position] - expected[position]).abs().max() / scale)
            assert error < TOLERANCE, f"token {index}: logits differ by {error:.1e}"
            best = expected[position].topk(2)
            if float(best.values[0] - best.values[1]) > GAP:
                assert token == int(best.indices[0]), f"token {index} differs"
