"""Adapters as the plain LoRA directories that vLLM is given: exactly what they were, or refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    PeftModel,
    VeraConfig,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.families import save
from engine.oracle import load_base, save_tuned
from livery.engine.base import AdapterPart, AdapterRef
from livery.engine.vllm_lora import NOT_APPLIED, LoraDirectories
from livery.engine.vllm_weights import shapes_of
from livery_adapters.base_model import BaseModel
from livery_adapters.composition import composition_digest
from livery_adapters.manifest import read_manifest
from livery_adapters.refusal import AdapterRefused

MODULES = ["q_proj", "v_proj", "down_proj"]
IDS = torch.tensor([[5, 9, 40, 77, 3, 12]])
ANY = 64  # rank that vLLM was started for


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("llama", tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def directories(base: Path) -> LoraDirectories:
    return LoraDirectories(base, BaseModel("llama", "d" * 64, shapes_of(str(base))))


def under(base: Path, adapter: Path) -> Tensor:
    """The logits that PEFT computes under the files in a directory."""
    with torch.inference_mode():
        logits: Tensor = PeftModel.from_pretrained(load_base(base, 64), adapter).eval()(IDS).logits
    return logits


def one(folder: Path, approximate: int = 0) -> AdapterRef:
    digest = read_manifest(folder).digest
    return AdapterRef(digest, (AdapterPart(digest, str(folder), approximate=approximate),))


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=4, lora_alpha=6, target_modules=MODULES, task_type="CAUSAL_LM"),
        LoraConfig(r=4, lora_alpha=6, use_rslora=True, target_modules=MODULES, task_type="CAUSAL_LM"),
        LoraConfig(
            r=4,
            target_modules=MODULES,
            rank_pattern={"q_proj": 7},
            alpha_pattern={"v_proj": 3},
            task_type="CAUSAL_LM",
        ),
        AdaLoraConfig(init_r=4, target_r=2, total_step=10, target_modules=MODULES, task_type="CAUSAL_LM"),
        LoHaConfig(r=2, alpha=3, target_modules=MODULES, task_type="CAUSAL_LM"),
        VeraConfig(r=5, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    ],
    ids=["lora", "rslora", "patterns", "adalora", "loha", "vera"],
)
def test_a_low_rank_change_is_written_exactly(
    base: Path, directories: LoraDirectories, tmp_path: Path, config: PeftConfig
) -> None:
    original = save_tuned(base, tmp_path / "original", 3, config)
    written = directories.write(one(original), tmp_path / "written", ANY)
    before, after = under(base, original), under(base, tmp_path / "written")
    assert float((after - before).abs().max() / before.abs().max()) < 1e-5
    with torch.inference_mode():
        plain = load_base(base, 64)(IDS).logits
    assert float((before - plain).abs().max() / plain.abs().max()) > 1e-2  # it moves what is compared
    manifest = read_manifest(tmp_path / "written")
    assert manifest.peft_type == "LORA" and manifest.max_rank == written.rank
    assert all(target.scale == 1 for target in manifest.targets)
    assert written.effect.exact and set(written.effect.modules) == {target.module for target in manifest.targets}


def test_a_sum_is_one_adapter(base: Path, directories: LoraDirectories, tmp_path: Path) -> None:
    config = LoraConfig(r=4, lora_alpha=6, target_modules=MODULES, task_type="CAUSAL_LM")
    parts = [
        AdapterPart(read_manifest(folder).digest, str(folder), weight)
        for seed, weight in ((3, 0.5), (4, -0.25))
        for folder in [save_tuned(base, tmp_path / str(seed), seed, config)]
    ]
    digest = composition_digest([(part.digest, part.weight) for part in parts])
    written = directories.write(AdapterRef(digest, tuple(parts)), tmp_path / "sum", ANY)
    assert written.rank == 8
    expected = load_base(base, 64)
    for part in parts:
        merged = PeftModel.from_pretrained(load_base(base, 64), part.path).merge_and_unload()
        for (name, weight), theirs, plain in zip(
            expected.named_parameters(), merged.parameters(), load_base(base, 64).parameters(), strict=True
        ):
            if any(module in name for module in MODULES):
                weight.data += part.weight * (theirs - plain).detach()
    with torch.inference_mode():
        summed = expected(IDS).logits
    assert float((under(base, tmp_path / "sum") - summed).abs().max() / summed.abs().max()) < 1e-5


DORA = LoraConfig(r=4, use_dora=True, target_modules=MODULES, task_type="CAUSAL_LM")
IA3 = IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM")
OFT = OFTConfig(oft_block_size=8, target_modules=["q_proj"], task_type="CAUSAL_LM")
LOKR = LoKrConfig(r=3, alpha=3, target_modules=["q_proj"], task_type="CAUSAL_LM")


@pytest.mark.parametrize("config", [DORA, IA3, OFT, LOKR], ids=["dora", "ia3", "oft", "lokr"])
def test_what_is_no_lora_is_refused_or_factorised_with_its_error(
    base: Path, directories: LoraDirectories, tmp_path: Path, config: PeftConfig
) -> None:
    original = save_tuned(base, tmp_path / "original", 3, config)
    with pytest.raises(AdapterRefused, match="--approximate RANK") as refused:
        directories.write(one(original), tmp_path / "refused", ANY)
    assert refused.value.code == NOT_APPLIED and "--engine livery" in str(refused.value)
    assert not (tmp_path / "refused").exists()
    written = directories.write(one(original, 8), tmp_path / "rough", ANY)
    assert 0 < written.effect.error < 1 and written.rank == 8


def test_a_factorisation_of_full_rank_is_the_change_itself(
    base: Path, directories: LoraDirectories, tmp_path: Path
) -> None:
    original = save_tuned(base, tmp_path / "original", 3, DORA)
    full = directories.write(one(original, 48), tmp_path / "full", ANY)  # as many as the smallest side has
    before, after = under(base, original), under(base, tmp_path / "full")
    assert float((after - before).abs().max() / before.abs().max()) < 1e-4
    assert full.effect.error < 1e-4


@pytest.mark.parametrize(
    ("config", "held"),
    [
        (LoraConfig(r=4, lora_bias=True, target_modules=["o_proj"], task_type="CAUSAL_LM"), "a trained bias"),
        (LoraConfig(r=4, target_modules=["q_proj", "embed_tokens"], task_type="CAUSAL_LM"), "an embedding"),
        (
            LoraConfig(r=4, modules_to_save=["norm"], target_modules=MODULES, task_type="CAUSAL_LM"),
            "replaced parameters",
        ),
        (LNTuningConfig(task_type="CAUSAL_LM"), "replaced parameters"),
    ],
    ids=["bias", "embedding", "norm", "ln-tuning"],
)
def test_what_has_no_place_in_a_lora_is_refused_at_any_rank(
    directories: LoraDirectories, tmp_path: Path, base: Path, config: PeftConfig, held: str
) -> None:
    original = save_tuned(base, tmp_path / "original", 3, config)
    with pytest.raises(AdapterRefused, match=held) as refused:
        directories.write(one(original, 32), tmp_path / "refused", ANY)
    assert "--engine livery" in str(refused.value)


def test_a_rank_beyond_vllms_is_refused_with_the_flag_or_cut_down(
    base: Path, directories: LoraDirectories, tmp_path: Path
) -> None:
    config = LoraConfig(r=12, target_modules=["q_proj"], task_type="CAUSAL_LM")
    original = save_tuned(base, tmp_path / "original", 3, config)
    with pytest.raises(AdapterRefused, match="--max-lora-rank 12 or more"):
        directories.write(one(original), tmp_path / "refused", 8)
    written = directories.write(one(original, 8), tmp_path / "cut", 8)
    assert written.rank == 8 and 0 < written.effect.error < 1


@pytest.mark.parametrize(
    ("config", "asked", "words"),
    [
        (DORA, 32, "has rank 32 and vLLM was started for ranks up to 16; restart the server with --max-lora-rank 32"),
        (LOKR, 32, "--max-lora-rank 32 or more, or add it with --approximate 16"),
        (LoraConfig(r=24, target_modules=["q_proj"], task_type="CAUSAL_LM"), 20, "--max-lora-rank 20 or more"),
    ],
    ids=["dora", "lokr", "lora"],
)
def test_an_approximation_of_a_rank_beyond_vllms_is_refused_and_not_a_rougher_one(
    base: Path, directories: LoraDirectories, tmp_path: Path, config: PeftConfig, asked: int, words: str
) -> None:
    original = save_tuned(base, tmp_path / "original", 3, config)
    with pytest.raises(AdapterRefused, match=words) as refused:
        directories.write(one(original, asked), tmp_path / "refused", 16)
    assert refused.value.code == NOT_APPLIED and not (tmp_path / "refused").exists()
    assert directories.write(one(original, asked), tmp_path / "written", asked).rank == asked


def test_a_lora_that_fits_is_written_exactly_whatever_approximation_it_would_have_had(
    base: Path, directories: LoraDirectories, tmp_path: Path
) -> None:
    config = LoraConfig(r=12, target_modules=["q_proj"], task_type="CAUSAL_LM")
    original = save_tuned(base, tmp_path / "original", 3, config)
    written = directories.write(one(original, 512), tmp_path / "written", 16)
    assert written.rank == 12 and written.effect.exact


def test_files_that_were_changed_are_not_converted(base: Path, directories: LoraDirectories, tmp_path: Path) -> None:
    config = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    original = save_tuned(base, tmp_path / "original", 3, config)
    ref = one(original)
    save_tuned(base, original, 4, config)
    with pytest.raises(AdapterRefused, match="changed since"):
        directories.write(ref, tmp_path / "refused", ANY)


@pytest.fixture(scope="module")
def quantised(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base as AWQ and GPTQ leave one: packed numbers under other names, and a method in its configuration."""
    folder = tmp_path_factory.mktemp("quantised") / "llama"
    shutil.copytree(base, folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "awq", "bits": 4, "group_size": 16}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    packed = {
        name.replace("proj.weight", "proj.qweight"): torch.zeros(4, 4, dtype=torch.int32) if "proj." in name else tensor
        for name, tensor in tensors.items()
    }
    save_file(packed, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_a_plain_lora_over_a_quantised_base_needs_none_of_its_weights(
    base: Path, quantised: Path, tmp_path: Path
) -> None:
    directories = LoraDirectories(quantised, BaseModel("llama", "d" * 64, shapes_of(str(quantised))))
    config = LoraConfig(r=4, lora_alpha=6, target_modules=MODULES, task_type="CAUSAL_LM")
    original = save_tuned(base, tmp_path / "original", 3, config)
    written = directories.write(one(original), tmp_path / "written", ANY)
    assert float((under(base, tmp_path / "written") - under(base, original)).abs().max()) < 1e-4
    assert {module.relative for module in written.effect.modules.values()} == {None}
    assert written.effect.exact and not written.effect.changes_nothing


def test_what_would_need_the_weights_of_a_quantised_base_is_refused(
    base: Path, quantised: Path, tmp_path: Path
) -> None:
    directories = LoraDirectories(quantised, BaseModel("llama", "d" * 64, shapes_of(str(quantised))))
    original = save_tuned(base, tmp_path / "original", 3, DORA)
    with pytest.raises(AdapterRefused, match=r"llama are quantised \(awq\)\. Use a base in full precision"):
        directories.write(one(original, 32), tmp_path / "refused", ANY)
