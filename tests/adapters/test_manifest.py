"""What PEFT saves is read as PEFT would apply it, and reported; what is refused is in test_manifest_refusals."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from adapters.peft_made import (
    edit_config,
    load,
    lora_layers,
    make,
    tiny_base,
)
from livery_adapters.effect import AdapterEffect, ModuleEffect
from livery_adapters.manifest import Limits, check_against, read_manifest
from livery_adapters.tensor_file import CONFIG_NAME, WEIGHTS_NAME
from livery_adapters.types import TYPES

CONFIGURATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("llama", {"r": 4, "lora_alpha": 12}),
    "rslora": ("llama", {"r": 3, "lora_alpha": 16, "use_rslora": True}),
    "patterns by name": (
        "llama",
        {"rank_pattern": {"q_proj": 2, "v_proj": 6}, "alpha_pattern": {"v_proj": 5}, "lora_alpha": 3},
    ),
    "patterns of one layer": (
        "llama",
        {
            "rank_pattern": {r"^model\.layers\.1\.self_attn\.q_proj": 2, r"layers\.[0-9]+\.self_attn\.v_proj": 7},
            "alpha_pattern": {r"layers.\d.self_attn.q_proj": 5, "model.*v_proj": 9},
        },
    ),
    "the first pattern counts": (
        "llama",
        {"rank_pattern": {r".*\.2\..*q_proj": 5, "q_proj|v_proj": 3}, "alpha_pattern": {"v_proj$": 1, "v_proj": 2}},
    ),
    "a pattern starts at a dot": ("llama", {"rank_pattern": {"_proj": 2, "proj": 2}, "alpha_pattern": {"_attn.*": 2}}),
    "rslora with patterns": (
        "llama",
        {"use_rslora": True, "rank_pattern": {"v_proj": 9}, "alpha_pattern": {"q_proj": 1}, "lora_alpha": 4},
    ),
    "every linear": ("llama", {"target_modules": "all-linear", "r": 2}),
    "one pattern for all targets": ("llama", {"target_modules": r".*layers\.[01]\..*\.(up|down)_proj"}),
    "some layers": ("llama", {"layers_to_transform": [0, 2]}),
    "one layer of a named list": ("llama", {"layers_to_transform": 1, "layers_pattern": "layers"}),
    "modules left out": ("llama", {"exclude_modules": ["layers.1.self_attn.v_proj"]}),
    "embeddings": ("llama-dynamic-rope", {"target_modules": ["embed_tokens", "q_proj"], "rank_pattern": {"q_proj": 2}}),
    "head": ("llama-dynamic-rope", {"target_modules": ["lm_head", "v_proj"], "alpha_pattern": {"lm_head": 1}}),
    "GPT-2's transposed linears": (
        "gpt2",
        {"target_modules": ["c_attn", "c_proj", "wte"], "fan_in_fan_out": True, "rank_pattern": {"attn.c_proj": 2}},
    ),
}


@pytest.mark.parametrize("case", CONFIGURATIONS)
@pytest.mark.filterwarnings("ignore::UserWarning:peft")
def test_modules_ranks_and_scales_are_those_of_peft(case: str, tmp_path: Path) -> None:
    family, lora = CONFIGURATIONS[case]
    make(tmp_path, family, **lora)
    layers = lora_layers(load(tmp_path, family))
    manifest = read_manifest(tmp_path)
    check_against(manifest, tiny_base(family))
    found = {target.module: (target.rank, target.scale) for target in manifest.targets}
    assert found == {path: (layer.r["default"], layer.scaling["default"]) for path, layer in layers.items()}


@pytest.mark.parametrize(("dtype", "name"), [(torch.bfloat16, "BF16"), (torch.float16, "F16"), (torch.float32, "F32")])
def test_dtypes_are_reported(dtype: torch.dtype, name: str, tmp_path: Path) -> None:
    make(tmp_path, dtype=dtype)
    assert {target.dtype for target in read_manifest(tmp_path).targets} == {name}


def test_the_coverage_report_counts_what_is_adapted(tmp_path: Path) -> None:
    make(tmp_path, target_modules=["q_proj", "up_proj"], r=2, rank_pattern={"up_proj": 5}, dtype=torch.bfloat16)
    manifest = read_manifest(tmp_path)
    report = check_against(manifest, tiny_base())
    assert report.to_dict() == {
        "digest": manifest.digest,
        "base": "tiny-llama",
        "peft_type": "LORA",
        "adapted": 6,
        "modules": {"q_proj": 3, "up_proj": 3},
        "ranks": (2, 5),
        "dtypes": ("BF16",),
        "nbytes": sum((tmp_path / name).stat().st_size for name in (CONFIG_NAME, WEIGHTS_NAME)),
        "warnings": (),
        "modules_by_path": {
            f"model.layers.{layer}.{module}": {
                "kind": "linear",
                "rank": rank,
                "dtype": "BF16",
                "nbytes": nbytes,
                "relative": None,
                "error": None,
            }
            for layer in range(3)
            for module, rank, nbytes in (
                ("self_attn.q_proj", 2, 2 * 2 * (32 + 32)),
                ("mlp.up_proj", 5, 2 * 5 * (32 + 48)),
            )
        },
        "smallest_effect": None,
        "median_effect": None,
        "largest_effect": None,
        "exact": None,
        "error": None,
        "task": "generate",
        "num_labels": 0,
        "added_tokens": 0,
        "beside": {},
    }


def test_the_report_warns_of_what_is_allowed_but_suspicious(tmp_path: Path) -> None:
    make(tmp_path, target_modules=".*q_proj", lora_alpha=0)
    edit_config(tmp_path, base_model_name_or_path="somebody/other-base")
    other, pattern, zero = check_against(read_manifest(tmp_path), tiny_base()).warnings
    assert "somebody/other-base" in other
    assert "tiny-llama" in other
    assert "pattern" in pattern
    assert "zero" in zero


def test_the_report_warns_of_patterns_that_overlap(tmp_path: Path) -> None:
    """PEFT sorts the patterns when it saves: what counted in training may come second at load."""
    make(tmp_path, alpha_pattern={"v_proj": 3, r"layers\.1\..*": 2})
    (warning,) = check_against(read_manifest(tmp_path), tiny_base(), Limits()).warnings
    assert "alpha_pattern" in warning
    assert "both match model.layers.1.self_attn.v_proj" in warning


def test_the_report_takes_in_what_an_engine_measured(tmp_path: Path) -> None:
    make(tmp_path, target_modules=["q_proj"], layers_to_transform=[0, 1])
    report = check_against(read_manifest(tmp_path), tiny_base())
    paths = [f"model.layers.{layer}.self_attn.q_proj" for layer in (0, 1)]
    effects = {paths[0]: ModuleEffect(4, 0.5), paths[1]: ModuleEffect(4, 0.1, 0.02), "lm_head": ModuleEffect(0, 0.3)}
    measured = report.with_effect(AdapterEffect(effects, 10))
    assert (measured.smallest_effect, measured.median_effect, measured.largest_effect) == (0.1, 0.3, 0.5)
    assert (measured.exact, measured.error) == (False, 0.02)
    assert measured.modules_by_path[paths[1]].relative == 0.1
    assert measured.modules_by_path[paths[1]].error == 0.02
    assert measured.modules_by_path[paths[0]].nbytes == 4 * 4 * (32 + 32)
    assert measured.modules_by_path["lm_head"].kind == "tied"
    assert (measured.adapted, measured.exact) == (2, False)
    assert report.exact is None
    json.dumps(measured.to_dict())


def test_verified_files_are_not_hashed_again(tmp_path: Path) -> None:
    make(tmp_path)
    hashed = read_manifest(tmp_path)
    assert dataclasses.replace(hashed, digest="given") == read_manifest(tmp_path, digest="given")


def test_the_digest_follows_both_files_and_nothing_else(tmp_path: Path) -> None:
    one, same, trained = tmp_path / "one", tmp_path / "same", tmp_path / "trained"
    make(one, seed=1)
    make(same, seed=1)
    make(trained, seed=2)
    (same / "README.md").write_text("other words")
    digest = read_manifest(one).digest
    assert read_manifest(same).digest == digest
    assert read_manifest(trained).digest != digest
    edit_config(same, lora_alpha=9)
    assert read_manifest(same).digest != digest


@pytest.mark.parametrize("name", sorted(TYPES))
def test_every_field_of_pefts_configuration_has_one_rule(name: str) -> None:
    rules = TYPES[name].rules
    own = [*rules.read, *rules.harmless, *rules.refused]  # which may say more of a common field
    assert len(own) == len(set(own)), "a field has two rules"
    missing = {field.name for field in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[name])} - rules.known
    assert not missing, "a new PEFT has fields that nobody has judged yet"
