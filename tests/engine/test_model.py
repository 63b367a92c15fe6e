"""What is loaded, what is refused by name, and what a model turns out to be made of."""

from __future__ import annotations

import json
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
    Qwen3MoeConfig,
    Qwen3NextConfig,
)

from engine.families import DYNAMIC, LONGROPE, SMALL, VOCABULARY, configs, save
from engine.oracle import Bench
from livery.engine.base import EngineConfig, ModelRefused
from livery.engine.lengths import scaled_length
from livery.engine.lora.experts import proven
from livery.engine.model import base_shapes, load_model
from livery.engine.rope import freeze_rope
from livery.engine.runner import ModelRunner
from livery.engine.structure import discover
from livery.engine.weightless import weightless
from livery_adapters.base_model import ExpertsShape

CPU = torch.device("cpu")

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
        (path / "model.safetensors").unlink()
        assert base_shapes(str(path)) == loaded.structure.shapes
        if family == "gpt2":
            assert loaded.structure.head == "lm_head"
    shapes = base_shapes(str(tmp_path / "gpt2"))
    assert shapes.modules["transformer.h.0.attn.c_attn"].out_features == 96
    assert shapes.modules["transformer.wte"].kind == "embedding"


def test_modules_inside_routed_experts_carry_no_adapters(tmp_path: Path) -> None:
    """Experts see other rows than the step's, so nothing inside them may be matched by row."""
    shapes = base_shapes(str(save("qwen3-moe", tmp_path)))
    assert not [path for path in shapes.modules if "expert" in path]
    assert "model.layers.0.self_attn.q_proj" in shapes.modules


@pytest.mark.parametrize("weights", ["loaded", "none"])
def test_experts_that_compute_something_else_are_not_adaptable(weights: str, tmp_path: Path) -> None:
    path = save("qwen3-moe", tmp_path)
    model: Any = AutoModelForCausalLM.from_pretrained(path) if weights == "loaded" else weightless(str(path))
    experts = discover(model).shapes.experts
    assert proven(model, experts) == experts
    module = model.get_submodule("model.layers.0.mlp.experts")
    original = module.forward
    module.forward = lambda x, chosen, shares: original(x, (chosen + 1) % 4, shares)  # those of other experts
    assert proven(model, experts) == {}


def test_a_model_without_weights_takes_the_memory_of_one_expert(tmp_path: Path) -> None:
    """At the sizes of a large mixture, whose weights are thousands of times that."""
    sizes = {"hidden_size": 2048, "moe_intermediate_size": 768, "num_hidden_layers": 32, "head_dim": 128}
    mixture = {"num_experts": 128, "num_experts_per_tok": 8, "intermediate_size": 6144, "vocab_size": 150_000}
    config = Qwen3MoeConfig(**(SMALL | sizes | mixture), rope_parameters=DYNAMIC)
    config.save_pretrained(tmp_path)
    model = weightless(str(tmp_path))
    weights = list(model.parameters())
    held = {weight.untyped_storage().data_ptr(): weight.untyped_storage().nbytes() for weight in weights}
    expert = 4 * 3 * 768 * 2048
    assert sum(held.values()) < 1.1 * expert < sum(weight.nbytes for weight in weights) / 3000
    gate_up = model.get_submodule("model.layers.31.mlp.experts").gate_up_proj
    assert not any(torch.equal(gate_up[0], gate_up[other]) for other in range(1, 128))
    shapes = base_shapes(str(tmp_path))
    assert shapes.experts["model.layers.31.mlp.experts.gate_up_proj"] == ExpertsShape(128, 2048, 1536)


@pytest.mark.parametrize("method", ["fp8", "bitsandbytes"])
def test_shapes_of_a_quantised_checkpoint_need_neither_its_library_nor_its_device(method: str, tmp_path: Path) -> None:
    path = save("qwen3-moe", tmp_path)
    shapes = base_shapes(str(path))
    told = json.loads((path / "config.json").read_text())
    told["quantization_config"] = {"quant_method": method, "load_in_4bit": method == "bitsandbytes"}
    (path / "config.json").write_text(json.dumps(told))
    assert base_shapes(str(path)) == shapes


@pytest.mark.parametrize(
    ("told", "named"),
    [
        ({"model_type": "nothing-known"}, "can't be built by transformers: .*nothing-known"),
        ({"num_attention_heads": 3}, "can't be built by transformers"),
        ({"model_type": "bloom", "n_layer": 2, "n_head": 4, "hidden_size": 32}, "BloomForCausalLM can't be served"),
    ],
)
def test_what_has_no_shapes_is_refused(told: dict[str, Any], named: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **SMALL, **told}))
    with pytest.raises(ModelRefused, match=named):
        base_shapes(str(tmp_path))


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


ORIGINAL, FACTOR = 16, 3.0  # tokens before RoPE is scaled
SCALED: dict[str, dict[str, Any]] = {
    "yarn": {"rope_type": "yarn", "factor": FACTOR, "original_max_position_embeddings": ORIGINAL},
    "linear": {"rope_type": "linear", "factor": FACTOR},
    "dynamic": {"rope_type": "dynamic", "factor": FACTOR},
}


