"""Decoding steps recorded once as CUDA graphs and replayed: one launch in place of a thousand.

A recorded step reads all that changes from one step to the next from memory that stays where it is: tokens,
positions, slots, block tables, and the table that says which rows run under which adapter. So there is one graph per
batch size, for any mix of adapters, and one for batches without any. Batches are filled up to the next size with
rows that see nothing and write to a block that is nobody's.

On a device without graphs a recorded step is the function itself, called again: the same code, tested on any CPU.
"""

from __future__ import annotations

import bisect
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from livery.engine.attention import AttentionBatch, LayerCache
from livery.engine.kernels import Kernels
from livery.engine.kernels.tables import FEW_ROWS, MANY_ROWS, AdapterRecord, StepTable, table_words
from livery.engine.lora.bank import AdapterBank
from livery.engine.plan import SequenceSlice

SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
MOST_RANK = 1024  # of an adapter in one projection group, all members together; beyond it steps aren't replayed
FIELDS = 4  # per row: token, position, slot, context length
# Tables of prompts' adapters that come to each of the plans a launch may have, so that all are compiled at start.
PROMPT_TILES, PROMPT_RANK = (16, 32, 64, 128, 256), 64
MIB = 1 << 20

Compute = Callable[[Tensor, Tensor, Tensor, AttentionBatch], Tensor]
Rows = list[tuple[int, int, AdapterRecord]]


@dataclass(frozen=True, slots=True)
class Recorded:
    """One recorded step and where it leaves its logits, [rows, vocabulary]."""

    replay: Callable[[], object]
    logits: Tensor


