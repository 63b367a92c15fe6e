"""Which models the fused decoder takes, and that whatever differs from what it knows is left to its own forward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GraniteConfig, LlamaConfig, PreTrainedConfig

from engine.families import FUSED, SMALL, configs, save
from livery.engine.base import EngineConfig
from livery.engine.decoder.parts import NotRecognised, recognise
from livery.engine.kernels import load
from livery.engine.lora.bank import AdapterBank
from livery.engine.lora.embedding import attach_embeddings
from livery.engine.lora.holding import WeightHolder
from livery.engine.lora.linear import attach_linears, layouts_of
from livery.engine.runner import ModelRunner
from livery.engine.structure import discover

OTHERS = {
    "granite": GraniteConfig(**SMALL, embedding_multiplier=3.0, residual_multiplier=0.5, logits_scaling=2.0),
    "gelu": LlamaConfig(**SMALL, hidden_act="gelu"),
}


def recognised(config: PreTrainedConfig, change: Any = lambda model: None) -> object:
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    structure = discover(model)
    bank = AdapterBank(layouts_of(structure))
    kernels = load("torch")
    linears = attach_linears(model, bank, kernels, WeightHolder(kernels, "exact"))
    attach_embeddings(model, structure, bank, linears)
    change(model)
    return recognise(model, structure, 64, torch.float32)


@pytest.mark.parametrize("family", list(configs()))
def test_the_families(family: str) -> None:
    if family in FUSED:
        recognised(configs()[family])
    else:
        with pytest.raises(NotRecognised, match="is not one of LlamaForCausalLM"):
            recognised(configs()[family])


@pytest.mark.parametrize("name", list(OTHERS))
def test_near_relatives(name: str) -> None:
    with pytest.raises(NotRecognised, match=r"Granite|activation"):
        recognised(OTHERS[name])


def half_turned(model: Any) -> None:
    rotary = model.model.rotary_emb
    rotary.forward = lambda x, positions: tuple(part[..., ::2] for part in type(rotary).forward(rotary, x, positions))


CHANGES = {
    "hooks": lambda model: model.model.layers[1].register_forward_hook(lambda *_: None),
    "another norm": lambda model: model.model.layers[0].set_submodule("input_layernorm", nn.LayerNorm(32)),
    "one more module": lambda model: model.model.layers[2].mlp.add_module("gate", nn.Linear(2, 2)),
    "a projection of another kind": lambda model: model.set_submodule(
        "model.layers.0.self_attn.q_proj", nn.Sequential(nn.Identity())
    ),
    "other rotary pairs": half_turned,
}


@pytest.mark.parametrize("name", list(CHANGES))
def test_whatever_is_different_is_not_taken(name: str) -> None:
    with pytest.raises(NotRecognised):
        recognised(configs()["llama"], CHANGES[name])


def test_a_fast_path_that_computes_something_else_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check at load looks at numbers, whatever was recognised."""

    def forgetful(*arguments: Any) -> Any:
        parts = recognise(*arguments)
        parts.cos.fill_(1.0)
        return parts

    monkeypatch.setattr("livery.engine.runner.recognise", forgetful)
    said: list[str] = []
    base = save("llama", tmp_path)
    runner = ModelRunner(EngineConfig(str(base), max_model_len=64, kv_memory_bytes=1 << 20), said.append)
    assert runner.info.decoder == "transformers"
    assert any("not with the fused one" in line and "differ" in line for line in said)
