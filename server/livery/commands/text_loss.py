"""How well an adapter stands in for a whole model, on a text: perplexity, and the distance of their predictions.

    found = compared(base, tuned, adapter, ids, window=512)
    found["adapter"]["kl"]      # nats per token from the tuned model's prediction to the adapter's

The tuned model is computed by transformers, the base and the adapter by the engine that will serve them, fp32 on the
CPU, one model after the other: the tuned model's logits wait in a file while its weights go.
"""

from __future__ import annotations

import gc
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from livery.adapter_views import Json
from livery.commands.proof import OfflineProver
from livery.engine.base import AdapterRef
from livery.engine.plan import SampleSpec, SequenceSlice
from livery.engine.rope import freeze_rope
from livery.evaluation.pieces import windowed
from livery_adapters.grown import added_rows
from livery_adapters.manifest import read_manifest
from livery_adapters.refusal import TAKEN_IN

_LEAST = 64  # tokens, which the engine's check at start is shorter than
_ANY = SampleSpec(temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, draw=0.0)
Progress = Callable[[int, int], None]  # tokens done, tokens in all


@dataclass(slots=True)
class _Sums:
    """Over all predicted tokens: -ln p of the text, KL from the judge's prediction, how often both like one best."""

    loss: float = 0.0
    distance: float = 0.0
    agreed: int = 0
    tokens: int = 0

    def add(self, logits: Tensor, judge: Tensor, following: Tensor) -> None:
        """Rows of logits [n, vocabulary], the judge's, and the ids that really follow.

        Where one of them knows more tokens than the other, both are asked about those that both know.
        """
        width = min(logits.shape[1], judge.shape[1])
        mine, theirs = (one[:, :width].float().log_softmax(-1) for one in (logits, judge))
        self.loss -= float(mine.gather(1, following[:, None]).double().sum())
        self.distance += float((theirs.exp() * (theirs - mine)).sum(-1).double().sum())
        self.agreed += int((mine.argmax(-1) == theirs.argmax(-1)).sum())
        self.tokens += len(following)

    def told(self) -> Json:
        return {
            "perplexity": math.exp(self.loss / self.tokens),
            "kl": self.distance / self.tokens,
            "same_best": self.agreed / self.tokens,
        }


def compared(
    prover: OfflineProver,
    tuned: Path,
    adapters: Sequence[Path],
    ids: Sequence[int],
    window: int,
    progress: Progress = lambda done, total: None,
    begins: Sequence[int] = (),
) -> Json:
    """Perplexity of each and distance from the tuned model, on `ids` read in windows of so many tokens.

    `begins` is what the model expects before any text, and stands before each window, as `adapters eval` has it. The
    first token of each window is given and not predicted. `adapters` in the answer are in the order given. A prover
    that was told its longest sequence (reading_prover) loads its model once the tuned one is gone.
    """
    longest = prover.max_model_len
    parts = [list(piece.tokens) for piece in windowed(ids, begins, min(window, longest))]
    total, done = sum(map(len, parts)) * (2 + len(adapters)), 0
    with tempfile.TemporaryDirectory(prefix="livery-text-") as scratch:
        judge, sums = _Spilled(Path(scratch) / "logits"), _Sums()
        for part, logits in _by_transformers(tuned, parts, longest):
            judge.append(logits)
            sums.add(logits, logits, torch.tensor(part[1:]))
            progress(done := done + len(part), total)
        gc.collect()  # modules may refer to each other in circles
        found = []
        for adapter in (None, *adapters):
            digest = installed(prover, adapter) if adapter else None
            mine = _Sums()
            for part, theirs in zip(parts, judge.rows(), strict=True):
                mine.add(logits_of(prover, digest, part[:-1]), theirs, torch.tensor(part[1:]))
                progress(done := done + len(part), total)
            if digest:
                prover.runner.evict(digest)
            found.append(mine.told())
    return {
        "tokens": sums.tokens,
        "tuned": {"perplexity": sums.told()["perplexity"]},
        "base": found[0],
        "adapters": found[1:],
    }


def reading_prover(base: Path, digest: str, window: int, say: Callable[[str], None]) -> OfflineProver:
    """A base that will read texts in such windows and hardly more: that is what length-dependent RoPE is set for.

    Raises OSError, ValueError: its config.json can't be read.
    """
    config = AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    trained = int(getattr(config.get_text_config(), "max_position_embeddings", 0) or window)
    return OfflineProver(base, digest, say, max_model_len=min(max(window, _LEAST), trained))


class _Spilled:
    """Blocks of rows in a file, given back in their order."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._shapes: list[tuple[int, ...]] = []

    def append(self, rows: Tensor) -> None:
        self._shapes.append(tuple(rows.shape))
        with self._file.open("ab") as stream:
            stream.write(rows.float().contiguous().numpy().data)

    def rows(self) -> Iterator[Tensor]:
        with self._file.open("rb") as stream:
            for shape in self._shapes:
                yield torch.from_numpy(np.fromfile(stream, dtype=np.float32, count=math.prod(shape)).reshape(shape))


def _by_transformers(model: Path, parts: Sequence[list[int]], limit: int) -> Iterator[tuple[list[int], Tensor]]:
    """Each part with the logits after all its tokens but the last."""
    loaded = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, attn_implementation="sdpa", local_files_only=True, trust_remote_code=False
    ).eval()
    freeze_rope(loaded, limit)
    for part in parts:
        with torch.no_grad():
            yield part, loaded(input_ids=torch.tensor([part[:-1]]), use_cache=False).logits[0]


def installed(prover: OfflineProver, adapter: Path) -> str:
    """Have the engine apply an adapter from a directory; its digest. Raises AdapterRefused, ModelRefused."""
    manifest = read_manifest(adapter, TAKEN_IN)
    added = added_rows(manifest, prover.runner.info.shapes)
    image = prover.runner.read_adapter(AdapterRef.of(manifest.digest, str(adapter), added))
    prover.runner.install(image.copied_to(prover.runner.device))
    return manifest.digest


def logits_of(prover: OfflineProver, digest: str | None, tokens: list[int]) -> Tensor:
    """Of the engine, behind each token: [tokens, vocabulary], fp32; of the base where no adapter is named."""
    runner = prover.runner
    blocks = tuple(range(-(-len(tokens) // runner.info.block_size)))
    rows = SequenceSlice("text", tuple(tokens), 0, blocks, digest, (_ANY,) * len(tokens))
    return runner.forward([rows]).float()
