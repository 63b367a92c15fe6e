"""Every LoRA variant, as PEFT saved it, gives PEFT's own logits when its canonical form is applied."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from adapters import peft_types
from adapters.dense_reference import applied
from adapters.peft_made import edit_config, edit_tensors
from adapters.peft_types import TARGETS, TOKENS, apart, base, logits
from adapters.test_types_exact import check_exact, converted, seen
from livery_adapters.canonical import CanonicalAdapter
from livery_adapters.manifest import AdapterRefused, read_manifest

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")

EMBEDDING = {"llama": "embed_tokens", "gpt2": "wte", "neox": "embed_in"}
NORM = {"llama": "norm", "gpt2": "ln_f", "neox": "final_layer_norm"}


def make(directory: Path, family: str, config: LoraConfig) -> None:
    """Smaller steps than elsewhere: biases, embeddings and norms move too, and fp32 shows in the logits."""
    peft_types.make(directory, family, config, std=0.1)


def lora(family: str, **settings: Any) -> LoraConfig:
    return LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": TARGETS[family], **settings})


PLAIN = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "patterns": {
        "use_rslora": True,
        "rank_pattern": {r"layers\.1\.self_attn\..*": 2, "up_proj": 5, "h.0.mlp.c_proj": 3, "dense": 6},
        "alpha_pattern": {"v_proj": 1, "c_attn": 2, "dense_h_to_4h": 9},
    },
    "dora": {"use_dora": True, "rank_pattern": {"o_proj": 2, "c_fc": 3}},
    "lora_bias": {"lora_bias": True},
    "bias of the adapted": {"bias": "lora_only"},
    "every bias": {"bias": "all"},
    "every bias, with dora": {"bias": "all", "use_dora": True},
    "every bias, with lora_bias": {"bias": "all", "lora_bias": True},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "mica": {"init_lora_weights": "mica"},
    "pissa": {"init_lora_weights": "pissa"},
    "pissa with rslora and ranks": {"init_lora_weights": "pissa", "use_rslora": True, "rank_pattern": {"dense": 2}},
    "pissa with dora": {"init_lora_weights": "pissa", "use_dora": True},
}


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox"])
@pytest.mark.parametrize("case", PLAIN)
def test_variants_on_linear_modules(case: str, family: str, tmp_path: Path) -> None:
    make(tmp_path, family, lora(family, **PLAIN[case]))
    adapter = check_exact(tmp_path, family)
    assert len(adapter.linears) >= 3 * len(TARGETS[family])


@pytest.mark.parametrize("family", ["llama", "neox"])
@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"use_rslora": True}], ids=str)
def test_olora(settings: dict[str, Any], family: str, tmp_path: Path) -> None:
    make(tmp_path, family, lora(family, init_lora_weights="olora", **settings))
    check_exact(tmp_path, family)


def test_olora_on_a_transposed_weight(tmp_path: Path) -> None:
    """PEFT factorises the weight as it lies, which only a square one survives."""
    make(tmp_path, "gpt2", lora("gpt2", init_lora_weights="olora", target_modules=["attn.c_proj"]))
    check_exact(tmp_path, "gpt2")


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_converted_weights_are_plain_lora(init: str, tmp_path: Path) -> None:
    """PEFT's own remedy: the file then says how far training moved, at twice the rank."""
    model = get_peft_model(copy.deepcopy(base("llama")), lora("llama", init_lora_weights=init)).eval()
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "initial")
    model.peft_config["default"].init_lora_weights = init
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) * 0.1
    trained = logits(model)
    model.save_pretrained(tmp_path / "converted", path_initial_model_for_weight_conversion=str(tmp_path / "initial"))
    assert read_manifest(tmp_path / "converted").max_rank == 8
    adapter = check_exact(tmp_path / "converted", "llama")
    assert apart(logits(applied(adapter, base("llama"))), trained) < 1e-5


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox"])
@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"init_lora_weights": "pissa"}], ids=str)
def test_embeddings(settings: dict[str, Any], family: str, tmp_path: Path) -> None:
    """With tied weights too: PEFT adapts the embedding and leaves the head as it was."""
    make(tmp_path, family, lora(family, target_modules=[EMBEDDING[family], *TARGETS[family][:1]], **settings))
    adapter = check_exact(tmp_path, family)
    (embedding,) = adapter.embeddings.values()
    assert embedding.weight is None
    assert not any("head" in path for path in adapter.linears)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("settings", [{}, {"use_dora": True}], ids=str)
