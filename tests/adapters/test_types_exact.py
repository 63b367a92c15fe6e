"""Every type with an exact form, as PEFT saved it, gives PEFT's own logits when its canonical form is applied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peft import (
    AdaLoraConfig,
    BOFTConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    OFTConfig,
    TrainableTokensConfig,
    VeraConfig,
)

from adapters import peft_types
from adapters.dense_reference import ModelWeights, applied
from adapters.peft_types import TARGETS, TOKENS, apart, base, load, logits, make
from livery_adapters.canonical import CanonicalAdapter
from livery_adapters.formats import convert
from livery_adapters.manifest import check_against, read_manifest

SCHEDULE = {"total_step": 10, "init_r": 6, "target_r": 3}
PATTERNS = {"rank_pattern": {"down_proj": 2, "layers.1.*": 5}, "alpha_pattern": {"q_proj": 3, "dense": 5.5}}


def converted(folder: Path, family: str) -> CanonicalAdapter:
    shapes = peft_types.shapes(family)
    manifest = read_manifest(folder)
    check_against(manifest, shapes)
    return convert(folder, manifest, ModelWeights(base(family), shapes.shapes))


def check_exact(folder: Path, family: str) -> CanonicalAdapter:
    """The converted files must do what PEFT does with them, and that must be something."""
    adapter = converted(folder, family)
    theirs = logits(load(folder, family))
    assert apart(theirs, logits(base(family))) > 1e-2
    assert apart(logits(applied(adapter, base(family))), theirs) < 1e-5
    assert adapter.exact
    return adapter


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "config",
    [
        pytest.param(lambda targets: AdaLoraConfig(**SCHEDULE, target_modules=targets), id="adalora"),
        pytest.param(
            lambda targets: AdaLoraConfig(**SCHEDULE, target_modules=targets, lora_alpha=0), id="adalora-alpha"
        ),
        pytest.param(lambda targets: VeraConfig(r=8, target_modules=targets), id="vera"),
        pytest.param(
            lambda targets: VeraConfig(r=5, target_modules=targets, save_projection=False, projection_prng_key=11),
            id="vera-drawn",
        ),
        pytest.param(lambda targets: IA3Config(target_modules=targets, feedforward_modules=[]), id="ia3-outputs"),
        pytest.param(lambda targets: IA3Config(target_modules=targets, feedforward_modules=targets[-1:]), id="ia3"),
        pytest.param(
            lambda targets: IA3Config(target_modules=targets, feedforward_modules=r".*proj"), id="ia3-pattern"
        ),
    ],
)
def test_types_for_any_linear_module(config: Any, family: str, tmp_path: Path) -> None:
    make(tmp_path, family, config(TARGETS[family]))
    adapter = check_exact(tmp_path, family)
    assert len(adapter.linears) == 3 * len(TARGETS[family])


@pytest.mark.parametrize("family", ["llama", "neox"])
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        pytest.param(LoHaConfig, {"r": 3}, id="loha"),
        pytest.param(LoHaConfig, {"r": 4, "alpha": 3, **PATTERNS}, id="loha-patterns"),
        pytest.param(LoKrConfig, {"r": 3}, id="lokr"),
        pytest.param(LoKrConfig, {"r": 2, "decompose_both": True}, id="lokr-both"),
        pytest.param(LoKrConfig, {"r": 64, "alpha": 100}, id="lokr-full"),
        pytest.param(LoKrConfig, {"r": 3, "decompose_factor": 4, "alpha": 2, **PATTERNS}, id="lokr-factor"),
        pytest.param(OFTConfig, {"oft_block_size": 8}, id="oft"),
        pytest.param(OFTConfig, {"oft_block_size": 0, "r": 8, "use_cayley_neumann": False}, id="oft-cayley"),
        pytest.param(OFTConfig, {"oft_block_size": 5, "num_cayley_neumann_terms": 3}, id="oft-adjusted"),
        pytest.param(OFTConfig, {"oft_block_size": 4, "num_cayley_neumann_terms": 2}, id="oft-two-terms"),
        pytest.param(OFTConfig, {"oft_block_size": 4, "num_cayley_neumann_terms": 4}, id="oft-four-terms"),
        pytest.param(OFTConfig, {"oft_block_size": 4, "num_cayley_neumann_terms": 7}, id="oft-seven-terms"),
        pytest.param(OFTConfig, {"oft_block_size": 4, "block_share": True}, id="oft-shared"),
        pytest.param(OFTConfig, {"oft_block_size": 4, "coft": True, "eps": 0.5}, id="oft-constrained"),
        pytest.param(
            OFTConfig, {"oft_block_size": 4, "coft": True, "eps": 0.4, "block_share": True}, id="oft-constrained-shared"
        ),
        pytest.param(BOFTConfig, {"boft_block_size": 4}, id="boft"),
        pytest.param(BOFTConfig, {"boft_block_size": 0, "boft_block_num": 2}, id="boft-blocks"),
    ],
)
def test_types_for_linear_layers_only(kind: Any, settings: dict[str, Any], family: str, tmp_path: Path) -> None:
    make(tmp_path, family, kind(target_modules=TARGETS[family], **settings))
    adapter = check_exact(tmp_path, family)
    assert len(adapter.linears) == 3 * len(TARGETS[family])


def seen(*more: int) -> list[int]:
    """Token ids that occur in what the models are asked, in no order."""
    return [int(TOKENS[1, 4]), int(TOKENS[0, 0]), *more]


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox"])
def test_trained_tokens_and_a_tied_head(family: str, tmp_path: Path) -> None:
    make(tmp_path, family, TrainableTokensConfig(token_indices=seen(3)))
    adapter = check_exact(tmp_path, family)
    (embedding,) = adapter.embeddings.values()
    assert embedding.rows is not None
    assert embedding.rows.ids.tolist() == sorted(seen(3))
    assert set(adapter.linears) == set(peft_types.shapes(family).shapes.tied)


def test_trained_rows_of_a_head_of_its_own(tmp_path: Path) -> None:
    head = next(name for name, module in base("neox").named_modules() if module is base("neox").lm_head)
    make(tmp_path, "neox", TrainableTokensConfig(token_indices=[96, 2], target_modules=["embed_in", head]))
    adapter = check_exact(tmp_path, "neox")
    assert set(adapter.linears) == {head}


def test_trained_norms(tmp_path: Path) -> None:
    make(tmp_path, "llama", LNTuningConfig(target_modules=["input_layernorm", "norm"]))
    assert set(check_exact(tmp_path, "llama").plain) == {
        *(f"model.layers.{index}.input_layernorm" for index in range(3)),
        "model.norm",
    }


def test_trained_copies_of_any_module(tmp_path: Path) -> None:
    """Norms with a bias, a Conv1D whose weight lies the other way round, an embedding whose head stays."""
    make(tmp_path, "gpt2", LNTuningConfig(target_modules=["ln_1", "ln_f", "c_fc", "wte"]))
    adapter = check_exact(tmp_path, "gpt2")
    assert len(adapter.plain) == 4
    assert len(adapter.linears) == 3
    assert len(adapter.embeddings) == 1
