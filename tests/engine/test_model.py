"""What is loaded, what is refused by name, and what a model turns out to be made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma3TextConfig,
    GptOssConfig,
    Lfm2Config,
    Llama4TextConfig,
    LlamaConfig,
    PhimoeConfig,
    PreTrainedConfig,
    Qwen3NextConfig,
)

from engine.families import SMALL, VOCABULARY, configs, save
from livery.engine.base import EngineConfig, ModelRefused
from livery.engine.lora.experts import proven
from livery.engine.model import base_shapes, load_model
from livery.engine.rope import freeze_rope
from livery.engine.runner import ModelRunner
from livery.engine.structure import discover
from livery_adapters.base_model import ExpertsShape

CPU = torch.device("cpu")
LOADED_FOR_SHAPES = ("llama-dynamic-rope", "qwen3-moe")  # their positions and their experts need values

# Models whose layers don't all go through transformers' attention interface, or through one that adds more.
FOREIGN: dict[str, tuple[PreTrainedConfig, str]] = {
    "bloom": (BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4), "Bloom"),
    "lfm2": (Lfm2Config(**SMALL, layer_types=["conv", "full_attention", "conv"]), "Lfm2"),
    "qwen3-next": (
        Qwen3NextConfig(
            **(SMALL | {"num_hidden_layers": 2}),
            layer_types=["linear_attention", "full_attention"],
            num_experts=2,
            num_experts_per_tok=1,
            moe_intermediate_size=16,
            shared_expert_intermediate_size=16,
            linear_num_key_heads=2,
            linear_num_value_heads=2,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
        ),
        "Qwen3Next",
    ),
    "llama4": (  # chunked attention, known only to its mask
        Llama4TextConfig(**SMALL, attention_chunk_size=80, num_local_experts=2, intermediate_size_mlp=48),
        "mask|llama4|Llama4",
    ),
    "phimoe": (PhimoeConfig(**SMALL, sliding_window=80, num_local_experts=2), "mask attention"),
    "gpt-oss": (GptOssConfig(**SMALL, num_local_experts=2, num_experts_per_tok=1), "s_aux"),
}


def build(config: PreTrainedConfig, folder: Path) -> Path:
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", list(FOREIGN))
def test_a_model_that_would_be_wrong_is_refused_by_name(name: str, tmp_path: Path) -> None:
    config, expected = FOREIGN[name]
    path = build(config, tmp_path / name)
    with pytest.raises(ModelRefused, match=expected):
        ModelRunner(EngineConfig(str(path), threads=1), lambda _: None)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nothing-known"}')
    with pytest.raises(ModelRefused, match=str(tmp_path)):
        load_model(EngineConfig(str(tmp_path)), CPU, torch.float32)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"device": "abacus"}, "abacus"),
        ({"dtype": "int3"}, "int3"),
        ({"max_model_len": 256, "kv_memory_bytes": 40_000}, "256"),
        ({"kv_memory_bytes": 9000}, "--kv-memory"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    path = save("llama", tmp_path)
    with pytest.raises(ModelRefused, match=named):
        ModelRunner(EngineConfig(str(path), threads=1, **change), lambda _: None)


def test_shapes_without_weights_are_those_of_the_loaded_model(tmp_path: Path) -> None:
    for family in configs():
        path = save(family, tmp_path)
        loaded = load_model(EngineConfig(str(path)), CPU, torch.float32)
        if family not in LOADED_FOR_SHAPES:
            (path / "model.safetensors").unlink()
        assert base_shapes(str(path)) == loaded.structure.shapes
        if family not in LOADED_FOR_SHAPES:
            save(family, tmp_path)
    shapes = base_shapes(str(tmp_path / "gpt2"))
    loaded = load_model(EngineConfig(str(tmp_path / "gpt2")), CPU, torch.float32)
    assert shapes.modules["transformer.h.0.attn.c_attn"].out_features == 96
    assert shapes.modules["transformer.wte"].kind == "embedding"
    assert loaded.structure.head == "lm_head"


def test_modules_inside_routed_experts_carry_no_adapters(tmp_path: Path) -> None:
    """Experts see other rows than the step's, so nothing inside them may be matched by row."""
    shapes = base_shapes(str(save("qwen3-moe", tmp_path)))
    assert not [path for path in shapes.modules if "expert" in path]
    assert "model.layers.0.self_attn.q_proj" in shapes.modules


