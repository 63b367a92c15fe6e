"""Adapters for embeddings and classification as PEFT saves them, and what transformers and PEFT give under them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModel, AutoModelForSequenceClassification

from engine.families import linear_targets
from livery.engine.rope import freeze_rope


def embedder(base: Path, max_model_len: int = 96) -> Any:
    """The base without its language head."""
    return _frozen(AutoModel.from_pretrained(base, dtype=torch.float32, attn_implementation="eager"), max_model_len)


def classifier(base: Path, labels: int, max_model_len: int = 96) -> Any:
    """The base with a random head of so many classes."""
    model = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=labels, dtype=torch.float32, attn_implementation="eager"
    )
    return _frozen(model, max_model_len)


def save_embedding_adapter(base: Path, folder: Path, seed: int, **fields: Any) -> Path:
    usual = {"r": 4, "lora_alpha": 8, "task_type": "FEATURE_EXTRACTION"}
    config = LoraConfig(**{**usual, "target_modules": linear_targets(base.name), **fields})
    return _save(embedder(base), config, folder, seed)


def save_classifier(base: Path, folder: Path, seed: int, labels: int = 3, **fields: Any) -> Path:
    usual = {"r": 3, "lora_alpha": 6, "task_type": "SEQ_CLS"}
    config = LoraConfig(**{**usual, "target_modules": linear_targets(base.name), **fields})
    return _save(classifier(base, labels), config, folder, seed)


def embedding(base: Path, adapter: Path | None, tokens: list[int], kind: str) -> Tensor:
    """What AutoModel and PEFT give for one prompt alone, [hidden], of length 1."""
    model = embedder(base)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter).eval()
    with torch.no_grad():
        states = model(input_ids=torch.tensor([tokens]), use_cache=False).last_hidden_state[0]
    pooled = states[-1] if kind == "last" else states.mean(dim=0)
    return torch.nn.functional.normalize(pooled, dim=0)


def class_logits(base: Path, adapter: Path, tokens: list[int], labels: int = 3) -> Tensor:
    """What AutoModelForSequenceClassification and PEFT give for one prompt alone, [labels]."""
    model = PeftModel.from_pretrained(classifier(base, labels), adapter).eval()
    with torch.no_grad():
        logits: Tensor = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
    return logits


def _frozen(model: Any, max_model_len: int) -> Any:
    freeze_rope(model, max_model_len)
    return model.eval()


def _save(model: Any, config: LoraConfig, folder: Path, seed: int) -> Path:
    """With random weights that visibly move the base's output, the head's too."""
    torch.manual_seed(seed)
    adapted = get_peft_model(model, config)
    for name, weight in adapted.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            torch.nn.init.normal_(weight, std=0.3)
    adapted.save_pretrained(folder)
    return folder
