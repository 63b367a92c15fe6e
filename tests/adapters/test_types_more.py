"""The lesser known types with an exact form, measured like the others against PEFT's own forward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
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

from adapters.peft_types import TARGETS, make
from adapters.test_types_exact import check_exact

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
