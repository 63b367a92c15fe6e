"""LoRA on fused experts: each expert's own pair, in the layout of the model's family."""

from __future__ import annotations

import copy
import itertools
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GptOssConfig, MixtralConfig

from adapters.dense_reference import ModelWeights, applied
from adapters.peft_made import edit_config, shapes_of
from adapters.peft_types import apart, logits
from engine.families import SMALL, configs
from livery_adapters.base_model import BaseModel
from livery_adapters.canonical import CanonicalAdapter
from livery_adapters.formats import convert
from livery_adapters.manifest import AdapterRefused, check_against, read_manifest
from livery_adapters.tensor_file import CONFIG_NAME, WEIGHTS_NAME

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore::RuntimeWarning:peft")

BOTH = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
CONFIGS = {
    "qwen3-moe": configs()["qwen3-moe"],
    "mixtral": MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2),
    "gpt-oss": GptOssConfig(  # square experts, so that nothing but the layout tells which way round they lie
        **{**SMALL, "intermediate_size": 32}, num_local_experts=4, num_experts_per_tok=2
    ),
}


@cache
def model_of(family: str) -> Any:
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(CONFIGS[family]).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.2)
    return model


def made(folder: Path, family: str, **settings: Any) -> Any:
    """Save an adapter with random weights, and return PEFT's model as it loads the files."""
    config = LoraConfig(**{"r": 3, "lora_alpha": 5, "target_modules": ["q_proj"], **settings})
    model = get_peft_model(copy.deepcopy(model_of(family)), config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.15)
    model.save_pretrained(folder)
    return PeftModel.from_pretrained(copy.deepcopy(model_of(family)), folder).eval()


def converted(folder: Path, family: str) -> CanonicalAdapter:
    shapes = shapes_of(model_of(family))
    manifest = read_manifest(folder)
    check_against(manifest, BaseModel(f"tiny-{family}", "0" * 64, shapes))
    return convert(folder, manifest, ModelWeights(model_of(family), shapes))


def with_experts(adapter: CanonicalAdapter, family: str) -> Any:
    """The base with the adapter's changes of its weights, the experts' put in one expert at a time."""
    model = applied(adapter, model_of(family))
    shapes = shapes_of(model_of(family)).experts
    for path, change in adapter.experts.items():
        weight: Tensor = model.get_parameter(path)
        for expert in range(len(weight)):
            delta = change.scale * change.b[expert] @ change.a[expert]
            weight.data[expert] += delta.T if shapes[path].input_first else delta
    return model


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize(
    "settings",
    [
        {"target_parameters": BOTH},
        {"target_parameters": BOTH[:1], "use_rslora": True},
        {"target_parameters": BOTH[1:], "target_modules": []},
        {"target_parameters": ["experts.down_proj", "experts.gate_up_proj"], "rank_pattern": {"experts.down_proj": 2}},
        {"target_parameters": BOTH, "alpha_pattern": {r"layers\.1\.mlp\.experts\.gate_up_proj": 9}},
        {"target_parameters": ["self_attn.v_proj.weight"]},
    ],
    ids=["both", "first", "second", "ranks", "alphas", "linear"],
)
def test_experts_are_adapted_as_peft_adapts_them(settings: dict[str, Any], family: str, tmp_path: Path) -> None:
    theirs = logits(made(tmp_path, family, **settings))
    adapter = converted(tmp_path, family)
    assert apart(theirs, logits(model_of(family))) > 1e-2
    assert apart(logits(with_experts(adapter, family)), theirs) < 1e-5
    assert all(change.a.shape[0] == 4 for change in adapter.experts.values())


def test_another_number_of_experts_is_refused(tmp_path: Path) -> None:
    made(tmp_path, "mixtral", r=4, target_parameters=BOTH, target_modules=[])
    edit_config(tmp_path, r=2)
    with pytest.raises(AdapterRefused, match="adapted as 8 experts") as caught:
        converted(tmp_path, "mixtral")
    assert caught.value.code == "wrong_shape"


def test_experts_that_the_base_lacks_are_refused(tmp_path: Path) -> None:
    made(tmp_path, "mixtral", target_parameters=BOTH)
    with pytest.raises(AdapterRefused, match="no experts' parameter") as caught:
        check_against(read_manifest(tmp_path), BaseModel("dense", "0" * 64, shapes_of(plain_llama())))
    assert caught.value.code == "unknown_tensor"


def plain_llama() -> Any:
    return AutoModelForCausalLM.from_config(configs()["llama"])


@pytest.mark.parametrize(
    ("family", "root", "names"),
    [("qwen3-moe", "mlp", ("gate_proj", "up_proj", "down_proj")), ("mixtral", "block_sparse_moe", ("w1", "w3", "w2"))],
)
def test_pairs_of_single_experts_are_refused_with_a_remedy_that_works(
    family: str, root: str, names: tuple[str, ...], tmp_path: Path
) -> None:
    """As PEFT wrote them before transformers 5; loading and saving them again is the remedy."""
    inner = model_of(family).get_parameter("model.layers.0.mlp.experts.down_proj").shape[2]
    generator = torch.Generator().manual_seed(4)
    tensors = {}
    for layer, expert, name in itertools.product(range(3), range(4), names):
        path = f"base_model.model.model.layers.{layer}.{root}.experts.{expert}.{name}"
        sizes = (inner, 32) if name == names[-1] else (32, inner)
        tensors[f"{path}.lora_A.weight"] = torch.randn(3, sizes[0], generator=generator) * 0.3
        tensors[f"{path}.lora_B.weight"] = torch.randn(sizes[1], 3, generator=generator) * 0.3
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    save_file(tensors, old / WEIGHTS_NAME)
    config = {"peft_type": "LORA", "r": 3, "lora_alpha": 5, "target_modules": list(names)}
    (old / CONFIG_NAME).write_text(json.dumps(config))
    with pytest.raises(AdapterRefused, match="save it again") as caught:
        converted(old, family)
    assert caught.value.code == "unfused_experts"
    model = PeftModel.from_pretrained(copy.deepcopy(model_of(family)), old).eval()
    model.save_pretrained(new)
    adapter = converted(new, family)
    assert apart(logits(model), logits(model_of(family))) > 1e-2
    assert apart(logits(with_experts(adapter, family)), logits(model)) < 1e-5
