"""Executes step plans on one device: weights, KV tensors and the adapter bank live here, policy doesn't.

A step's sequences are flattened into one row of tokens, ordered by adapter so that each adapter's rows are one
contiguous segment in every linear module.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from livery.engine.arena import Arena, arena_for
from livery.engine.attention import AttentionBatch, LayerCache
from livery.engine.base import CANARY, AdapterRef, EngineConfig, EngineInfo, ModelRefused
from livery.engine.decoder.fused import FusedDecoder
from livery.engine.decoder.parts import NotRecognised, recognise
from livery.engine.devices import choose, load_chosen, out_of_memory
from livery.engine.graphs import DecodeGraphs
from livery.engine.images import AdapterImage, image_of
from livery.engine.kernels import Kernels, load_sums, not_compiled, use_threads_here
from livery.engine.lora.bank import AdapterBank, GroupLayout, PackedAdapter, pack, tables_of
from livery.engine.lora.embedding import AdapterEmbedding, attach_embeddings
from livery.engine.lora.experts import attach_experts
from livery.engine.lora.holding import WeightHolder
from livery.engine.lora.linear import GroupedLinear, attach_linears, grouped_modules, layouts_of
from livery.engine.lora.parts import Packer
from livery.engine.lora.plain import attach_plain
from livery.engine.memory import plan_memory
from livery.engine.model import CANARY_LENGTHS, Canary, LoadedModel, Progress, load_model, prepare, verify
from livery.engine.pending import PendingStep
from livery.engine.plan import SampleSpec, SequenceSlice, StepPlan, StepResult
from livery.engine.pooling import PooledRows, pool
from livery.engine.quantized import QuantizedLinear
from livery.engine.reading import AdapterReader, HeldWeights
from livery.engine.rope import choice_for
from livery.engine.rows import StepRows, Widths
from livery.engine.step_size import chosen_batch_tokens
from livery.engine.threads import choose_threads
from livery.host import cores
from livery_adapters.base_model import BaseModel
from livery_adapters.canonical import CanonicalAdapter
from livery_adapters.effect import AdapterEffect

MOST_RECORDED_ROWS = 256  # sequences decoding together; steps of more are launched kernel by kernel
# Rows that a step computes in little more time than one: up to these, drafts cost next to nothing.
DRAFT_ROWS = {"cpu": 8, "cuda": 64}
RUNNING_S = 1.0  # how long after a step more of them are to be expected

log = logging.getLogger(__name__)


class ModelRunner:
    """One base model on one device, any number of adapters."""

    def __init__(self, config: EngineConfig, progress: Progress) -> None:
        """Load and prove the model. Raises ModelRefused."""
        self._compute = compute = choose(config)
        self._threads = config.threads or cores()
        self._stepped = 0.0  # when somebody's request was last computed
        self._device, self._dtype = compute.device, compute.dtype
        self._deterministic = config.deterministic
        self._tokenizer = Path(config.model_path) / "tokenizer.json"
        if self._device.type == "cpu":
            torch.set_num_threads(self._threads)
        progress("preparing kernels (compiled on first use)")
        self._kernels = load_chosen(config, compute)
        progress(f"loading {Path(config.model_path).name} on {self._device} as {compute.dtype_name}")
        # Whether the next decoding step is launched before the last one's tokens are looked at.
        self.overlaps = config.overlap == "on" or (config.overlap == "auto" and self._device.type == "cuda")
        try:
            loaded = load_model(config, self._device, self._dtype)
            self.info = self._prove(config, loaded, progress)
        except torch.OutOfMemoryError as error:
            raise out_of_memory(config, self._device, error) from error

    def _prove(self, config: EngineConfig, loaded: LoadedModel, progress: Progress) -> EngineInfo:
        """Build, and say what fails as a refusal of the model. Raises ModelRefused, torch.OutOfMemoryError."""
        try:
            return self._build(config, loaded, progress)
        except torch.OutOfMemoryError:
            raise
        except not_compiled() as error:
            raise ModelRefused(
                f"the kernels for {self._device} can't be compiled here, where {loaded.architecture} first needed "
                f"them: {error!r}; --kernels torch computes without them, slower"
            ) from error
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise ModelRefused(
                f"{loaded.architecture} can't be served: it failed the check at start with {error!r}"
            ) from error

    def _build(self, config: EngineConfig, loaded: LoadedModel, progress: Progress) -> EngineInfo:
        """Size the caches, put adapter-aware modules in, and compare with the plain forward."""
        kv = loaded.structure.kv
        per_token = sum(shape.bytes_per_token(self._dtype.itemsize) for shape in kv)
        least = sum(CANARY_LENGTHS) + 2 * config.block_size
        memory = plan_memory(config, self._device, per_token, loaded.trained_len, least)
        layouts = layouts_of(loaded.structure)
        holder = WeightHolder(self._kernels, self._compute.weights)
        head = next((index for index, layout in enumerate(layouts) if layout.is_head), None)
        holder.round(grouped_modules(loaded.model, layouts), head)
        progress("checking the paged forward against the plain one")
        if not config.max_model_len and (choice := choice_for(loaded.model, memory.max_model_len)):
            log.warning(
                "%s, as the longest sequence is %d tokens, by the memory that is free now: with another length the "
                "same prompts get other answers; --max-model-len %d keeps it",
                *(choice, memory.max_model_len, memory.max_model_len),
            )
        canary, rope = prepare(loaded, memory.max_model_len)
        self._model: Any = loaded.model
        self._backbone = loaded.model.get_submodule(loaded.structure.shapes.backbone)
        self._pooled: list[PooledRows] = []  # of the step being launched
        self._widths: Widths | None = None  # likewise, where its rows have different vocabularies
        self._vocabulary = layouts[head].columns[-1].stop if head is not None else loaded.vocab_size
        self._attach(loaded, layouts, holder)
        log.info("weights of linear modules: %s", holder.describe())
        self._block_size = config.block_size
        self._graphs: DecodeGraphs | None = None
        self._incoming: tuple[Tensor, Tensor] | None = None  # unknown tokens of the step being launched, and where
        with_graphs = self._with_graphs(config)
        blocks = memory.num_blocks + with_graphs  # recorded steps write rows that fill them up to a block of their own
        self._caches = [LayerCache.empty(blocks, config.block_size, shape, self._dtype, self._device) for shape in kv]
        base = BaseModel(Path(config.model_path).name, config.base_digest, loaded.structure.shapes)
        self._arena = arena_for(self._device, memory.adapter_bytes)
        self._reader = AdapterReader(base, self._weights, self.pack, load_sums(self._compute.kernels))
        decoder = self._choose_decoder(config, loaded, canary, memory.max_model_len, progress)
        threads = self._choose_threads(config.threads, canary.sequences[0])
        if with_graphs:
            self._graphs = self._record_graphs(config, memory.max_model_len, loaded, canary, progress)
        chosen = chosen_batch_tokens(config.max_running, on_cpu=self._device.type == "cpu")
        max_batch_tokens = config.max_batch_tokens or chosen
        return EngineInfo(
            architecture=loaded.architecture,
            base_digest=config.base_digest,
            device=str(self._device),
            dtype=self._compute.dtype_name,
            attention=f"paged, {self._kernels.name}, RoPE {rope}",
            kernels=self._kernels.name,
            vocab_size=loaded.vocab_size,
            max_model_len=memory.max_model_len,
            eos_token_ids=loaded.eos_token_ids,
            block_size=config.block_size,
            num_blocks=memory.num_blocks,
            max_batch_tokens=max_batch_tokens,
            max_running=min(config.max_running, max_batch_tokens),
            adapter_memory_bytes=memory.adapter_bytes,
            host_adapter_memory_bytes=memory.host_adapter_bytes,
            weight_bytes=self._weight_bytes(),
            shapes=loaded.structure.shapes,
            rope=rope,
            prefix_cache=config.prefix_cache,
            speculate=config.speculate,
            draft_rows=DRAFT_ROWS[self._device.type] if config.speculate else 0,
            decoder=decoder,
            weights=holder.describe(),
            threads=threads,
            pad_token_id=loaded.pad_token_id,
        )

    def _choose_threads(self, asked: int, ids: Sequence[int]) -> int:
        """Threads of this thread's steps on a CPU, 0 elsewhere. `ids` is a sequence that fills the first blocks."""
        if self._device.type != "cpu" or asked:
            return asked if self._device.type == "cpu" else 0
        table = tuple(range(-(-len(ids) // self._block_size)))

        def step(start: int) -> Tensor:
            return self.forward([SequenceSlice("threads", tuple(ids[start:]), start, table, None, (_GREEDY,))])

        threads, why = choose_threads(cores(), [lambda: step(0), lambda: step(len(ids) - 1)])
        log.info("threads: %d, %s", threads, why)
        return threads

    def _attach(self, loaded: LoadedModel, layouts: tuple[GroupLayout, ...], holder: WeightHolder) -> None:
        """Let every module that adapters may change apply those of its rows."""
        structure = loaded.structure
        tables = tables_of(layouts, self._device) if self._kernels.reads_tables else None
        self._bank = bank = AdapterBank(layouts, tables, one_by_one=self._deterministic)
        linears = attach_linears(loaded.model, bank, self._kernels, holder)
        attach_embeddings(loaded.model, structure, bank, linears)
        attach_plain(loaded.model, structure.shapes.plain, bank)
        attach_experts(loaded.model, structure.shapes.experts, bank)
        self._weights = HeldWeights(loaded.model, structure.shapes, linears)

    @property
    def kernels(self) -> Kernels:
        """What everything is computed with."""
        return self._kernels

    def _choose_decoder(
        self, config: EngineConfig, loaded: LoadedModel, canary: Canary, max_model_len: int, progress: Progress
    ) -> str:
        """The fused forward where the model is recognised and it proves right, else transformers' own. Its name."""
        self._decoder: FusedDecoder | None = None
        why = "--decoder transformers asks for it"
        if config.decoder == "auto":
            try:
                parts = recognise(loaded.model, loaded.structure, max_model_len, self._dtype)
                self._decoder = FusedDecoder(parts, self._bank, self._kernels, self._caches)
                verify(loaded, canary, self._canary_logits(canary.sequences))
                return "fused"
            except (NotRecognised, ModelRefused) as reason:
                why = str(reason)
                self._decoder = None
        if config.deterministic:
            raise ModelRefused(
                f"--deterministic needs the fused decoder, and {loaded.architecture} runs by its own forward: {why}; "
                f"serve a model of the Llama, Mistral, Qwen2 or Qwen3 architecture, or leave --deterministic out"
            )
        progress(f"computing with transformers' own forward, not with the fused one: {why}")
        verify(loaded, canary, self._canary_logits(canary.sequences))
        return "transformers"

    def _with_graphs(self, config: EngineConfig) -> bool:
        """Whether decoding steps are recorded: with kernels that read a step's adapters on the device."""
        if config.graphs == "auto":
            return self._device.type == "cuda" and self._kernels.reads_tables
        if config.graphs == "on" and not self._kernels.reads_tables:
            raise ModelRefused(f"--graphs on needs Triton's kernels, and {self._kernels.name} ones compute here")
        return config.graphs == "on"

    def _record_graphs(
        self, config: EngineConfig, max_model_len: int, loaded: LoadedModel, canary: Canary, progress: Progress
    ) -> DecodeGraphs | None:
        """Recorded decoding steps that give the plain forward's logits, or None where the model can't be recorded."""
        graphs = DecodeGraphs(
            self._compute_rows,
            self._bank,
            self._caches,
            self._kernels,
            max_rows=min(config.max_running, MOST_RECORDED_ROWS),
            max_model_len=max_model_len,
            device=self._device,
        )
        unrecordable: tuple[type[Exception], ...] = (ModelRefused, RuntimeError, *not_compiled())
        try:
            graphs.record(progress)
            self._graphs = graphs
            verify(loaded, canary, self._canary_logits(canary.sequences))
        except unrecordable as reason:
            progress(f"decoding steps are launched one kernel at a time, as this model can't be recorded: {reason}")
            return None
        return graphs

    # -- adapters ------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def tokenizer(self) -> Path:
        """Where the model's `tokenizer.json` is, if it has one."""
        return self._tokenizer

    @property
    def weights(self) -> HeldWeights:
        """The base's weights, as conversions and merges ask for them."""
        return self._weights

    @property
    def arena(self) -> Arena | None:
        """Device memory for adapters; None where the device computes on host memory, and so on images."""
        return self._arena

    def read_adapter(self, adapter: AdapterRef) -> AdapterImage:
        """Read, check, measure and pack a version into host memory, on the loader's thread.

        Touches nothing that the step loop writes.
        On one core while requests are computed, whose steps want all of them, and on all where none are.
        Raises livery_adapters.refusal.AdapterRefused, or OSError when the files are gone.
        """
        running = time.monotonic() - self._stepped < RUNNING_S
        use_threads_here(1 if running else self._threads)
        return self._reader.read(adapter)

    def effect(self, digest: str) -> AdapterEffect:
        """What an installed version does to the base."""
        return self._bank.effect(digest)

    def install(self, adapter: PackedAdapter) -> None:
        """Apply a version to its requests' rows from now on; its weights are on the device, or on their way."""
        self._bank.install(adapter)

    def evict(self, digest: str) -> None:
        self._bank.evict(digest)

    def pack(self, adapter: CanonicalAdapter, effect: AdapterEffect) -> AdapterImage:
        """Lay an adapter out in host memory. For any thread."""
        packer = Packer(torch.device("cpu"), self._dtype, self._kernels)
        packed = pack(adapter, effect, self._bank.layouts, packer, self._weights.bias)
        paths = [layout.members[0] for layout in self._bank.layouts]
        return image_of(packed, paths=paths, pinned=self._device.type == "cuda")

    # -- steps ---------------------------------------------------------------------------------------

    def execute(self, plan: StepPlan) -> StepResult:
        """Compute a plan's tokens and choose the one after each sampled row."""
        return self.launch(plan).result()

    @torch.inference_mode()
    def launch(self, plan: StepPlan, after: PendingStep | None = None) -> PendingStep:
        """Begin a step; what it chooses can be waited for. Unknown tokens of the plan are what `after` chooses.

        A step launched on another one's tokens chooses its own when it is told to: masks need those tokens.
        """
        slices = sorted(plan.slices, key=lambda part: part.adapter or "")
        if not all(part.request_id.startswith(CANARY) for part in slices):
            self._stepped = time.monotonic()
        self._incoming = after.tokens_of(slices) if after is not None else None
        logits = self.forward(slices)
        step = PendingStep(slices, logits, self._graphs is not None, self._deterministic, self._pooled, self._widths)
        return step if after is not None else step.chosen()

    @torch.inference_mode()
    def forward(self, slices: Sequence[SequenceSlice]) -> Tensor:
        """Logits of the slices' sampled rows in order and then of their scored rows, [rows (at least 1), vocabulary].

        Wider where an adapter has tokens of its own: those of others, at minus infinity.
        Slices of one adapter are best neighbours: their rows are one segment then.
        """
        self._pooled, self._widths = [], None
        if self._graphs is not None and (replayed := self._graphs.run(slices, self._incoming)) is not None:
            return replayed
        rows = StepRows.of(slices)
        device = self._device
        self._bank.activate(rows.segments, rows.head_segments)
        batch = AttentionBatch.of(slices, self._caches, self._kernels, self._block_size, device)
        ids, places = torch.tensor(rows.tokens, device=device), torch.tensor(rows.positions, device=device)
        if self._incoming is not None:  # steps with unknown tokens have one row per sequence
            ids.index_copy_(0, *self._incoming)
        logits, hidden = self._states(ids, places, torch.tensor(rows.kept or [0], device=device), batch)
        self._pooled = pool(slices, hidden, self._bank.head)
        if logits.shape[-1] == self._vocabulary:
            return logits
        self._widths = Widths(self._vocabulary, tuple(self._bank.widths(self._vocabulary, len(logits))))
        return self._widths.bounded(logits)

    def _compute_rows(self, ids: Tensor, places: Tensor, kept_rows: Tensor, batch: AttentionBatch) -> Tensor:
        """Logits of the kept rows for token ids and positions, int64 [rows] each; the bank has the step's adapters."""
        return self._states(ids, places, kept_rows, batch)[0]

    def _states(self, ids: Tensor, places: Tensor, kept_rows: Tensor, batch: AttentionBatch) -> tuple[Tensor, Tensor]:
        """Logits of the kept rows, [kept, vocabulary], and the state after the final norm of all, [rows, hidden]."""
        if self._decoder is not None:
            hidden = self._decoder.hidden(ids, places, batch)
            return self._decoder.logits(hidden[kept_rows]), hidden
        seen: list[Tensor] = []
        hook = self._backbone.register_forward_hook(lambda *called: seen.append(called[-1][0]))
        try:
            output = self._model(
                input_ids=ids[None], position_ids=places[None], use_cache=False, logits_to_keep=kept_rows, livery=batch
            )
        finally:
            hook.remove()
        return output.logits[0], seen[0][0]

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
            return SequenceSlice(str(which), ids, start, tables[which], None, (_GREEDY,))

        self.forward([part(0, 0, cut)])
        other = self.forward([part(0, cut, last), part(1, 0, len(second))])[1]
        return torch.stack([self.forward([part(0, last, len(first))])[0], other])

    def _weight_bytes(self) -> int:
        """Bytes of everything the base model keeps, each weight counted once however many modules share it."""
        held = {weight.data_ptr(): weight.nbytes for weight in self._model.parameters()}
        kinds = GroupedLinear | AdapterEmbedding | QuantizedLinear
        modules = [module for module in self._model.modules() if isinstance(module, kinds)]
        held |= {id(module.held): module.held.nbytes for module in modules}
        return sum(held.values())


_GREEDY = SampleSpec(temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, draw=0.0)