def test_a_tied_head(settings: dict[str, Any], family: str, tmp_path: Path) -> None:
    make(tmp_path, family, lora(family, target_modules=["lm_head"], **settings))
    assert set(check_exact(tmp_path, family).linears) == {"lm_head"}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_embedding_and_head_tied_by_request(family: str, tmp_path: Path) -> None:
    """PEFT knows embeddings by their usual names, so that GPT-2's head stays as it was."""
    make(tmp_path, family, lora(family, target_modules=[EMBEDDING[family]], ensure_weight_tying=True))
    adapter = check_exact(tmp_path, family)
    assert set(adapter.linears) == ({"lm_head"} if family == "llama" else set())
    assert len(adapter.embeddings) == 1


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox"])
@pytest.mark.parametrize("what", ["head", "embedding", "norm", "other", "all"])
def test_modules_to_save(what: str, family: str, tmp_path: Path) -> None:
    head = "embed_out" if family == "neox" else "lm_head"
    names = {
        "head": [head] if family != "neox" else ["lm_head"],
        "embedding": [EMBEDDING[family]],
        "norm": [NORM[family]],
        "other": ["gate_proj" if family == "llama" else "mlp"],
    }
    saved = names.get(what) or [*names["head"], *names["embedding"], *names["norm"]]
    make(tmp_path, family, lora(family, target_modules=TARGETS[family][:1], modules_to_save=saved))
    check_exact(tmp_path, family)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_modules_to_save_tied_by_request(family: str, tmp_path: Path) -> None:
    settings = {"target_modules": TARGETS[family][:1], "modules_to_save": [EMBEDDING[family]]}
    make(tmp_path, family, lora(family, **settings, ensure_weight_tying=True))
    adapter = check_exact(tmp_path, family)
    assert ("lm_head" in adapter.linears) == (family == "llama")


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox"])
def test_trained_tokens(family: str, tmp_path: Path) -> None:
    make(tmp_path, family, lora(family, trainable_token_indices=seen(3)))
    adapter = check_exact(tmp_path, family)
    (embedding,) = adapter.embeddings.values()
    assert embedding.rows is not None
    assert embedding.rows.ids.tolist() == sorted(seen(3))


@pytest.mark.parametrize(
    "tokens",
    [
        {"embed_tokens": seen(3), "lm_head": seen(3)},
        {"embed_tokens": seen(), "lm_head": [9, 4]},
        {"lm_head": [9, 4, 90]},
    ],
    ids=["alike", "different", "head only"],
)
def test_trained_tokens_of_a_tied_head(tokens: dict[str, list[int]], tmp_path: Path) -> None:
    make(tmp_path, "llama", lora("llama", trainable_token_indices=tokens))
    adapter = check_exact(tmp_path, "llama")
    rows = adapter.linears["lm_head"].rows
    assert rows is not None
    assert rows.ids.tolist() == sorted(tokens["lm_head"])