class DecodeGraphs:
    """The recorded steps of one model. `compute` takes tokens, positions, kept rows and the attention batch."""

    def __init__(
        self,
        compute: Compute,
        bank: AdapterBank,
        caches: Sequence[LayerCache],
        kernels: Kernels,
        *,
        max_rows: int,
        max_model_len: int,
        device: torch.device,
    ) -> None:
        """The last block of the caches must belong to nobody."""
        self._compute = compute
        self._bank = bank
        self._caches = caches
        self._kernels = kernels
        self._device = device
        self._sizes = [size for size in SIZES if size < max_rows] + [max_rows]
        blocks, self._block_size = caches[0].k.shape[:2]
        self._spare_slot = (blocks - 1) * self._block_size
        width = -(-max_model_len // self._block_size)
        self._words = torch.zeros(_table_end(max_rows) + max_rows * width, dtype=torch.int64, device=device)
        # Two, as a step is filled in when at most the one before it is still under way.
        pinned = device.type == "cuda"
        self._hosts = [torch.zeros(self._words.shape, dtype=torch.int64, pin_memory=pinned) for _ in range(2)]
        self._turn = 0
        self._tables = torch.zeros((max_rows, width), dtype=torch.int32, device=device)
        self._recorded: dict[tuple[int, bool], Recorded] = {}
        self._pool: Any = None  # torch's handle of the memory that all graphs share

    @torch.inference_mode()
    def record(self, progress: Callable[[str], None]) -> None:
        """Record every size with and without adapters, the largest first so that the others fit into its memory."""
        began, before = time.monotonic(), self._reserved()
        self._fill([], [], self._sizes[0])
        for tiles in PROMPT_TILES if self._device.type == "cuda" else ():
            words = torch.zeros(1, dtype=torch.int64, device=self._device)
            self._step(self._sizes[0], StepTable(words, tiles, MANY_ROWS, PROMPT_RANK, True))()
        for size in reversed(self._sizes):
            for adapted in (True, False):
                self._fill([], [], size)
                self._recorded[size, adapted] = self._record(size, adapted)
            progress(
                f"recording decoding steps of {size} rows ({len(self._recorded)} of {2 * len(self._sizes)} graphs)"
            )
        seconds, used = time.monotonic() - began, (self._reserved() - before) / MIB
        progress(f"recorded {len(self._recorded)} decoding steps in {seconds:.1f} s, {used:.0f} MiB")

    def run(self, slices: Sequence[SequenceSlice], incoming: tuple[Tensor, Tensor] | None = None) -> Tensor | None:
        """Logits of a step of decoding sequences, [rows, vocabulary], overwritten by the next run.

        Slices of one adapter must be neighbours. `incoming` are places and tokens that only the device knows. None
        where the step isn't such a one, or an adapter is more than a table can say.
        """
        if len(slices) > self._sizes[-1] or any(len(s.token_ids) != 1 or len(s.samples) != 1 for s in slices):
            return None
        rows = self._rows(slices)
        if rows is None:
            return None
        size = self._sizes[bisect.bisect_left(self._sizes, len(slices))]
        self._fill(slices, rows, size)
        if incoming is not None:
            self._words.index_copy_(0, *incoming)  # the rows' tokens come first
        step = self._recorded[size, bool(rows)]
        step.replay()
        return step.logits[: len(slices)]

    # -- inside --------------------------------------------------------------------------------------

    def _rows(self, slices: Sequence[SequenceSlice]) -> Rows | None:
        """Which rows run under which record, or None where a table can't say it."""
        rows: Rows = []
        for row, part in enumerate(slices):
            if part.adapter is None or part.start < part.adapter_start:
                continue
            record = self._bank.record(part.adapter)
            if record is None or record.rank > MOST_RANK or not record.is_aligned:
                return None
            if rows and rows[-1][1] == row and rows[-1][2] is record:
                rows[-1] = (rows[-1][0], row + 1, record)
            else:
                rows.append((row, row + 1, record))
        return rows

    def _fill(self, slices: Sequence[SequenceSlice], rows: Rows, size: int) -> None:
        """Put a step's inputs where the recorded steps of this size read them, in one copy to the device."""
        spare = size - len(slices)
        words = [max(part.token_ids[0], 0) for part in slices] + [0] * spare
        words += [part.start for part in slices] + [0] * spare
        words += [self._slot(part) for part in slices]
        words += [self._spare_slot + row % self._block_size for row in range(spare)]
        words += [part.start + 1 for part in slices] + [0] * spare  # a context of nothing gives zeros
        words += table_words(rows, FEW_ROWS)
        words += [0] * (_table_end(size) - len(words))
        width = max((len(self._table(part)) for part in slices), default=0)
        for part in slices:
            table = self._table(part)
            words += [*table, *([0] * (width - len(table)))]
        self._words[: len(words)].copy_(self._staged(words), non_blocking=True)
        if slices:
            tables = self._words[_table_end(size) : len(words)].view(len(slices), width)
            self._tables[: len(slices), :width].copy_(tables)

    def _staged(self, words: list[int]) -> Tensor:
        """The words in host memory that a copy to the device may still be reading when the next step is filled in."""
        self._turn = 1 - self._turn
        host = self._hosts[self._turn][: len(words)]
        return host.copy_(torch.frombuffer(array("q", words), dtype=torch.int64))

    def _table(self, part: SequenceSlice) -> tuple[int, ...]:
        return part.block_table[: part.start // self._block_size + 1]

    def _slot(self, part: SequenceSlice) -> int:
        return part.block_table[part.start // self._block_size] * self._block_size + part.start % self._block_size

    def _record(self, size: int, adapted: bool) -> Recorded:
        words = self._words[FIELDS * size : _table_end(size)]
        step = self._step(size, StepTable(words, size, FEW_ROWS, MOST_RANK, True) if adapted else None)
        logits = step()  # compiles kernels, takes workspaces; what a recording mustn't do
        if self._device.type != "cuda":
            return Recorded(lambda: logits.copy_(step()), logits)
        torch.cuda.synchronize(self._device)
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            logits = step()
        return Recorded(graph.replay, logits)

    def _step(self, size: int, table: StepTable | None) -> Callable[[], Tensor]:
        """A decoding step of `size` rows that reads its inputs where `_fill` puts them."""
        tokens, positions, slots, lens = self._words[: FIELDS * size].view(FIELDS, size).unbind(0)
        batch = AttentionBatch(self._caches, self._kernels, slots, self._tables[:size], None, lens)
        kept = torch.arange(size, device=self._device)

        def step() -> Tensor:
            self._bank.use(table)
            return self._compute(tokens, positions, kept, batch)

        return step

    def _reserved(self) -> int:
        return torch.cuda.memory_reserved(self._device) if self._device.type == "cuda" else 0


def _table_end(size: int) -> int:
    """Words of a recorded step's inputs before the block tables: its rows' fields and its table of adapters."""
    return FIELDS * size + 1 + 3 * size
