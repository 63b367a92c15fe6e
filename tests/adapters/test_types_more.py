"""The lesser known types with an exact form, measured like the others against PEFT's own forward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    BeftConfig,
    DeftConfig,
    DeloraConfig,
    GloraConfig,
    GraloraConfig,
    HRAConfig,
    MissConfig,
    PeanutConfig,
    PveraConfig,
    VBLoRAConfig,
)

from adapters.canonical_made import Weights
from adapters.largest import Largest
from adapters.peft_types import TARGETS, make
from adapters.test_types_exact import check_exact
from livery_adapters.canonical import LowRank
from livery_adapters.formats import vblora
from livery_adapters.layout import TargetTensors
from livery_adapters.types.vblora import VbLoraSettings

BANK = {"num_vectors": 9, "vector_length": 8}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        pytest.param(DeftConfig, {"r": 3}, id="deft"),
        pytest.param(DeftConfig, {"r": 40, "alpha": 6, "decomposition_method": "relu"}, id="deft-relu"),
        pytest.param(DeftConfig, {"r": 3, "para": True}, id="deft-removal"),
        pytest.param(GraloraConfig, {"r": 4, "gralora_k": 2}, id="gralora"),
        pytest.param(GraloraConfig, {"r": 8, "gralora_k": 4, "hybrid_r": 3, "alpha": 5}, id="gralora-hybrid"),
        pytest.param(PveraConfig, {"r": 6}, id="pvera"),
        pytest.param(PveraConfig, {"r": 6, "save_projection": False, "projection_prng_key": 3}, id="pvera-drawn"),
        pytest.param(VBLoRAConfig, {"r": 2, **BANK}, id="vblora"),
        pytest.param(VBLoRAConfig, {"r": 3, "topk": 4, **BANK}, id="vblora-top-four"),
        pytest.param(VBLoRAConfig, {"r": 3, "topk": 3, "save_only_topk_weights": True, **BANK}, id="vblora-mixed"),
    ],
)
def test_types_for_any_linear_module(kind: Any, settings: dict[str, Any], family: str, tmp_path: Path) -> None:
    make(tmp_path, family, kind(target_modules=TARGETS[family], **settings))
    adapter = check_exact(tmp_path, family)
    assert len(adapter.linears) == 3 * len(TARGETS[family])


@pytest.mark.parametrize("family", ["llama", "neox"])
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        pytest.param(BeftConfig, {}, id="beft"),
        pytest.param(DeloraConfig, {"r": 3}, id="delora"),
        pytest.param(DeloraConfig, {"r": 3, "rank_pattern": {"layers.0.*": 5}}, id="delora-pattern"),
        pytest.param(GloraConfig, {"r": 3, "config_A_B": "vector", "config_C": "lora"}, id="glora-vectors"),
        pytest.param(
            GloraConfig, {"config_A_B": "constant", "config_C": "none", "config_D_E": "vector"}, id="glora-constants"
        ),
        pytest.param(HRAConfig, {"r": 5}, id="hra"),
        pytest.param(HRAConfig, {"r": 5, "apply_GS": True}, id="hra-orthogonal"),
        pytest.param(PeanutConfig, {"r": 4}, id="peanut"),
        pytest.param(PeanutConfig, {"r": 4, "depth": 2, "act_fn": "silu", "scaling": 0.5}, id="peanut-deep"),
        pytest.param(MissConfig, {"r": 4}, id="miss"),
        pytest.param(MissConfig, {"r": 5, "init_weights": False}, id="miss-with-a-remainder"),
        pytest.param(MissConfig, {"r": 8, "init_weights": "mini", "mini_r": 4}, id="miss-mini"),
    ],
)
def test_types_for_linear_layers_only(kind: Any, settings: dict[str, Any], family: str, tmp_path: Path) -> None:
    make(tmp_path, family, kind(target_modules=TARGETS[family], **settings))
    adapter = check_exact(tmp_path, family)
    assert len(adapter.linears) == 3 * len(TARGETS[family])


def test_mixing_vectors_lays_none_of_them_side_by_side() -> None:
    """Each piece is a sum of up to 64 vectors; all of them beside each other would be 64 times the result."""
    settings = VbLoraSettings(rank=16, top=64, count=64, length=64, mixed=False)
    tensors = {
        "vblora_vector_bank": torch.randn(64, 64),
        "vblora_logits_A": torch.randn(16, 8, 64),
        "vblora_logits_B": torch.randn(8, 16, 64),
    }
    target = TargetTensors("m", "linear", {}, rank=16)
    with Largest() as largest:
        change = vblora.convert_module(target, tensors, settings, Weights({}))
    (pair,) = change.deltas
    assert isinstance(pair, LowRank)
    expected = (tensors["vblora_logits_A"].softmax(-1) @ tensors["vblora_vector_bank"]).flatten(1)
    torch.testing.assert_close(pair.a, expected)
    assert largest.nbytes <= 2 * pair.a.nbytes  # the 64 indices of each piece