@pytest.mark.parametrize("kind", list(SCALED))
def test_scaled_positions_are_served_at_their_length(kind: str, tmp_path: Path) -> None:
    """All of them, as transformers computes them with nothing of this engine's in it."""
    longest = int(ORIGINAL * FACTOR)
    rope = {"rope_theta": 10000.0} | SCALED[kind]
    config = LlamaConfig(**(SMALL | {"max_position_embeddings": ORIGINAL}), rope_parameters=rope)
    path = build(config, tmp_path / kind)
    assert load_model(EngineConfig(str(path)), CPU, torch.float32).trained_len == longest
    with pytest.raises(ModelRefused, match=f"--max-model-len {longest + 1} is more than the {longest} tokens"):
        ModelRunner(EngineConfig(str(path), threads=1, max_model_len=longest + 1), lambda _: None)
    bench = Bench(EngineConfig(str(path), threads=1, max_model_len=longest))
    assert (bench.runner.info.max_model_len, bench.runner.info.decoder) == (longest, "fused")
    prompt = [3 + index % 90 for index in range(0, 7 * (longest - 8), 7)]
    bench.add("long", prompt, None, max_tokens=8)
    result = bench.run()["long"]
    assert result.finish == "length"
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():  # of as many tokens as are admitted, so that `dynamic` is what it is for that length
        expected = model(torch.tensor([prompt + result.tokens])).logits[0]
    for position in range(len(prompt) - 1, longest - 1):
        torch.testing.assert_close(result.logits[position], expected[position], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("max_positions", "config", "longest"),
    [
        (32768, {"rope_scaling": {"type": "yarn", "factor": 4.0}}, 131072),
        (32768, {"rope_scaling": SCALED["yarn"] | {"factor": 4.0, "original_max_position_embeddings": 32768}}, 131072),
        # Qwen3 leaves room for answers above the length it was trained at; DeepSeek's is the scaled one already.
        (40960, {"rope_parameters": SCALED["yarn"] | {"factor": 4, "original_max_position_embeddings": 32768}}, 131072),
        (
            163840,
            {"rope_parameters": SCALED["yarn"] | {"factor": 40, "original_max_position_embeddings": 4096}},
            163840,
        ),
        (65536, {"rope_scaling": SCALED["linear"], "original_max_position_embeddings": 16384}, 65536),
        (4096, {"rope_scaling": {"type": "dynamic", "factor": 2}}, 8192),
        (4096, {"rope_scaling": {"type": "linear", "factor": 2.5}}, 10240),
        (131072, {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 131072),
        (131072, {"rope_scaling": LONGROPE | {"factor": 32.0}, "original_max_position_embeddings": 4096}, 131072),
        (131072, {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "model_type": "gemma3_text"}, 131072),
        (131072, {"rope_parameters": {"full_attention": SCALED["linear"], "sliding_attention": {}}}, 131072),
        (8192, {"rope_parameters": {"full_attention": SCALED["yarn"], "sliding_attention": {}}}, 48),
        (8192, {"rope_scaling": {"type": "yarn", "factor": None}}, 8192),
        (8192, {"rope_scaling": None}, 8192),
    ],
)
def test_a_scaled_length_is_told_by_the_configuration(max_positions: int, config: dict[str, Any], longest: int) -> None:
    assert scaled_length(max_positions, config) == longest


@pytest.mark.parametrize(("tokens", "factors"), [(24, "short"), (48, "long")])
def test_factors_that_follow_free_memory_are_warned_of(
    tokens: int, factors: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """LongRoPE's are chosen by the longest sequence, and where that isn't given by the KV memory that is there."""
    path = build(configs()["phi3"], tmp_path / "phi3")
    per_token = 3 * 2 * 2 * 8 * 4  # layers, keys and values, heads, numbers, bytes
    sizes: dict[str, Any] = {"threads": 1, "block_size": 2, "kv_memory_bytes": tokens * per_token}
    ModelRunner(EngineConfig(str(path), **sizes), lambda _: None)
    assert f"longrope's {factors} factors (long ones begin above 32)" in caplog.text
    assert f"--max-model-len {tokens} keeps it" in caplog.text
    caplog.clear()
    ModelRunner(EngineConfig(str(path), **sizes, max_model_len=tokens), lambda _: None)
    assert "factors" not in caplog.text


@pytest.mark.parametrize("heads", [5, 7])
def test_an_axis_of_heads_is_not_taken_for_rows(heads: int) -> None:
    """Gemma 3 norms queries as [1, heads, rows, dim]: by another tenant's rows, were the heads taken for them."""
    sizes = {"num_attention_heads": heads, "num_key_value_heads": heads, "hidden_size": 8 * heads}
    kinds = ["full_attention"] * 3
    gemma = Gemma3TextConfig(**(SMALL | sizes), query_pre_attn_scalar=8, layer_types=kinds)
    plain = discover(AutoModelForCausalLM.from_config(gemma).eval()).shapes.plain
    assert plain["model.norm"] == {"weight": (8 * heads,)}
    assert not [path for path in plain if path.endswith(("q_norm", "k_norm"))]
