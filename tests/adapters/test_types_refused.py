"""What of each type is refused, by which code and with which remedy; and that no type of PEFT is without an answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    AdaLoraConfig,
    BOFTConfig,
    C3AConfig,
    DeloraConfig,
    FourierFTConfig,
    GloraConfig,
    GraloraConfig,
    HRAConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    MissConfig,
    OFTConfig,
    PeanutConfig,
    PeftType,
    PveraConfig,
    RoadConfig,
    ShiraConfig,
    SupertuningConfig,
    TrainableTokensConfig,
    VBLoRAConfig,
    VeraConfig,
)
from safetensors.torch import load_file

from adapters import peft_types
from adapters.dense_reference import ModelWeights
from adapters.peft_made import edit_config, edit_tensors
from adapters.peft_types import base, make
from livery_adapters.canonical import CanonicalAdapter
from livery_adapters.formats import CONVERSIONS, convert
from livery_adapters.manifest import check_against, read_manifest
from livery_adapters.refusal import AdapterRefused, Limits
from livery_adapters.tensor_file import WEIGHTS_NAME
from livery_adapters.types import TYPES, type_of
from livery_adapters.types.refused import REASONS, RENAMED

Damage = Callable[[Path], object]
UP = "base_model.model.model.layers.0.mlp.up_proj"
EMBEDDING, HEAD = "base_model.model.model.embed_tokens", "base_model.model.lm_head"
TARGET = {"target_modules": ["up_proj"]}
PRUNED = {"model.layers.0.mlp.up_proj.lora_E": [True, False, True, True, False, False]}


def taken(folder: Path, limits: Limits | None = None, approximate: int = 0) -> CanonicalAdapter:
    shapes = peft_types.shapes("llama")
    manifest = read_manifest(folder)
    check_against(manifest, shapes, limits or Limits(), approximate)
    return convert(folder, manifest, ModelWeights(base("llama"), shapes.shapes), approximate)


def fields(**changed: object) -> Damage:
    return lambda folder: edit_config(folder, **changed)


def without(name: str) -> Damage:
    return lambda folder: edit_tensors(folder, **{name: None})


def tensor(name: str, *shape: int) -> Damage:
    return lambda folder: edit_tensors(folder, **{name: torch.ones(shape)})


def moved(name: str, value: int) -> Damage:
    """A whole number of a tensor set to another."""

    def damage(folder: Path) -> None:
        there = load_file(folder / WEIGHTS_NAME)[name]
        there.view(-1)[0] = value
        edit_tensors(folder, **{name: there})

    return damage


ADALORA = AdaLoraConfig(total_step=10, init_r=6, **TARGET)
VERA = VeraConfig(r=4, **TARGET)
BANK = {"num_vectors": 9, "vector_length": 8}
BAD: dict[str, tuple[Any, Damage, str, str]] = {
    "AdaLoRA without E": (ADALORA, without(f"{UP}.lora_E"), "missing_half", "lacks lora_E"),
    "AdaLoRA's pattern is another": (ADALORA, fields(rank_pattern=PRUNED), "rank_mismatch", "rank 6 and .* says 3"),
    "AdaLoRA's pattern is a number": (ADALORA, fields(rank_pattern={"x.lora_E": 3}), "bad_field", "rank_pattern"),
    "AdaLoRA with DoRA": (ADALORA, fields(use_dora=True), "unsupported_field", "use_dora"),
    "VeRA without A": (VERA, without("base_model.vera_A"), "missing_half", "save_projection is true"),
    "VeRA that would not use its A": (VERA, fields(save_projection=False), "bad_field", "which PEFT would ignore"),
    "VeRA with a narrow A": (VERA, tensor("base_model.vera_A", 4, 31), "wrong_shape", r"\[4, 31\]"),
    "VeRA of another rank": (VERA, fields(r=5), "rank_mismatch", "rank 4 and .* says 5"),
    "VeRA's seed is out of range": (VERA, fields(projection_prng_key=-1), "bad_field", "projection_prng_key"),
    "PVeRA that samples": (PveraConfig(r=4, **TARGET), fields(sample_at_inference=True), "unsupported_field", "noise"),
    "LoHa of another rank": (LoHaConfig(r=3, **TARGET), fields(r=4), "rank_mismatch", "rank 3 and .* says 4"),
    "LoHa with unlike pairs": (
        LoHaConfig(r=3, **TARGET),
        tensor(f"{UP}.hada_w2_b", 3, 31),
        "wrong_shape",
        r"twice \[out, rank\]",
    ),
    "a convolution's LoHa": (
        LoHaConfig(r=3, **TARGET),
        tensor(f"{UP}.hada_t1", 3, 3, 1, 1),
        "unknown_tensor",
        "hada_t1",
    ),
    "LoKr with half a side": (LoKrConfig(r=2, **TARGET), without(f"{UP}.lokr_w2_b"), "missing_half", "lokr_w2_b"),
    "LoKr of another base": (LoKrConfig(r=2, **TARGET), tensor(f"{UP}.lokr_w1", 6, 5), "wrong_shape", "40 -> 48"),
    "IA3 on the other side": (
        IA3Config(feedforward_modules=[], **TARGET),
        fields(feedforward_modules=["up_proj"]),
        "wrong_shape",
        "feedforward_modules",
    ),
    "IA3 of no side": (
        IA3Config(feedforward_modules=[], **TARGET),
        tensor(f"{UP}.ia3_l", 2, 3),
        "wrong_shape",
        "out, 1",
    ),
    "OFT of an old PEFT": (OFTConfig(**TARGET), fields(peft_version="0.17.1"), "unsupported_field", "since 0.18"),
    "OFT of unknown age": (OFTConfig(**TARGET), fields(peft_version=None), "unsupported_field", "since 0.18"),
    "OFT with odd blocks": (OFTConfig(**TARGET), tensor(f"{UP}.oft_R.weight", 1, 497), "wrong_shape", "size-1"),
    "OFT of another block": (OFTConfig(**TARGET), fields(oft_block_size=16), "wrong_shape", "size 32 and .* says 16"),
    "OFT of two sizes": (OFTConfig(**TARGET), fields(r=3), "bad_field", "one of them must be zero"),
    "OFT with endless terms": (OFTConfig(**TARGET), fields(num_cayley_neumann_terms=10**9), "bad_field", "at most 16"),
    "BOFT with flat blocks": (BOFTConfig(**TARGET), tensor(f"{UP}.boft_R", 1, 8, 4, 3), "wrong_shape", "size, size"),
    "BOFT of other factors": (
        BOFTConfig(**TARGET),
        tensor(f"{UP}.boft_R", 2, 8, 4, 4),
        "wrong_shape",
        "one factor or 1",
    ),
    "VB-LoRA that mixes too many": (
        VBLoRAConfig(r=2, num_vectors=65, topk=65, vector_length=8, **TARGET),
        fields(),
        "bad_field",
        "topk is 65 and must be at most 64",
    ),
    "HRA of another rank": (HRAConfig(r=3, **TARGET), fields(r=8), "rank_mismatch", "rank 3 and .* says 8"),
    "MiSS of another width": (
        MissConfig(r=4, init_weights="mini", mini_r=4, **TARGET),
        fields(mini_r=3),
        "wrong_shape",
        r"\[rank, 3\]",
    ),
    "DeLoRA without norms": (DeloraConfig(r=3, **TARGET), without(f"{UP}.delora_w_norm"), "missing_half", "w_norm"),
    "GraLoRA of another grid": (GraloraConfig(r=4, **TARGET), fields(gralora_k=4), "wrong_shape", r"\[4, in/4, rank\]"),
    "VB-LoRA without its bank": (
        VBLoRAConfig(r=2, **BANK, **TARGET),
        without("base_model.vblora_vector_bank"),
        "missing_half",
        "vector_bank is missing",
    ),
    "VB-LoRA beyond its bank": (
        VBLoRAConfig(r=2, save_only_topk_weights=True, **BANK, **TARGET),
        moved(f"{UP}.vblora_logits_A_topk_indices", 9),
        "bad_field",
        "points outside the bank of 9",
    ),
    "PEANuT with another function": (PeanutConfig(r=4, **TARGET), fields(act_fn="mish"), "unsupported_field", "mish"),
    "GLoRA of another rank": (GloraConfig(r=3, **TARGET), fields(r=4), "wrong_shape", r"\[48, 4\]"),
    "C3A of another base": (
        C3AConfig(block_size=8, **TARGET),
        tensor(f"{UP}.c3a_kernel", 6, 3, 8),
        "wrong_shape",
        "24 -> 48",
    ),
    "FourierFT of another base": (
        FourierFTConfig(n_frequency=9, **TARGET),
        tensor(f"{UP}.fourierft_spectrum", 48 * 32 + 1),
        "wrong_shape",
        "entries",
    ),
    "RoAd in odd groups": (RoadConfig(group_size=8, **TARGET), fields(group_size=7), "bad_field", "an even number"),
    "whole numbers where none belong": (
        HRAConfig(r=3, **TARGET),
        lambda folder: edit_tensors(folder, **{f"{UP}.hra_u": torch.ones(32, 3, dtype=torch.int32)}),
        "bad_dtype",
        "I32",
    ),
    "SHiRA with places that are no whole numbers": (
        ShiraConfig(r=1, **TARGET),
        tensor(f"{UP}.shira_indices", 2, 80),
        "bad_dtype",
        "F32",
    ),
    "Super-Tuning without places": (
        SupertuningConfig(sparsity=0.9, save_precomputed_indices=False, **TARGET),
        lambda folder: None,
        "missing_half",
        "save_precomputed_indices=True",
    ),
    "tokens named twice": (
        TrainableTokensConfig(token_indices=[3, 5]),
        fields(token_indices=[3, 3]),
        "bad_field",
        "different token ids",
    ),
    "a token that the base lacks": (
        TrainableTokensConfig(token_indices=[3, 5]),
        fields(token_indices=[3, 98]),
        "resized_vocabulary",
        "token 97 has no row in model.embed_tokens",
    ),
    "fewer rows than tokens": (
        TrainableTokensConfig(token_indices=[3, 5]),
        fields(token_indices=[3, 5, 7]),
        "wrong_shape",
        "a row for each",
    ),
    "rows that differ between tied modules": (
        TrainableTokensConfig(token_indices=[3, 5]),
        tensor(f"{HEAD}.trainable_tokens_delta", 2, 32),
        "replaced_weight",
        "one weight in this base",
    ),
    "a trained module that isn't named": (
        LNTuningConfig(target_modules=["input_layernorm"]),
        fields(target_modules=["norm"]),
        "untargeted_tensor",
        "input_layernorm",
    ),
}


@pytest.mark.parametrize("name", sorted(BAD))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_is_wrong_is_named(name: str, tmp_path: Path) -> None:
    config, damage, code, said = BAD[name]
    make(tmp_path, "llama", config)
    damage(tmp_path)
    with pytest.raises(AdapterRefused, match=said) as caught:
        taken(tmp_path, approximate=4)
    assert caught.value.code == code


def test_places_outside_the_base_are_refused(tmp_path: Path) -> None:
    make(tmp_path, "llama", ShiraConfig(r=1, **TARGET))
    for place in (-1, 48):
        moved(f"{UP}.shira_indices", place)(tmp_path)
        with pytest.raises(AdapterRefused, match="outside the base's weight") as caught:
            taken(tmp_path, approximate=4)
        assert caught.value.code == "wrong_shape"


def test_a_rank_over_the_limit_can_be_approximated(tmp_path: Path) -> None:
    make(tmp_path, "llama", LoHaConfig(r=4, **TARGET))
    limits = Limits(max_rank=15)
    with pytest.raises(AdapterRefused, match=r"has rank 16 and the limit is 15.*--approximate RANK") as caught:
        taken(tmp_path, limits)
    assert caught.value.code == "rank_over_limit"
    adapter = taken(tmp_path, limits, approximate=5)
    assert {delta.a.shape[0] for change in adapter.linears.values() for delta in change.deltas} == {5}
    assert all(0.01 < error < 1 for error in adapter.errors.values())
    assert len(adapter.errors) == 3
    assert taken(tmp_path, approximate=16).exact


def test_an_old_butterfly_free_file_is_taken(tmp_path: Path) -> None:
    """PEFT without its CUDA extension trains one factor whatever the configuration says."""
    make(tmp_path, "llama", BOFTConfig(boft_block_size=4, boft_n_butterfly_factor=2, **TARGET))
    assert len(taken(tmp_path).linears) == 3


def test_every_type_of_peft_has_a_form_or_a_reason() -> None:
    known = {kind.value for kind in PeftType}
    assert set(TYPES) | set(REASONS) == known
    assert not set(TYPES) & set(REASONS)
    assert set(CONVERSIONS) == set(TYPES)


@pytest.mark.parametrize("name", sorted({*REASONS, *RENAMED, "NEXT_YEARS", 7}, key=str))
def test_a_type_that_cannot_be_served_says_why(name: object) -> None:
    with pytest.raises(AdapterRefused) as caught:
        type_of(name)
    assert caught.value.code == "unsupported_peft_type"
    assert repr(name) in caught.value.message
    expected = REASONS.get(str(name)) or RENAMED.get(str(name)) or "supported are ADALORA, "
    assert expected in caught.value.message
