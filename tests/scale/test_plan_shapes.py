"""Models and GPUs by name and by file: their sizes as published, and what is told of those that aren't known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from livery.engine import memory as engine
from livery.engine.base import CPU_KV_SHARE
from livery.scale.plan import memory
from livery.scale.plan.accelerators import accelerator, known_accelerators
from livery.scale.plan.refusal import PlanRefused
from livery.scale.plan.shapes import FAMILIES, TARGETS, held_model, known_models, model_shape, target_modules

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
}


@pytest.mark.parametrize("name", sorted(known_models()))
def test_the_table_has_as_many_weights_as_are_published(name: str) -> None:
    model = known_models()[name]
    hidden, layers, dim = model.hidden_size, model.num_hidden_layers, model.heads_dim
    beside = hidden * (2 * layers + 1)  # norms
    if model.model_type == "qwen2":  # biases of q, k and v
        beside += layers * dim * (model.num_attention_heads + 2 * model.kv_heads)
    if model.model_type == "qwen3":  # norms of q and k
        beside += 2 * layers * dim
    table = 0 if model.tie_word_embeddings else model.vocab_size * hidden
    assert model.linear_weights() + table + beside == model.parameters
    assert model.model_type in FAMILIES
    assert model.source.startswith("https://huggingface.co/")


@pytest.mark.parametrize("tied", [True, False])
def test_a_configs_modules_are_those_of_the_model(tmp_path: Path, tied: bool) -> None:
    config = LlamaConfig(**{**LLAMA, "head_dim": 20, "tie_word_embeddings": tied})
    config.save_pretrained(tmp_path)
    shape = model_shape(str(tmp_path))
    weights = {
        name.removesuffix(".weight").rpartition("layers.")[2]: tuple(value.shape)
        for name, value in AutoModelForCausalLM.from_config(config).named_parameters()
        if name.rpartition(".")[0].endswith(TARGETS)
    }
    found = {
        path.rpartition("layers.")[2]: (module.out_features, module.in_features)
        for path, module in shape.shapes().modules.items()
        if path.endswith(TARGETS)
    }
    assert found == weights
    assert shape.tie_word_embeddings is tied
    assert model_shape(str(tmp_path / "config.json")).name == tmp_path.name


def test_a_configs_length_is_the_scaled_one(tmp_path: Path) -> None:
    rope = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    config = tmp_path / "config.json"
    config.write_text(json.dumps(LLAMA | {"max_position_embeddings": 32768, "rope_scaling": rope}))
    assert model_shape(str(config)).max_position_embeddings == 131072


def test_bytes_of_llama_8b_are_those_that_are_published() -> None:
    held = held_model(known_models()["llama-3.1-8b"], "bf16", 2, 2, TARGETS, 2)
    assert held.held_bytes == pytest.approx(16.06e9, rel=1e-3)
    assert held.base.weight_bytes == pytest.approx(15.01e9, rel=1e-3)  # without the embedding, which isn't streamed
    assert held.base.kv_bytes_per_token == 131072
    assert held.base.adapter_bytes(16) == 83_886_080  # the file that PEFT writes, without its header
    attention = held_model(known_models()["llama-3.1-8b"], "bf16", 2, 2, target_modules("attention"), 2)
    assert attention.base.adapter_bytes(16) == 27_262_976


def test_names_are_taken_as_hubs_and_people_write_them() -> None:
    for name in ("llama-3.1-8b", "Llama-3.1-8B", "meta-llama/Llama-3.1-8B-Instruct"):
        assert model_shape(name).name == "llama-3.1-8b"
    assert accelerator("H200").name == "h200"


def test_each_shipped_gpu_says_where_its_numbers_come_from() -> None:
    for one in known_accelerators().values():
        assert one.source
        assert one.memory_gb < one.bandwidth_gb_s


def refusal(do: Any) -> str:
    with pytest.raises(PlanRefused) as refused:
        do()
    return str(refused.value)


@pytest.mark.parametrize(
    ("do", "told"),
    [
        (lambda: accelerator("h20"), ("--gpu h20: unknown", "did you mean h200")),
        (lambda: accelerator("tpu"), ("--gpu tpu: unknown", "YAML")),
        (lambda: accelerator("/nowhere/mine.yaml"), ("/nowhere/mine.yaml: No such file", "memory_gb")),
        (lambda: model_shape("llama-3.1-9b"), ("--model llama-3.1-9b: unknown", "llama-3.1-8b", "config.json")),
        (lambda: model_shape("nowhere/config.json"), ("no such file",)),
        (lambda: target_modules("q_pro,v_proj"), ("q_pro is unknown", "q_proj")),
        (lambda: target_modules(","), ("names no module", "all-linear")),
    ],
)
def test_what_isnt_known_is_told_with_the_nearest(do: Any, told: tuple[str, ...]) -> None:
    said = refusal(do)
    for words in told:
        assert words in said


def test_a_gpu_comes_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("memory_gb: 30\nbandwidth_gb_s: 500\ntflops: 90\n")
    assert accelerator(str(file)).name == "mine"
    assert accelerator(str(file)).peak.bandwidth == 500e9
    for wrong, told in (
        ("memory_gb: 30\nbandwidth: 500\ntflops: 90\n", "bandwidth"),
        ("memory_gb: -1\nbandwidth_gb_s: 500\ntflops: 90\n", "memory_gb"),
        ("memory_gb: [\n", "mine.yaml"),
    ):
        file.write_text(wrong)
        assert told in refusal(lambda: accelerator(str(file)))


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({**LLAMA, "num_local_experts": 8}, "mixtures of experts"),
        ({**LLAMA, "model_type": "gpt_neox"}, "gpt_neox"),
        ({"model_type": "gpt2", "n_embd": 768}, "no hidden_size"),
        ({**LLAMA, "hidden_size": "wide"}, "hidden_size"),
        ({**LLAMA, "num_hidden_layers": 0}, "num_hidden_layers"),
        ([1, 2], "no hidden_size"),
        ("{", "config.json"),
    ],
)
def test_a_config_that_cant_be_planned_for_says_why(tmp_path: Path, config: object, told: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(config if isinstance(config, str) else json.dumps(config))
    assert told in refusal(lambda: model_shape(str(file)))


def test_the_text_part_of_a_config_counts(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    text = Qwen3Config(**{**LLAMA, "model_type": "qwen3", "head_dim": 16}).to_dict()
    file.write_text(json.dumps({"model_type": "some_vl", "text_config": text}))
    assert model_shape(str(file)).hidden_size == 64


def test_memory_is_divided_as_the_engine_does() -> None:
    assert pytest.approx(1 - engine.CUDA_KV_SHARE - engine.CUDA_ADAPTER_SHARE) == memory.SLACK_SHARE
    assert memory.ADAPTER_SHARE == engine.CUDA_ADAPTER_SHARE
    assert (memory.CPU_KV_SHARE, memory.CPU_KV_MOST) == (CPU_KV_SHARE, engine.CPU_KV_MOST)
    assert engine.HOST_SHARE["cpu"] == memory.CPU_HOST_SHARE
