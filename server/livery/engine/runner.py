"""Executes step plans on one device: weights, KV tensors and the adapter bank live here, policy doesn't.

A step's sequences are flattened into one row of tokens, ordered by adapter so that each adapter's rows are one
contiguous segment in every linear module.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from livery.engine.attention import AttentionBatch, LayerCache
from livery.engine.base import AdapterRef, EngineConfig, EngineInfo, ModelRefused
from livery.engine.kernels import load as load_kernels
from livery.engine.lora.bank import AdapterBank, PackedAdapter, Segment, pack
from livery.engine.lora.linear import AdapterEmbedding, GroupedLinear, attach, layouts_of
from livery.engine.model import Progress, load_model, verify
from livery.engine.plan import SampleSpec, SequenceSlice, StepPlan, StepResult
from livery.engine.sampler import NOT_FINITE, sample
from livery_adapters.base_model import BaseModel
from livery_adapters.formats import convert
from livery_adapters.manifest import check_against, read_manifest

GIB = 1 << 30


class ModelRunner:
    """One base model on one device, any number of adapters."""

    def __init__(self, config: EngineConfig, progress: Progress) -> None:
        """Load and prove the model. Raises ModelRefused."""
        self._device = _device(config)
        dtype = _dtype(config, self._device)
        if self._device.type == "cpu":
            torch.set_num_threads(config.threads or _cores())
        progress(f"loading {Path(config.model_path).name} on {self._device} as {_name(dtype)}")
        loaded = load_model(config, self._device, dtype)
        progress("preparing kernels (compiled on first use)")
        self._kernels = load_kernels(
            "torch" if self._device.type != "cpu" or dtype != torch.float32 else config.kernels
        )
        self._model: Any = loaded.model
        self._bank = AdapterBank(layouts_of(loaded.structure))
        self._linears = attach(loaded.model, loaded.structure, self._bank, self._kernels)
        self._block_size = config.block_size
        kv_bytes = config.kv_memory_bytes or _default_kv_bytes(self._device)
        per_block = config.block_size * sum(shape.bytes_per_token(dtype.itemsize) for shape in loaded.structure.kv)
        num_blocks = kv_bytes // per_block
        max_model_len = min(loaded.max_model_len, num_blocks * config.block_size)
        if config.max_model_len > max_model_len:
            raise ModelRefused(
                f"max_model_len {config.max_model_len} is more than the {max_model_len} tokens that the model and "
                f"{kv_bytes / GIB:.1f} GiB of KV memory allow; lower it or raise the KV memory"
            )
        self._caches = [
            LayerCache.empty(num_blocks, config.block_size, shape, dtype, self._device) for shape in loaded.structure.kv
        ]
        max_batch_tokens = config.max_batch_tokens or (256 if self._device.type == "cpu" else 2048)
        self._base = BaseModel(Path(config.model_path).name, config.base_digest, loaded.structure.modules)
        progress("checking the paged forward against the plain one")
        verify(loaded, self._canary_logits(loaded.canary.sequences))
        self.info = EngineInfo(
            architecture=loaded.architecture,
            base_digest=config.base_digest,
            device=str(self._device),
            dtype=_name(dtype),
            attention=f"paged, {self._kernels.name}, RoPE {loaded.rope}",
            kernels=self._kernels.name,
            vocab_size=loaded.vocab_size,
            max_model_len=max_model_len,
            eos_token_ids=loaded.eos_token_ids,
            block_size=config.block_size,
            num_blocks=num_blocks,
            max_batch_tokens=max_batch_tokens,
            max_running=min(config.max_running, max_batch_tokens),  # every running sequence gets a token a step
            adapter_memory_bytes=config.adapter_memory_bytes or kv_bytes // 2,
            weight_bytes=self._weight_bytes(),
            modules=dict(loaded.structure.modules),
        )

    # -- adapters ------------------------------------------------------------------------------------

    def read_adapter(self, adapter: AdapterRef) -> PackedAdapter:
        """Read, check and pack a version. Runs on the loader's thread; touches nothing the step loop writes.

        Raises livery_adapters.manifest.AdapterRefused, or OSError when the files are gone.
        """
        path = Path(adapter.path)
        manifest = read_manifest(path)
        check_against(manifest, self._base)
        canonical = convert(path, manifest, self)
        return pack(canonical, self._bank.layouts, self._device, half_on_device=self._device.type != "cpu")

    def install(self, adapter: PackedAdapter) -> None:
        self._bank.install(adapter)

    def evict(self, digest: str) -> None:
        self._bank.evict(digest)

    def weight(self, module: str) -> Tensor:
        """The base weight of a module, as BaseWeights asks for it."""
        if module in self._linears:
            return self._linears[module].weight
        weight = self._model.get_submodule(module).weight
        assert isinstance(weight, Tensor)
        return weight

    # -- steps ---------------------------------------------------------------------------------------

    def execute(self, plan: StepPlan) -> StepResult:
        """Compute a plan's tokens and choose the next one of each sampled sequence."""
        slices = sorted(plan.slices, key=lambda part: part.adapter or "")
        sampled = [part for part in slices if part.sample is not None]
        logits = self.forward(slices)
        chosen = sample(logits[: len(sampled)], [part.sample for part in sampled if part.sample is not None])
        tokens, failed = {}, {}
        for part, token in zip(sampled, chosen, strict=True):
            if token is None:
                failed[part.request_id] = NOT_FINITE
            else:
                tokens[part.request_id] = token
        return StepResult(tokens, failed)

    @torch.inference_mode()
    def forward(self, slices: Sequence[SequenceSlice]) -> Tensor:
        """Logits of the sampled slices' last rows, [sampled (at least 1), vocabulary].

        Slices of one adapter must be neighbours.
        """
        tokens: list[int] = []
        positions: list[int] = []
        kept: list[int] = []
        rows: list[Segment] = []
        head_rows: list[Segment] = []
        for part in slices:
            first, first_kept = len(tokens), len(kept)
            tokens += part.token_ids
            positions += range(part.start, part.start + len(part.token_ids))
            if part.sample is not None:
                kept.append(len(tokens) - 1)
            if part.adapter is not None:
                _extend(rows, part.adapter, first, len(tokens))
                _extend(head_rows, part.adapter, first_kept, len(kept))
        device = self._device
        self._bank.activate(rows, head_rows)
        batch = AttentionBatch.of(slices, self._caches, self._kernels, self._block_size, device)
        output = self._model(
            input_ids=torch.tensor([tokens], device=device),
            position_ids=torch.tensor([positions], device=device),
            use_cache=False,
            logits_to_keep=torch.tensor(kept or [0], device=device),
            livery=batch,
        )
        logits: Tensor = output.logits[0]
        return logits

    # -- inside --------------------------------------------------------------------------------------

    def _canary_logits(self, sequences: Sequence[list[int]]) -> Tensor:
        """The canary through the paged path: the first sequence in three chunks, the second beside one of them."""
        tables, used = [], 0
        for ids in sequences:
            count = -(-len(ids) // self._block_size)
            tables.append(tuple(range(used, used + count)))
            used += count
        first, second = sequences
        cut, last = len(first) // 2, len(first) - 1

        def part(which: int, start: int, end: int) -> SequenceSlice:
            ids = tuple(sequences[which][start:end])
            return SequenceSlice(str(which), ids, start, tables[which], None, _GREEDY)

        self.forward([part(0, 0, cut)])
        other = self.forward([part(0, cut, last), part(1, 0, len(second))])[1]
        return torch.stack([self.forward([part(0, last, len(first))])[0], other])

    def _weight_bytes(self) -> int:
        """Bytes of everything the base model keeps, each weight counted once however many modules share it."""
        held = {weight.data_ptr(): weight.nbytes for weight in self._model.parameters()}
        modules = [module for module in self._model.modules() if isinstance(module, GroupedLinear | AdapterEmbedding)]
        held |= {id(module.held): module.held.nbytes for module in modules}
        return sum(held.values())


_GREEDY = SampleSpec(temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, draw=0.0)


def _extend(segments: list[Segment], digest: str, start: int, end: int) -> None:
    """Append rows of an adapter; slices come ordered by adapter, so its rows grow into one segment."""
    if start == end:
        return
    if segments and segments[-1].digest == digest and segments[-1].end == start:
        start = segments.pop().start
    segments.append(Segment(digest, start, end))


def _cores() -> int:
    """The cores this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _device(config: EngineConfig) -> torch.device:
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(config.device)
    except RuntimeError as error:
        raise ModelRefused(f"device {config.device!r} is unknown to torch; use auto, cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelRefused(f"device {config.device!r} was asked for, but torch finds no CUDA device; use cpu or auto")
    return device


def _dtype(config: EngineConfig, device: torch.device) -> torch.dtype:
    if config.dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if config.dtype not in names:
        raise ModelRefused(f"dtype {config.dtype!r} is not supported; use auto, {' or '.join(names)}")
    return names[config.dtype]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _default_kv_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free * 0.7)
    pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(GIB, pages // 4)
