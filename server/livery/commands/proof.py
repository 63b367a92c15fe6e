"""The base model in this process, to try adapters on it without a server. Needs torch.

Runs on the CPU in fp32 unless told otherwise, beside whatever serves on this machine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from livery.commands.held import PLAINLY, Held
from livery.engine.base import EngineConfig, Pooling
from livery.engine.plan import PoolSpec, SampleSpec, SequenceSlice, StepPlan
from livery.engine.runner import ModelRunner
from livery.proving import reference
from livery_adapters.effect import AdapterEffect
from livery_adapters.prover import Candidate
from livery_adapters.refusal import AdapterRefused

STEP_BY_STEP = 6  # the last of them are computed one at a time over the cache, as decoding does
CANARY_TOKENS = 5

_GREEDY = SampleSpec(temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, draw=0.0)


class OfflineProver:
    """A Prover with the engine's own runner in this process. The model is loaded when it is first needed."""

    def __init__(
        self,
        model: Path,
        digest: str,
        progress: Callable[[str], None],
        held: Held = PLAINLY,
        max_model_len: int = 0,
    ) -> None:
        """`model` is a model directory, `digest` its content's. `max_model_len`: as EngineConfig has it."""
        self.model = model
        self._digest = digest
        self._progress = progress
        self._held = held
        self._max_model_len = max_model_len
        self._loaded: ModelRunner | None = None

    @property
    def runner(self) -> ModelRunner:
        """Raises ModelRefused."""
        if self._loaded is None:
            held = self._held
            config = EngineConfig(
                str(self.model),
                base_digest=self._digest,
                device=held.device,
                dtype=held.dtype,
                quantization=held.quantization,
                max_model_len=self._max_model_len,
            )
            self._loaded = ModelRunner(config, self._progress)
        return self._loaded

    @property
    def max_model_len(self) -> int:
        """The longest sequence, in tokens; the model is loaded only where that wasn't told. Raises ModelRefused."""
        return self._max_model_len or self.runner.info.max_model_len

    async def prove(self, candidate: Candidate) -> AdapterEffect | None:
        """Convert it and run a few tokens under it. Raises AdapterRefused, ModelRefused."""
        return await asyncio.to_thread(self._prove, candidate)

    async def stored(self, candidate: Candidate) -> None:
        pass

    async def forget(self, digest: str) -> None:
        if self._loaded is not None:
            self._loaded.evict(digest)

    def logits(self, digest: str | None, tokens: list[int], start: int = 0) -> Tensor:
        """Of the base, or of an adapter from position `start` on: [STEP_BY_STEP + 1, vocabulary], fp32.

        The tokens but the last STEP_BY_STEP are computed at once, then those one by one, and each gives a row.
        """
        runner = self.runner
        blocks = tuple(range(-(-len(tokens) // runner.info.block_size)))
        first = max(1, len(tokens) - STEP_BY_STEP)
        bounds = [0, *range(first, len(tokens) + 1)]
        rows = []
        for begin, end in pairwise(bounds):
            part = SequenceSlice("probe", tuple(tokens[begin:end]), begin, blocks, digest, (_GREEDY,), start)
            rows.append(runner.forward([part])[0].float().cpu())
        return torch.stack(rows)

    def vector(self, digest: str | None, tokens: list[int], pooling: Pooling) -> Tensor:
        """What the base, or an adapter, makes of a prompt in place of text, fp32. Raises AdapterRefused."""
        runner = self.runner
        blocks = tuple(range(-(-len(tokens) // runner.info.block_size)))
        part = SequenceSlice("probe", tuple(tokens), 0, blocks, digest, (), 0, PoolSpec(pooling, last=True))
        result = runner.execute(StepPlan((part,)))
        if "probe" in result.failed:
            raise AdapterRefused("canary_failed", f"a first run under this adapter failed: {result.failed['probe']}")
        return torch.frombuffer(bytearray(result.pooled["probe"]), dtype=torch.float32)

    def probe(self, length: int, avoid: tuple[int, ...] = ()) -> list[int]:
        """Token ids, the same each time, without those of `avoid`."""
        generator = torch.Generator().manual_seed(0)
        vocabulary = self.runner.info.vocab_size
        drawn = torch.randint(0, vocabulary, (length + 8 * len(avoid) + 8,), generator=generator).tolist()
        return [token for token in drawn if token not in avoid][: min(length, self.runner.info.max_model_len // 2)]

    def own(self, candidate: Candidate) -> list[int]:
        """The last of an adapter's own tokens, where it has some."""
        first = self.runner.info.vocab_size
        return list(range(first, first + candidate.added_tokens))[-1:]

    def install(self, candidate: Candidate) -> None:
        """Have the model apply it from now on, until it is forgotten. Blocks. Raises AdapterRefused, ModelRefused."""
        try:
            image = self.runner.read_adapter(reference(candidate))
            self.runner.install(image.copied_to(self.runner.device))
        except OSError as error:
            raise AdapterRefused("unreadable", f"the adapter's copy can't be read: {error.strerror}") from error

    def _prove(self, candidate: Candidate) -> AdapterEffect:
        self.install(candidate)
        tokens = [*candidate.invocation, *self.probe(CANARY_TOKENS, candidate.invocation), *self.own(candidate)]
        if not bool(torch.isfinite(self.logits(candidate.digest, tokens)).all()):
            raise AdapterRefused(
                "canary_failed",
                f"a first run of {len(tokens)} tokens under this adapter gives no numbers. Its weights are finite, but "
                "what the model computes with them isn't; train with a lower learning rate or scale",
            )
        return self.runner.effect(candidate.digest)