@pytest.mark.parametrize("family", ["llama", "neox"])
def test_a_copy_that_differs_from_the_base_replaces_it(family: str, tmp_path: Path) -> None:
    """PEFT overwrites the base's own parameter, so a tied head moves with it."""
    make(tmp_path, family, lora(family, target_modules=[EMBEDDING[family]], use_dora=True))
    name = next(path for path, module in base(family).named_modules() if path.endswith(EMBEDDING[family]))
    copied = base(family).get_submodule(name).weight.detach() + 0.05
    edit_tensors(tmp_path, **{f"base_model.model.{name}.base_layer.weight": copied})
    adapter = check_exact(tmp_path, family)
    assert ("lm_head" in adapter.linears) == (family == "llama")


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox"])
@pytest.mark.parametrize("settings", [{}, {"lora_bias": True}], ids=str)
def test_activated_lora_starts_at_its_invocation(settings: dict[str, Any], family: str, tmp_path: Path) -> None:
    """Row by row: tokens before the last invocation run on the base, the others on the adapter."""
    invocation = TOKENS[0, 4:6].tolist()
    config = lora(family, alora_invocation_tokens=invocation, task_type="CAUSAL_LM", **settings)
    make(tmp_path, family, config)
    manifest = read_manifest(tmp_path)
    assert manifest.invocation == tuple(invocation)
    adapter = converted(tmp_path, family)
    found = logits(started_late(adapter, family, start=4))[0]
    theirs = logits(peft_types.load(tmp_path, family))[0]
    assert torch.equal(theirs[:4], logits(base(family))[0, :4])
    assert apart(found, theirs) < 1e-5
    assert apart(logits(applied(adapter, base(family)))[0], theirs) > 1e-2  # it is not the same from the first token


def started_late(adapter: CanonicalAdapter, family: str, start: int) -> Any:
    """The base, with linear modules that follow the adapter from position `start` on."""
    model = copy.deepcopy(base(family))
    adapted = dict(applied(adapter, model).named_modules())
    for path in adapter.linears:
        other = adapted[path]

        def late(_: Any, inputs: tuple[Any, ...], output: Any, other: Any = other) -> Any:
            return torch.cat([output[:, :start], other(*inputs)[:, start:]], dim=1)

        model.get_submodule(path).register_forward_hook(late)
    return model


def test_targets_inside_a_module_that_is_saved_whole(tmp_path: Path) -> None:
    make(tmp_path, "llama", lora("llama", target_modules=["q_proj", "up_proj"], modules_to_save=["mlp"]))
    check_exact(tmp_path, "llama")


def test_a_residual_initialisation_of_a_tied_head_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "llama", lora("llama", target_modules=["lm_head"], init_lora_weights="pissa"))
    with pytest.raises(AdapterRefused, match=r"shares its weight with model\.embed_tokens") as caught:
        converted(tmp_path, "llama")
    assert caught.value.code == "unconverted_init"


def test_tokens_beyond_the_vocabulary_are_refused(tmp_path: Path) -> None:
    make(tmp_path, "llama", lora("llama", trainable_token_indices={"embed_tokens": seen(3)}))
    edit_config(tmp_path, trainable_token_indices={"embed_tokens": seen(98)})
    with pytest.raises(AdapterRefused, match="token 97 has no row in") as caught:
        converted(tmp_path, "llama")
    assert caught.value.code == "resized_vocabulary"


def test_tokens_that_the_file_lacks_are_refused(tmp_path: Path) -> None:
    make(tmp_path, "llama", lora("llama", trainable_token_indices={"embed_tokens": seen(3)}))
    edit_config(tmp_path, trainable_token_indices={"embed_tokens": seen()})
    with pytest.raises(AdapterRefused, match="names 2 trained tokens") as caught:
        converted(tmp_path, "llama")
    assert caught.value.code == "wrong_shape"


def test_two_copies_of_one_tied_weight_must_agree(tmp_path: Path) -> None:
    make(tmp_path, "llama", lora("llama", target_modules=["embed_tokens", "lm_head"]))
    edit_tensors(tmp_path, **{"base_model.model.lm_head.base_layer.weight": torch.ones(97, 32)})
    edit_tensors(tmp_path, **{"base_model.model.model.embed_tokens.base_layer.weight": torch.zeros(97, 32)})
    with pytest.raises(AdapterRefused, match="one weight in this base") as caught:
        converted(tmp_path, "llama")
    assert caught.value.code == "replaced_weight"
