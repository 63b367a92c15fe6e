"""Does the engine compute what PEFT computes? Both run one probe prompt under the same files. Needs torch and PEFT."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from livery.adapter_views import Json
from livery.commands.backends import CommandFailed
from livery.commands.proof import OfflineProver
from livery.engine.rope import freeze_rope
from livery_adapters.library import Candidate

PROBE_TOKENS = 24
TOLERANCE = 1e-3  # max |Δ| / max |logit|, fp32
PEFT_ERRORS = (ValueError, TypeError, KeyError, RuntimeError, AttributeError, OSError, ImportError, SafetensorError)


def verify_with_peft(prover: OfflineProver, candidate: Candidate) -> Json:
    """Compare the engine's logits under an adapter with PEFT's, both in fp32, on a probe prompt.

    Differences are relative to the largest logit. Blocks. Raises CommandFailed when PEFT isn't installed or can't
    load the files.
    """
    tokens = prover.probe(PROBE_TOKENS, candidate.invocation)
    start = 0
    if candidate.invocation:  # an activated adapter acts from its invocation tokens on
        start = len(tokens) // 2
        tokens = [*tokens[:start], *candidate.invocation, *tokens[start:]]
    prover.install(candidate)
    adapted = prover.logits(candidate.digest, tokens, start)
    base = prover.logits(None, tokens)
    expected = peft_logits(prover.model, candidate.path, tokens, prover.runner.info.max_model_len)[-len(adapted) :]
    difference = _relative(adapted, expected)
    return {
        "ok": difference <= TOLERANCE,
        "difference": difference,
        "tolerance": TOLERANCE,
        "moves_base": _relative(adapted, base),
        "tokens": len(tokens),
    }


def peft_logits(model: Path, directory: Path, tokens: list[int], max_model_len: int) -> Tensor:
    """What PEFT's own forward gives, [tokens, vocabulary], fp32. Raises CommandFailed."""
    try:
        from peft import PeftModel
    except ImportError:
        raise CommandFailed('--verify-with-peft needs PEFT, which isn\'t here: pip install "livery[train]"') from None
    from transformers import AutoModelForCausalLM

    base: Any = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, attn_implementation="eager", local_files_only=True, trust_remote_code=False
    )
    freeze_rope(base, max_model_len)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapted = PeftModel.from_pretrained(base, str(directory), torch_device="cpu").eval()
            with torch.no_grad():
                logits: Tensor = adapted(input_ids=torch.tensor([tokens])).logits[0]
    except PEFT_ERRORS as error:
        raise CommandFailed(
            f"PEFT can't run {directory.name}, so nothing can be compared: {error!r}; a newer peft may know it"
        ) from error
    return logits.float()


def _relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())
