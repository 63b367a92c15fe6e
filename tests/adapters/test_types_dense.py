"""Types of full rank: their ΔW is PEFT's, they are refused unless approximated, and the error is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    C3AConfig,
    FourierFTConfig,
    GloraConfig,
    HiraConfig,
    MissConfig,
    OSFConfig,
    RandLoraConfig,
    RoadConfig,
    ShiraConfig,
    SupertuningConfig,
)

from adapters import peft_types
from adapters.dense_reference import ModelWeights, applied
from adapters.peft_types import TARGETS, apart, base, load, logits, make
from livery_adapters.canonical import CanonicalAdapter, LowRank
from livery_adapters.formats import convert
from livery_adapters.manifest import check_against, read_manifest
from livery_adapters.refusal import AdapterRefused

FULL = 128  # no module of the tiny models has a larger rank
ANY = [
    pytest.param(FourierFTConfig, {"n_frequency": 40, "scaling": 20.0}, id="fourierft"),
    pytest.param(HiraConfig, {"r": 3, "rank_pattern": {"layers.0.*": 2}}, id="hira"),
    pytest.param(RandLoraConfig, {"r": 5, "randlora_alpha": 2}, id="randlora"),
    pytest.param(RandLoraConfig, {"r": 5, "randlora_alpha": 2, "sparse": True}, id="randlora-sparse"),
]
LINEAR = [
    pytest.param(C3AConfig, {"block_size": 8}, id="c3a"),
    pytest.param(C3AConfig, {"block_size": 8, "block_size_pattern": {"down_proj": 16}}, id="c3a-pattern"),
    pytest.param(MissConfig, {"r": 8, "init_weights": "bat"}, id="miss-bat"),
    pytest.param(RoadConfig, {"variant": "road_1", "group_size": 8}, id="road-1"),
    pytest.param(RoadConfig, {"variant": "road_2", "group_size": 4}, id="road-2"),
    pytest.param(RoadConfig, {"variant": "road_4", "group_size": 16}, id="road-4"),
    pytest.param(ShiraConfig, {"r": 3}, id="shira"),
    pytest.param(SupertuningConfig, {"sparsity": 0.8}, id="supertuning"),
    pytest.param(SupertuningConfig, {"sparsity": 0.8, "r": 3, "lora_alpha": 5}, id="supertuning-pair"),
    pytest.param(OSFConfig, {"effective_rank": 10}, id="osf"),
    pytest.param(GloraConfig, {"r": 3, "config_C": "vector", "config_D_E": "constant"}, id="glora"),
]
CASES = [(family, *case.values) for family in ("llama", "gpt2") for case in ANY]
CASES += [(family, *case.values) for family in ("llama", "neox") for case in LINEAR]


def approximated(folder: Path, family: str, rank: int) -> CanonicalAdapter:
    shapes = peft_types.shapes(family)
    manifest = read_manifest(folder)
    check_against(manifest, shapes)
    return convert(folder, manifest, ModelWeights(base(family), shapes.shapes), rank)


@pytest.mark.parametrize(("family", "kind", "settings"), CASES)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_at_full_rank_the_approximation_is_pefts_forward(
    family: str, kind: Any, settings: dict[str, Any], tmp_path: Path
) -> None:
    make(tmp_path, family, kind(target_modules=TARGETS[family], **settings), std=0.1)
    adapter = approximated(tmp_path, family, FULL)
    theirs = logits(load(tmp_path, family))
    assert apart(theirs, logits(base(family))) > 1e-2
    assert apart(logits(applied(adapter, base(family))), theirs) < 1e-5
    assert len(adapter.linears) == len(adapter.errors) == 3 * len(TARGETS[family])
    assert not adapter.exact


def test_the_error_is_what_is_left_out(tmp_path: Path) -> None:
    make(tmp_path, "llama", HiraConfig(r=3, target_modules=["down_proj"]))
    whole, part = (approximated(tmp_path, "llama", rank) for rank in (FULL, 4))
    for path, change in part.linears.items():
        (delta,), (full,) = change.deltas, whole.linears[path].deltas
        assert isinstance(delta, LowRank)
        assert isinstance(full, LowRank)
        assert delta.rank == 4
        exact = full.b @ full.a
        left = torch.linalg.vector_norm(exact - delta.b @ delta.a) / torch.linalg.vector_norm(exact)
        assert part.errors[path] == pytest.approx(float(left), rel=1e-4)
        assert part.errors[path] > 0.1


@pytest.mark.parametrize("config", [HiraConfig(r=2), MissConfig(r=8, init_weights="bat")])
def test_without_a_rank_it_is_refused_with_the_remedy(config: Any, tmp_path: Path) -> None:
    config.target_modules = {"q_proj"}
    make(tmp_path, "llama", config)
    with pytest.raises(AdapterRefused, match="--approximate RANK") as caught:
        approximated(tmp_path, "llama", 0)
    assert caught.value.code == "no_exact_form"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_random_matrices_that_differ_between_machines_are_not_drawn_anew(tmp_path: Path) -> None:
    config = RandLoraConfig(r=4, save_projection=False, target_modules=["q_proj"])
    make(tmp_path, "llama", config)
    with pytest.raises(AdapterRefused, match="save_projection is false") as caught:
        approximated(tmp_path, "llama", FULL)
    assert caught.value.code == "unsupported_field"


def test_a_rank_changes_nothing_for_a_type_with_an_exact_form(tmp_path: Path) -> None:
    make(tmp_path, "llama", MissConfig(r=8, target_modules=["q_proj"]))
    assert approximated(tmp_path, "llama", 2).exact
