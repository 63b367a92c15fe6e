"""Does the engine compute what PEFT computes? Both run one probe prompt under the same files. Needs torch and PEFT.

What is compared is what the adapter was trained to give: logits of tokens, a hidden state, or logits of classes.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from livery.adapter_views import Json
from livery.commands.asking import CommandFailed
from livery.commands.proof import OfflineProver
from livery.engine.base import Pooling
from livery.engine.rope import freeze_rope
from livery_adapters.base_model import BaseModel
from livery_adapters.layout import Task
from livery_adapters.manifest import read_manifest
from livery_adapters.prover import Candidate
from livery_adapters.refusal import TAKEN_IN
from livery_adapters.tasks import placed

PROBE_TOKENS = 24
TOLERANCE = 1e-3  # max |Δ| / max |logit|, fp32
PEFT_ERRORS = (ValueError, TypeError, KeyError, RuntimeError, AttributeError, OSError, ImportError, SafetensorError)


def verify_with_peft(prover: OfflineProver, candidate: Candidate) -> Json:
    """Compare the engine's logits under an adapter with PEFT's, both in fp32, on a probe prompt.

    Differences are relative to the largest logit. Blocks. Raises CommandFailed when PEFT isn't installed or can't
    load the files.
    """
    task, labels = _trained_for(prover, candidate)
    tokens = prover.probe(PROBE_TOKENS, candidate.invocation)
    if task != "generate":
        return _verified_vector(prover, candidate, tokens, labels)
    start = 0
    if candidate.invocation:  # an activated adapter acts from its invocation tokens on
        start = len(tokens) // 2
        tokens = [*tokens[:start], *candidate.invocation, *tokens[start:]]
    prover.install(candidate)
    adapted, base = prover.logits(candidate.digest, tokens, start), prover.logits(None, tokens)
    moved = _relative(adapted[:, : base.shape[1]], base)
    if own := prover.own(candidate):  # which the base can't read
        tokens = [*own, *tokens]
        adapted = prover.logits(candidate.digest, tokens, start)
    limit, added = prover.runner.info.max_model_len, candidate.added_tokens
    expected = peft_logits(prover.model, candidate.path, tokens, limit, added)[-len(adapted) :]
    return _told(adapted, expected, moved, len(tokens))


def peft_logits(model: Path, directory: Path, tokens: list[int], max_model_len: int, added_tokens: int = 0) -> Tensor:
    """What PEFT's own forward gives, [tokens, vocabulary], fp32. Raises CommandFailed."""
    kind = "AutoModelForCausalLM"
    logits: Tensor = _peft_output(model, directory, tokens, max_model_len, kind, added_tokens).logits[0]
    return logits.float()


def _verified_vector(prover: OfflineProver, candidate: Candidate, tokens: list[int], labels: int) -> Json:
    """The same for an adapter for embeddings (`labels` 0) or classification."""
    prover.install(candidate)
    added = candidate.added_tokens
    model, limit, state = prover.model, prover.runner.info.max_model_len, Pooling(normalize=False)
    if labels:
        found = _peft_output(
            model, candidate.path, tokens, limit, "AutoModelForSequenceClassification", added, num_labels=labels
        )
        expected: Tensor = found.logits[0]
    else:
        expected = _peft_output(model, candidate.path, tokens, limit, "AutoModel", added).last_hidden_state[0, -1]
    computed = prover.vector(candidate.digest, tokens, Pooling(head=True) if labels else state)
    adapted, base = prover.vector(candidate.digest, tokens, state), prover.vector(None, tokens, state)
    return _told(computed, expected.float(), _relative(adapted, base), len(tokens))


def _trained_for(prover: OfflineProver, candidate: Candidate) -> tuple[Task, int]:
    """What the adapter is for, and how many classes it has."""
    base = BaseModel(prover.model.name, "", prover.runner.info.shapes)
    manifest = placed(read_manifest(candidate.path, TAKEN_IN, digest=candidate.weights), base)
    return manifest.task, manifest.head.entry.shape[0] if manifest.head else 0


def _told(computed: Tensor, expected: Tensor, moved: float, tokens: int) -> Json:
    difference = _relative(computed, expected)
    return {
        "ok": difference <= TOLERANCE,
        "difference": difference,
        "tolerance": TOLERANCE,
        "moves_base": moved,
        "tokens": tokens,
    }


def _peft_output(
    model: Path, directory: Path, tokens: list[int], max_model_len: int, kind: str, added_tokens: int, **fields: int
) -> Any:  # noqa: ANN401  (each kind of model has an output of its own)
    """The output of transformers' model of this kind under PEFT, fp32. Raises CommandFailed."""
    try:
        from peft import PeftModel
    except ImportError:
        raise CommandFailed('--verify-with-peft needs PEFT, which isn\'t here: pip install "livery[train]"') from None
    import transformers

    base: Any = getattr(transformers, kind).from_pretrained(
        model,
        dtype=torch.float32,
        attn_implementation="eager",
        local_files_only=True,
        trust_remote_code=False,
        **fields,
    )
    freeze_rope(base, max_model_len)
    if added_tokens:
        rows = base.get_input_embeddings().num_embeddings + added_tokens
        base.resize_token_embeddings(rows, mean_resizing=False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapted = PeftModel.from_pretrained(base, str(directory), torch_device="cpu").eval()
            with torch.no_grad():
                return adapted(input_ids=torch.tensor([tokens]))
    except PEFT_ERRORS as error:
        raise CommandFailed(
            f"PEFT can't run {directory.name}, so nothing can be compared: {error!r}; a newer peft may know it"
        ) from error


def _relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())
