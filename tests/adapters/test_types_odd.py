"""What is odd about single types: pruned ranks, butterflies of several factors, turned embeddings, shared memory."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import (
    AdaLoraConfig,
    BeftConfig,
    BOFTConfig,
    DeftConfig,
    DeloraConfig,
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
    PveraConfig,
    TrainableTokensConfig,
    VBLoRAConfig,
    VeraConfig,
)
from peft.tuners.boft import layer as boft_layer
from safetensors.torch import load_file
from torch import Tensor

from adapters.peft_made import edit_tensors
from adapters.peft_types import TARGETS, base, make
from adapters.test_types_exact import SCHEDULE, check_exact, converted, seen
from livery_adapters.canonical import Kronecker, LowRank, SharedBasis, tensors_of
from livery_adapters.compose import check_additive
from livery_adapters.formats.oft import butterfly_order, cayley_series
from livery_adapters.tensor_file import WEIGHTS_NAME


def prune(model: Any, directory: Path) -> dict[str, int]:
    """Mask singular values as AdaLoRA's training does, save, and return what rank each module keeps."""
    pattern: dict[str, list[bool]] = {}
    kept = {}
    for index, (name, values) in enumerate(
        (name, values) for name, values in model.base_model.model.named_parameters() if ".lora_E." in name
    ):
        mask = [(index >> bit) % 2 == 1 for bit in range(len(values))]  # the first module keeps nothing
        with torch.no_grad():
            values.masked_fill_(~torch.tensor(mask)[:, None], 0.0)
        pattern[name] = mask
        kept[name.removesuffix(".lora_E.default")] = sum(mask)
    model.peft_config["default"].rank_pattern = pattern
    model.save_pretrained(directory)
    return kept


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_pruned_ranks(family: str, tmp_path: Path) -> None:
    kept = prune(make(tmp_path, family, AdaLoraConfig(**SCHEDULE, target_modules=TARGETS[family])), tmp_path)
    adapter = check_exact(tmp_path, family)
    ranks = {path: delta.rank for path, change in adapter.linears.items() for delta in change.deltas}
    assert ranks == {path: rank for path, rank in kept.items() if rank}
    assert 0 in kept.values()
    check_additive(adapter)


@pytest.mark.parametrize("family", ["llama", "neox"])
@pytest.mark.parametrize("factors", [2, 3])
def test_butterflies_of_several_factors(
    factors: int, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEFT needs a CUDA extension for these: its one operation, a block diagonal, is done by torch here."""

    def block_diagonal(blocks: Tensor) -> list[Tensor]:
        return [torch.stack([torch.block_diag(*factor) for factor in blocks])]

    monkeypatch.setattr(boft_layer, "get_fbd_cuda", lambda: SimpleNamespace(forward=block_diagonal))
    config = BOFTConfig(boft_block_size=4, boft_n_butterfly_factor=factors, target_modules=TARGETS[family])
    make(tmp_path, family, config)
    adapter = check_exact(tmp_path, family)
    transforms = [change.transform for change in adapter.linears.values()]
    assert all(transform is not None and len(transform.stages) == factors for transform in transforms)


def test_a_butterfly_sorts_half_blocks_within_its_groups() -> None:
    """Four blocks of four: factor 1 pairs blocks, so of each pair's halves abcd come a and c first."""
    assert butterfly_order(4, 4, 0) is None
    order = butterfly_order(4, 4, 1)
    assert order is not None
    assert order.tolist() == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]


def test_one_term_turns_nothing() -> None:
    assert torch.equal(cayley_series(torch.ones(2, 3, 3), 1), torch.eye(3).expand(2, 3, 3))


@pytest.mark.parametrize("family", ["llama", "neox"])
@pytest.mark.filterwarnings("ignore::UserWarning:peft")
def test_a_turned_embedding_leaves_a_tied_head_alone(family: str, tmp_path: Path) -> None:
    name = "embed_tokens" if family == "llama" else "embed_in"
    make(tmp_path, family, OFTConfig(oft_block_size=4, target_modules=[name]))
    adapter = check_exact(tmp_path, family)
    assert not adapter.linears
    (change,) = adapter.embeddings.values()
    assert change.weight is not None


def test_projections_are_held_once(tmp_path: Path) -> None:
    make(tmp_path, "llama", VeraConfig(r=8, target_modules=TARGETS["llama"]))
    adapter = converted(tmp_path, "llama")
    bases = [delta for change in adapter.linears.values() for delta in change.deltas]
    assert all(isinstance(basis, SharedBasis) for basis in bases)
    vectors = 3 * 4 * sum(out + 8 for out in (32, 16, 32, 48, 32))
    assert adapter.nbytes == 4 * (8 * 48 + 48 * 8) + vectors


def test_shared_blocks_are_held_once(tmp_path: Path) -> None:
    make(tmp_path, "llama", OFTConfig(oft_block_size=4, block_share=True, target_modules=["q_proj"]))
    adapter = converted(tmp_path, "llama")
    assert [part.shape for part in tensors_of(adapter.linears)] == [(8, 4, 4)] * 3
    assert adapter.nbytes == 3 * 4 * 4 * 4


