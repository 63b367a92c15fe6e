"""A base that bitsandbytes holds passes gradients on, whatever it was used for before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

from livery.models import ResolvedModel
from livery.training.model import load_base, lora_config
from livery.training.run_file import parse_run

pytestmark = [pytest.mark.train, pytest.mark.filterwarnings("ignore")]

IDS = torch.tensor([[1, 5, 9, 33, 2, 71, 96, 14]])


def test_measuring_before_training_changes_no_gradient(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    run = parse_run("kind: sft\nbase: tiny\ndata: x.jsonl\nquantization: bnb-nf4\nmax_length: 16\n")
    base = ResolvedModel("tiny", tmp_path / "base")
    loaded = load_base(run, base, "cpu")
    model: Any = get_peft_model(loaded, lora_config(run, loaded))
    first = gradients(model)
    assert all(bool(gradient.any()) for name, gradient in first.items() if "lora_B" in name)
    model.eval()
    with torch.no_grad():
        model(input_ids=IDS)
    for name, gradient in gradients(model).items():
        assert torch.equal(gradient, first[name]), name


def gradients(model: Any) -> dict[str, torch.Tensor]:
    model.train()
    model.zero_grad()
    model(input_ids=IDS, labels=IDS).loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
