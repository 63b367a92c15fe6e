"""Conversion hands an engine exactly PEFT's weights and scales, and nothing that replaces the base's own."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from adapters.peft_made import Q0, Q0_TENSORS, Weights, edit_tensors, load, lora_layers, make, tiny_base, tiny_model
from livery_adapters.canonical import CanonicalAdapter, LowRank, tensors_of
from livery_adapters.formats import convert
from livery_adapters.manifest import AdapterRefused, check_against, read_manifest
from livery_adapters.tensor_file import WEIGHTS_NAME

UNTIED = "llama-dynamic-rope"
EMBEDDING_COPY = "base_model.model.model.embed_tokens.base_layer.weight"


def converted(folder: Path, family: str = "llama", dtype: torch.dtype = torch.float32) -> CanonicalAdapter:
    manifest = read_manifest(folder)
    check_against(manifest, tiny_base(family))
    return convert(folder, manifest, Weights(family, dtype))


def peft_pair(layer: Any) -> tuple[Tensor, Tensor]:
    if "default" in layer.lora_embedding_A:
        return layer.lora_embedding_A["default"], layer.lora_embedding_B["default"]
    return layer.lora_A["default"].weight, layer.lora_B["default"].weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("family", "lora"),
    [
        ("llama", {"use_rslora": True, "rank_pattern": {"v_proj": 3}, "alpha_pattern": {"layers.1.*q_proj": 5}}),
        (UNTIED, {"target_modules": ["embed_tokens", "lm_head", "down_proj"], "lora_alpha": 3}),
        ("gpt2", {"target_modules": ["c_attn", "c_fc", "wte"], "fan_in_fan_out": True}),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning:peft")
def test_weights_and_scales_are_those_of_peft(
    family: str, lora: dict[str, Any], dtype: torch.dtype, tmp_path: Path
) -> None:
    layers = lora_layers(make(tmp_path, family, dtype=dtype, **lora))
    adapter = converted(tmp_path, family)
    pairs: Mapping[str, LowRank] = {
        **{p: c.deltas[0] for p, c in adapter.linears.items()},
        **{p: c.delta for p, c in adapter.embeddings.items()},
    }
    assert pairs.keys() == layers.keys()
    for path, layer in layers.items():
        a, b = peft_pair(layer)
        pair = pairs[path]
        assert pair.a.dtype == pair.b.dtype == dtype
        assert torch.equal(pair.a, a)
        assert torch.equal(pair.b, b)
        assert pair.scale == layer.scaling["default"]
    assert adapter.exact
    assert adapter.digest == read_manifest(tmp_path).digest


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
def test_embeddings_and_linears_are_told_apart(tmp_path: Path) -> None:
    make(tmp_path, UNTIED, target_modules=["embed_tokens", "lm_head"])
    adapter = converted(tmp_path, UNTIED)
    assert set(adapter.embeddings) == {"model.embed_tokens"}
    assert set(adapter.linears) == {"lm_head"}


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
def test_the_canonical_form_is_what_peft_adds_to_the_weights(tmp_path: Path) -> None:
    """ΔW as PEFT itself merges it: for GPT-2 and for embeddings it is stored transposed."""
    make(tmp_path, "gpt2", target_modules=["c_attn", "wte"], fan_in_fan_out=True, use_rslora=True, r=5)
    layers = lora_layers(load(tmp_path, "gpt2"))
    adapter = converted(tmp_path, "gpt2")
    assert len(layers) == 4
    for path, pair in {
        **{p: c.deltas[0] for p, c in adapter.linears.items()},
        **{p: c.delta for p, c in adapter.embeddings.items()},
    }.items():
        delta = pair.scale * (pair.b @ pair.a).T
        torch.testing.assert_close(delta, layers[path].get_delta_weight("default"), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
def test_a_copy_of_the_base_is_dropped(tmp_path: Path) -> None:
    make(tmp_path, UNTIED, target_modules=["embed_tokens", "q_proj"])
    assert EMBEDDING_COPY in load_file(tmp_path / WEIGHTS_NAME)
    adapter = converted(tmp_path, UNTIED)
    low_rank = sum(part.nbytes for part in tensors_of((adapter.linears, adapter.embeddings)))
    assert adapter.nbytes == low_rank == 4 * (4 * (97 + 32) + 3 * 4 * (32 + 32))


@pytest.mark.parametrize(
    ("saved", "base"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float32, torch.bfloat16)],
)
@pytest.mark.filterwarnings("ignore::UserWarning:peft")
def test_a_copy_may_be_rounded_to_the_coarser_dtype(saved: torch.dtype, base: torch.dtype, tmp_path: Path) -> None:
    make(tmp_path, UNTIED, target_modules=["embed_tokens"], dtype=saved)
    assert set(converted(tmp_path, UNTIED, base).embeddings) == {"model.embed_tokens"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.filterwarnings("ignore::UserWarning:peft")
def test_a_changed_copy_replaces_the_weight(dtype: torch.dtype, tmp_path: Path) -> None:
    make(tmp_path, UNTIED, target_modules=["embed_tokens"], dtype=dtype)
    changed = load_file(tmp_path / WEIGHTS_NAME)[EMBEDDING_COPY]
    changed[96, 31] *= 1.01
    edit_tensors(tmp_path, **{EMBEDDING_COPY: changed})
    change = converted(tmp_path, UNTIED).embeddings["model.embed_tokens"]
    assert change.delta is not None
    assert change.weight is not None
    assert torch.equal(change.weight, changed)


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
def test_a_resized_copy_without_the_heads_is_refused_before_any_weight_is_read(tmp_path: Path) -> None:
    make(tmp_path, UNTIED, target_modules=["embed_tokens"])
    edit_tensors(tmp_path, **{EMBEDDING_COPY: torch.ones(98, 32)})
    with pytest.raises(AdapterRefused, match="token 97 has no row in lm_head") as caught:
        check_against(read_manifest(tmp_path), tiny_base(UNTIED))
    assert caught.value.code == "resized_vocabulary"


def test_a_weight_that_overflows_is_refused_by_name(tmp_path: Path) -> None:
    make(tmp_path, dtype=torch.float16)
    name = "base_model.model.model.layers.2.self_attn.v_proj.lora_B.weight"
    weight = load_file(tmp_path / WEIGHTS_NAME)[name]
    weight[5, 1] = float("inf")
    edit_tensors(tmp_path, **{name: weight})
    with pytest.raises(AdapterRefused, match="NaN or infinity") as caught:
        converted(tmp_path)
    assert caught.value.code == "nonfinite_weights"
    assert name in caught.value.message


def test_a_header_of_odd_length_is_no_obstacle(tmp_path: Path) -> None:
    """The numbers then don't stand at multiples of their size."""
    make(tmp_path / "even")
    shutil.copytree(tmp_path / "even", tmp_path / "odd")
    file = tmp_path / "odd" / WEIGHTS_NAME
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    file.write_bytes((length + 1).to_bytes(8, "little") + data[8 : 8 + length] + b" " + data[8 + length :])
    even, odd = (list(tensors_of(converted(tmp_path / which).linears)) for which in ("even", "odd"))
    assert even and all(torch.equal(one, other) for one, other in zip(even, odd, strict=True))