def test_products_keep_their_form(tmp_path: Path) -> None:
    make(tmp_path, "llama", LoKrConfig(r=2, target_modules=["up_proj"]))
    (delta,) = converted(tmp_path, "llama").linears["model.layers.0.mlp.up_proj"].deltas
    assert isinstance(delta, Kronecker)
    assert (delta.left.shape, delta.right.shape) == ((6, 4), (8, 8))
    make(tmp_path, "llama", LoHaConfig(r=3, target_modules=["up_proj"]))
    (delta,) = converted(tmp_path, "llama").linears["model.layers.0.mlp.up_proj"].deltas
    assert isinstance(delta, LowRank)
    assert delta.rank == 9


HALVES = {
    "adalora": lambda: AdaLoraConfig(**SCHEDULE, target_modules=TARGETS["neox"]),
    "beft": lambda: BeftConfig(target_modules=TARGETS["neox"]),
    "boft": lambda: BOFTConfig(boft_block_size=4, target_modules=TARGETS["neox"]),
    "deft": lambda: DeftConfig(r=3, target_modules=TARGETS["neox"]),
    "delora": lambda: DeloraConfig(r=3, target_modules=TARGETS["neox"]),
    "glora": lambda: GloraConfig(r=3, config_A_B="vector", config_C="lora", target_modules=TARGETS["neox"]),
    "gralora": lambda: GraloraConfig(r=4, hybrid_r=2, target_modules=TARGETS["neox"]),
    "hra": lambda: HRAConfig(r=3, target_modules=TARGETS["neox"]),
    "ia3": lambda: IA3Config(target_modules=TARGETS["neox"], feedforward_modules=TARGETS["neox"][-1:]),
    "ln_tuning": lambda: LNTuningConfig(target_modules=["input_layernorm", "dense"]),
    "loha": lambda: LoHaConfig(r=3, target_modules=TARGETS["neox"]),
    "lokr": lambda: LoKrConfig(r=2, target_modules=TARGETS["neox"]),
    "miss": lambda: MissConfig(r=4, target_modules=TARGETS["neox"]),
    "oft": lambda: OFTConfig(oft_block_size=4, target_modules=TARGETS["neox"]),
    "peanut": lambda: PeanutConfig(r=4, depth=1, target_modules=TARGETS["neox"]),
    "pvera": lambda: PveraConfig(r=4, target_modules=TARGETS["neox"]),
    "tokens": lambda: TrainableTokensConfig(token_indices=seen()),
    "vblora": lambda: VBLoRAConfig(r=2, num_vectors=9, vector_length=8, target_modules=TARGETS["neox"]),
    "vera": lambda: VeraConfig(r=4, target_modules=TARGETS["neox"]),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", sorted(HALVES))
def test_half_precision_files_are_not_rounded_again(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    make(tmp_path, "neox", HALVES[name](), std=0.15)
    there = load_file(tmp_path / WEIGHTS_NAME)
    edit_tensors(tmp_path, **{key: tensor.to(dtype) for key, tensor in there.items()})
    check_exact(tmp_path, "neox")


BIASED = {
    "adalora": lambda: AdaLoraConfig(**SCHEDULE, target_modules=TARGETS["neox"], bias="all"),
    "vera": lambda: VeraConfig(r=4, target_modules=TARGETS["neox"], bias="vera_only"),
    "oft": lambda: OFTConfig(oft_block_size=4, target_modules=TARGETS["neox"], bias="all"),
    "boft": lambda: BOFTConfig(boft_block_size=4, target_modules=TARGETS["neox"], bias="boft_only"),
}


@pytest.mark.parametrize("name", sorted(BIASED))
def test_trained_biases_beside_any_type(name: str, tmp_path: Path) -> None:
    make(tmp_path, "neox", BIASED[name]())
    adapter = check_exact(tmp_path, "neox")
    assert all(change.bias is not None for change in adapter.linears.values())


SAVED = {
    "adalora": lambda **more: AdaLoraConfig(**SCHEDULE, target_modules=TARGETS["neox"], **more),
    "vera": lambda **more: VeraConfig(r=4, target_modules=TARGETS["neox"], **more),
    "loha": lambda **more: LoHaConfig(r=2, target_modules=TARGETS["neox"], **more),
    "lokr": lambda **more: LoKrConfig(r=2, target_modules=TARGETS["neox"], **more),
    "ia3": lambda **more: IA3Config(target_modules=TARGETS["neox"], feedforward_modules=[], **more),
    "oft": lambda **more: OFTConfig(oft_block_size=4, target_modules=TARGETS["neox"], **more),
    "boft": lambda **more: BOFTConfig(boft_block_size=4, target_modules=TARGETS["neox"], **more),
}


@pytest.mark.parametrize("name", sorted(SAVED))
@pytest.mark.filterwarnings("ignore::UserWarning:peft")
def test_trained_modules_beside_any_type(name: str, tmp_path: Path) -> None:
    head = next(name for name, module in base("neox").named_modules() if module is base("neox").lm_head)
    make(tmp_path, "neox", SAVED[name](modules_to_save=[head, "final_layer_norm"]))
    adapter = check_exact(tmp_path, "neox")
    assert adapter.linears[head].weight is not None
    assert set(adapter.plain) == {"gpt_neox.final_layer_norm"}
