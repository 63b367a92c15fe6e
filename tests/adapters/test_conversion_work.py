"""Files of a few kilobytes whose conversion would take hours are refused before anything is computed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import OFTConfig
from safetensors.torch import save_file

from adapters.canonical_made import Weights
from adapters.peft_types import TARGETS, make
from adapters.test_types_exact import converted
from livery_adapters.base_model import BaseModel, BaseShapes, ModuleShape
from livery_adapters.formats import convert
from livery_adapters.formats.work import MOST_FLOPS, factorising, turning
from livery_adapters.layout import TargetTensors
from livery_adapters.manifest import check_against, read_manifest
from livery_adapters.refusal import AdapterRefused
from livery_adapters.tensor_file import CONFIG_NAME, WEIGHTS_NAME

WIDE = 1 << 15


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_a_tiny_file_that_factorises_a_huge_weight_is_refused(init: str, tmp_path: Path) -> None:
    module = "model.layers.0.self_attn.q_proj"
    tensors = {"lora_A": torch.zeros(1, WIDE), "lora_B": torch.ones(WIDE, 1)}
    save_file({f"base_model.model.{module}.{n}.weight": t for n, t in tensors.items()}, tmp_path / WEIGHTS_NAME)
    config = {"peft_type": "LORA", "r": 1, "init_lora_weights": init, "target_modules": ["q_proj"]}
    (tmp_path / CONFIG_NAME).write_text(json.dumps(config))
    manifest, weights = read_manifest(tmp_path), Weights({})
    weights.shapes = BaseShapes({module: ModuleShape("linear", WIDE, WIDE)})
    check_against(manifest, BaseModel("wide", "0" * 64, weights.shapes))
    with pytest.raises(AdapterRefused, match="path_initial_model_for_weight_conversion") as refused:
        convert(tmp_path, manifest, weights)
    assert refused.value.code == "unconverted_init"
    assert weights.asked == []


def test_large_orthogonal_blocks_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "llama", OFTConfig(r=0, oft_block_size=8, target_modules=TARGETS["llama"]))
    converted(tmp_path, "llama")
    monkeypatch.setattr("livery_adapters.formats.work.MOST_FLOPS", 1e4)
    with pytest.raises(AdapterRefused, match="oft_block_size"):
        converted(tmp_path, "llama")


def test_what_is_usual_is_allowed() -> None:
    """PiSSA of a few modules of an 8B model passes; OLoRA of all its query and value projections does, too."""
    query, value = (TargetTensors("m", "linear", {}, in_features=4096, out_features=outs) for outs in (4096, 1024))
    assert factorising("plain", [query] * 10**6) == 0
    assert factorising("pissa", [query] * 8) < MOST_FLOPS < factorising("pissa", [query, value] * 32)
    assert factorising("olora", [query, value] * 32) < MOST_FLOPS
    assert turning(5, []) == 0