def test_no_tensor_keeps_another_ones_memory(tmp_path: Path) -> None:
    make(tmp_path)
    for tensor in tensors_of(converted(tmp_path).linears):
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_finite_numbers_that_overflow_together_are_refused(tmp_path: Path) -> None:
    make(tmp_path)
    for half in "AB":
        name = f"{Q0_TENSORS}{half}.weight"
        edit_tensors(tmp_path, **{name: load_file(tmp_path / WEIGHTS_NAME)[name] * 1e20})
    with pytest.raises(AdapterRefused, match="what they amount to is not") as caught:
        converted(tmp_path)
    assert caught.value.code == "overflow"
    assert Q0 in caught.value.message


def test_large_numbers_that_stay_finite_together_are_taken(tmp_path: Path) -> None:
    make(tmp_path)
    for half, factor in (("A", 1e25), ("B", 1e-25)):  # the square of A's norm alone would overflow
        name = f"{Q0_TENSORS}{half}.weight"
        edit_tensors(tmp_path, **{name: load_file(tmp_path / WEIGHTS_NAME)[name] * factor})
    assert Q0 in converted(tmp_path).linears


def test_a_magnitude_of_a_vanished_row_is_refused(tmp_path: Path) -> None:
    """DoRA divides by the norm of W + ΔW: here B undoes a row of W, which PEFT answers with infinities."""
    make(tmp_path, use_dora=True, r=32, lora_alpha=32)
    weight = tiny_model().get_submodule(Q0).weight.detach()
    edit_tensors(tmp_path, **{f"{Q0_TENSORS}A.weight": torch.eye(32), f"{Q0_TENSORS}B.weight": -weight.clone()})
    with pytest.raises(AdapterRefused, match="what they amount to is not") as caught:
        converted(tmp_path)
    assert caught.value.code == "overflow"