def test_experts_that_compute_something_else_are_not_adaptable(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(save("qwen3-moe", tmp_path))
    experts = discover(model).shapes.experts
    assert proven(model, experts) == experts
    module = model.get_submodule("model.layers.0.mlp.experts")
    original = module.forward
    module.forward = lambda *args: 2 * original(*args)
    assert proven(model, experts) == {}


def test_what_adapters_may_change_beside_linear_modules(tmp_path: Path) -> None:
    gpt2, llama, moe = (base_shapes(str(save(family, tmp_path))) for family in ("gpt2", "llama", "qwen3-moe"))
    assert gpt2.plain["transformer.h.2.ln_1"] == {"weight": (32,), "bias": (32,)}
    assert len(gpt2.plain) == 3 * 2 + 1
    assert gpt2.tied == {"lm_head": "transformer.wte"}
    assert gpt2.modules["transformer.h.0.attn.c_attn"].has_bias
    assert gpt2.modules["transformer.h.0.attn.c_attn"].input_first
    assert not gpt2.modules["lm_head"].has_bias
    assert llama.tied == {"lm_head": "model.embed_tokens"}
    assert llama.plain["model.norm"] == {"weight": (32,)}
    assert moe.tied == {}
    assert moe.plain["model.layers.0.self_attn.q_norm"] == {"weight": (8,)}
    assert not [path for path in moe.plain if "mlp" in path]  # the router turns a row into other things
    assert moe.experts["model.layers.2.mlp.experts.gate_up_proj"] == ExpertsShape(4, 32, 48)
    assert moe.experts["model.layers.2.mlp.experts.down_proj"] == ExpertsShape(4, 24, 32)
    assert len(moe.experts) == 3 * 2


def test_weights_are_held_once(tmp_path: Path) -> None:
    path = save("llama", tmp_path)
    model = AutoModelForCausalLM.from_pretrained(path)
    runner = ModelRunner(EngineConfig(str(path), threads=1, kv_memory_bytes=1 << 20), lambda _: None)
    once = sum(weight.nbytes for weight in model.parameters())
    # Panels are filled up to their width, which matters only for tiny models; a second head would add 12 %.
    assert once <= runner.info.weight_bytes < 1.05 * once


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads Linux's map of the process")
def test_weights_outlive_their_file(tmp_path: Path) -> None:
    """A mapped file that is overwritten would end the process; nothing of it may stay in use."""
    path = save("llama", tmp_path)
    runner = ModelRunner(EngineConfig(str(path), threads=1, kv_memory_bytes=1 << 20), lambda _: None)
    assert str(path) not in Path("/proc/self/maps").read_text()
    assert runner.info.weight_bytes > 0


def test_pickled_weights_are_never_read(tmp_path: Path) -> None:
    path = save("llama", tmp_path)
    (path / "model.safetensors").rename(path / "other.safetensors")
    (path / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(ModelRefused, match=str(path)):
        load_model(EngineConfig(str(path)), CPU, torch.float32)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = save("llama", tmp_path)
    (path / "model.safetensors").write_bytes(b"\x10" + bytes(40))
    with pytest.raises(ModelRefused, match=str(path)):
        load_model(EngineConfig(str(path)), CPU, torch.float32)


def test_one_long_request_changes_no_rope_of_others() -> None:
    parameters = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    config = LlamaConfig(**(SMALL | {"max_position_embeddings": 16}), rope_parameters=parameters)
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config).eval()
    assert freeze_rope(model, 64) == "fixed@64"
    short, long = torch.tensor([[5, 6, 7]]), torch.arange(3, 60)[None]
    with torch.no_grad():
        before = model(short).logits
        model(long)
        assert torch.equal(before, model(short).logits)


@pytest.mark.parametrize("heads", [5, 7])
def test_an_axis_of_heads_is_not_taken_for_rows(heads: int) -> None:
    """Gemma 3 norms queries as [1, heads, rows, dim]: by another tenant's rows, were the heads taken for them."""
    sizes = {"num_attention_heads": heads, "num_key_value_heads": heads, "hidden_size": 8 * heads}
    kinds = ["full_attention"] * 3
    gemma = Gemma3TextConfig(**(SMALL | sizes), query_pre_attn_scalar=8, layer_types=kinds)
    plain = discover(AutoModelForCausalLM.from_config(gemma).eval()).shapes.plain
    assert plain["model.norm"] == {"weight": (8 * heads,)}
    assert not [path for path in plain if path.endswith(("q_norm", "k_norm"))]
