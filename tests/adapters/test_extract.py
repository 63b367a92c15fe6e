"""A full fine-tune's adapter over its base is the fine-tune: in PEFT, and as the engine's canonical form has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

from adapters.tuned_made import edit, extracted, linear_only, load, pair
from engine.families import VOCABULARY
from livery_adapters.making.extract import Aim
from livery_adapters.refusal import AdapterRefused
from livery_adapters.tensor_file import CONFIG_NAME, WEIGHTS_NAME

TOKENS = torch.tensor([[1, 5, 9, 33, 2, 71, 96, 14, 15, 80]])
UNTIED = "llama-dynamic-rope"

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def logits(model: Any, tokens: Tensor = TOKENS) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(tokens).logits[0].float()
    return found


def in_peft(base: Path, adapter: Path, grown: int = 0, tokens: Tensor = TOKENS) -> Tensor:
    model = load(base)
    if grown:
        model.resize_token_embeddings(VOCABULARY + grown, mean_resizing=False)
    return logits(PeftModel.from_pretrained(model, adapter).eval(), tokens)


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


def config(adapter: Path) -> Any:
    return json.loads((adapter / CONFIG_NAME).read_text())


def moved(model: Any, *ends: str, rows: Any = slice(None)) -> None:
    """Change the parameters whose names end so, and those rows of them alone."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(ends):
                weight[rows] += 0.3 * torch.randn(weight[rows].shape, generator=generator)


# -- what PEFT makes of it ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", UNTIED, "qwen2", "gemma2", "phi", "phi-tied", "gpt2", "phi3"])
def test_at_full_rank_it_is_the_tuned_model(family: str, tmp_path: Path) -> None:
    base, tuned = pair(tmp_path, family)
    report = extracted(base, tuned, tmp_path / "out")
    assert report.error < 1e-5
    assert {module.form for module in report.modules.values()} >= {"pair", "whole"}
    expected = logits(load(tuned))
    assert apart(in_peft(base, tmp_path / "out"), expected) < 1e-5
    assert apart(logits(load(base)), expected) > 1e-2


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.bfloat16, torch.bfloat16)])
def test_models_in_half_precision(dtypes: tuple[torch.dtype, torch.dtype], tmp_path: Path) -> None:
    base, tuned = pair(tmp_path, dtypes=dtypes)
    extracted(base, tuned, tmp_path / "out")
    assert apart(in_peft(base, tmp_path / "out"), logits(load(tuned))) < 1e-5
    norm = load_file(tmp_path / "out" / WEIGHTS_NAME)["base_model.model.model.norm.weight"]
    assert norm.dtype == dtypes[1]  # carried as it is


FINER = (torch.bfloat16, torch.float32)


def little(*ends: str) -> Any:
    """Parameters whose names end so, moved by less than a bf16 base could show."""

    def change(model: Any) -> None:
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name.endswith(ends):
                    weight += 1e-3 * weight

    return change


@pytest.mark.parametrize(
    ("family", "name", "form"),
    [
        ("llama", "model.norm", "whole"),
        ("llama", "model.layers.1.mlp.up_proj", "pair"),
        (UNTIED, "model.embed_tokens", "whole"),
        (UNTIED, "lm_head", "whole"),
        ("qwen2", "model.layers.0.self_attn.q_proj", "pair"),
    ],
)
def test_a_finer_models_small_moves_are_carried_exactly(family: str, name: str, form: str, tmp_path: Path) -> None:
    base, tuned = pair(tmp_path, family, little(f"{name}.weight", f"{name}.bias"), FINER)
    report = extracted(base, tuned, tmp_path / "out")
    assert {path: module.form for path, module in report.modules.items() if module.form != "same"} == {name: form}
    assert report.modules[name].bias == (family == "qwen2")
    assert report.modules[name].moved == pytest.approx(1e-3, rel=1e-3)
    expected = load(tuned).state_dict()
    found = PeftModel.from_pretrained(load(base), tmp_path / "out").merge_and_unload().state_dict()
    assert torch.equal(found[f"{name}.weight"], expected[f"{name}.weight"]) or form == "pair"
    assert torch.allclose(found[f"{name}.weight"], expected[f"{name}.weight"], rtol=0, atol=1e-7)
    for biases in (entry for entry in expected if entry.endswith("bias")):
        assert torch.equal(found[biases], expected[biases])


def test_a_finer_copy_of_the_base_differs_in_nothing(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path, change=lambda model: None, dtypes=FINER)
    assert refused(base, tuned, tmp_path / "out").code == "nothing_differs"


@pytest.mark.parametrize("before", [torch.float32, torch.float16], ids=str)
def test_what_of_the_difference_is_rounding_is_told(before: torch.dtype, tmp_path: Path) -> None:
    """fp16 is no coarser than bf16 in bytes, and finer in its numbers."""
    base, tuned = pair(tmp_path, change=linear_only(2), dtypes=(before, torch.bfloat16))
    one, other = (load_file(path / "model.safetensors") for path in (base, tuned))
    weights = [name for name in one if one[name].dim() == 2 and ".layers." in name]
    rounded = sum(float((one[name].bfloat16().double() - one[name].double()).square().sum()) for name in weights)
    whole = sum(float((other[name].double() - one[name].double()).square().sum()) for name in weights)
    found = extracted(base, tuned, tmp_path / "out", Aim(rank=2)).rounding
    assert found == pytest.approx((rounded / whole) ** 0.5, rel=1e-4) and found > 0


def test_rows_that_were_only_rounded_are_the_bases(tmp_path: Path) -> None:
    base, tuned = pair(
        tmp_path,
        UNTIED,
        lambda model: moved(model, "embed_tokens.weight", rows=[5, 33, 90]),
        (torch.float32, torch.bfloat16),
    )
    extracted(base, tuned, tmp_path / "out")
    assert config(tmp_path / "out")["trainable_token_indices"] == {"model.embed_tokens": [5, 33, 90]}


def test_a_tuned_model_in_shards_gives_the_same_bytes(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path)
    model = load(tuned)
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    whole = extracted(base, tuned, tmp_path / "one")
    assert extracted(base, tmp_path / "shards", tmp_path / "other") == whole
    one, other = ((tmp_path / name / WEIGHTS_NAME).read_bytes() for name in ("one", "other"))
    assert one == other


def test_only_norms_changed(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path, change=lambda model: moved(model, "norm.weight"))
    report = extracted(base, tuned, tmp_path / "out")
    assert {module.form for path, module in report.modules.items() if "norm" not in path} == {"same"}
    assert config(tmp_path / "out")["bias"] == "none"
    assert apart(in_peft(base, tmp_path / "out"), logits(load(tuned))) < 1e-6


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_only_biases_changed(family: str, tmp_path: Path) -> None:
    base, tuned = pair(tmp_path, family, lambda model: moved(model, "attn.q_proj.bias", "c_attn.bias"))
    report = extracted(base, tuned, tmp_path / "out")
    assert [module.form for module in report.modules.values() if module.bias] == ["same"] * 3
    assert apart(in_peft(base, tmp_path / "out"), logits(load(tuned))) < 1e-6


@pytest.mark.parametrize("family", ["llama", UNTIED])
def test_a_few_rows_of_the_embedding_are_carried_as_trained_tokens(family: str, tmp_path: Path) -> None:
    base, tuned = pair(tmp_path, family, lambda model: moved(model, "embed_tokens.weight", rows=[5, 33, 90]))
    report = extracted(base, tuned, tmp_path / "out")
    assert report.modules["model.embed_tokens"].form == "rows"
    assert config(tmp_path / "out")["trainable_token_indices"] == {"model.embed_tokens": [5, 33, 90]}
    assert apart(in_peft(base, tmp_path / "out"), logits(load(tuned))) < 1e-6


def untie(model: Any) -> None:
    """The head goes its own way, as in a fine-tune with tie_word_embeddings turned off."""
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() + 0.1)
    model.config.tie_word_embeddings = False


def tie(model: Any) -> None:
    model.lm_head.weight = model.model.embed_tokens.weight
    model.config.tie_word_embeddings = True


@pytest.mark.parametrize(("family", "change"), [("llama", untie), ("qwen3", tie)])
def test_a_head_that_stops_or_begins_to_be_the_embedding(family: str, change: Any, tmp_path: Path) -> None:
    base, tuned = pair(tmp_path, family, change)
    extracted(base, tuned, tmp_path / "out")
    assert config(tmp_path / "out")["modules_to_save"] == ["lm_head"]
    assert apart(in_peft(base, tmp_path / "out"), logits(load(tuned))) < 1e-6


def part(model: Any) -> None:
    """As merge_and_unload() leaves a head that was trained whole: its own, and the configuration still says tied."""
    untie(model)
    model.config.tie_word_embeddings = True


def test_a_head_of_its_own_that_the_configuration_says_is_tied(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path, "llama", part)
    assert json.loads((tuned / "config.json").read_text())["tie_word_embeddings"] is True
    extracted(base, tuned, tmp_path / "out")
    assert config(tmp_path / "out")["modules_to_save"] == ["lm_head"]
    assert apart(in_peft(base, tmp_path / "out"), logits(load(tuned))) < 1e-6
    assert apart(logits(load(tuned)), logits(load(base))) > 1e-3
    error = refused(tuned, base, tmp_path / "undone")
    assert (error.code, "set tie_word_embeddings to false" in error.message) == ("bad_model", True)


def test_a_tied_head_that_is_stored_again_is_the_embedding(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path, "llama", lambda model: moved(model, "norm.weight"))
    for file in (base / "model.safetensors", tuned / "model.safetensors"):
        edit(file, lm_head__weight=load_file(file)["model.embed_tokens.weight"].clone())
    report = extracted(base, tuned, tmp_path / "out")
    assert report.modules.get("lm_head") is None
    assert apart(in_peft(base, tmp_path / "out"), logits(load(tuned))) < 1e-6


def test_a_few_rows_beside_a_head_of_its_own_are_carried_as_a_table(tmp_path: Path) -> None:
    """Trained tokens of a tied embedding change the head too, which here went its own way."""

    def change(model: Any) -> None:
        untie(model)
        moved(model, "embed_tokens.weight", rows=[5, 33, 90])

    base, tuned = pair(tmp_path, "llama", change)
    report = extracted(base, tuned, tmp_path / "out")
    assert {report.modules[path].form for path in ("model.embed_tokens", "lm_head")} == {"whole"}
    assert apart(in_peft(base, tmp_path / "out"), logits(load(tuned))) < 1e-6


@pytest.mark.parametrize("family", ["llama", UNTIED])
@pytest.mark.parametrize("more", [False, True], ids=["rows", "tables"])
def test_added_tokens_come_along(family: str, more: bool, tmp_path: Path) -> None:
    def grow(model: Any) -> None:
        torch.manual_seed(1)
        model.resize_token_embeddings(VOCABULARY + 3)
        moved(model, "embed_tokens.weight", "lm_head.weight", rows=slice(None) if more else slice(VOCABULARY, None))

    base, tuned = pair(tmp_path, family, grow)
    report = extracted(base, tuned, tmp_path / "out")
    assert report.added_tokens == 3
    tokens = torch.tensor([[1, VOCABULARY, 5, VOCABULARY + 2, 9]])
    found = in_peft(base, tmp_path / "out", grown=3, tokens=tokens)
    assert apart(found, logits(load(tuned), tokens)) < 1e-6


# -- ranks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.0, 1e-4])
def test_the_rank_that_training_had_is_found(noise: float, tmp_path: Path) -> None:
    """Noise keeps a hundredth of ΔW out of reach of any low rank."""
    base, tuned = pair(tmp_path, change=linear_only(3, noise))
    report = extracted(base, tuned, tmp_path / "out", Aim(error=0.05))
    pairs = [module for module in report.modules.values() if module.form == "pair"]
    assert len(pairs) == 21
    assert {module.rank for module in pairs} <= {1, 2, 3}
    assert max(module.error for module in pairs) <= 0.05
    assert all(module.reached for module in pairs)


def test_each_module_gets_the_rank_that_it_needs(tmp_path: Path) -> None:
    """The layers were trained at ranks 1, 2 and 4, and no module may have more than 3."""

    def change(model: Any) -> None:
        generator = torch.Generator().manual_seed(6)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.dim() == 2 and ".layers." in name:
                    rank = 2 ** int(name.split(".")[2])
                    one, other = (torch.randn(side, rank, generator=generator) for side in weight.shape)
                    weight += 0.02 * one @ other.T

    base, tuned = pair(tmp_path, change=change)
    report = extracted(base, tuned, tmp_path / "out", Aim(error=0.01, most=3))
    for path, module in report.modules.items():
        if module.form == "pair":
            layer = int(path.split(".")[2])
            assert (module.rank, module.reached) == [(1, True), (2, True), (3, False)][layer], path
            assert (module.error > 0.01) == (layer == 2)


def test_a_rank_asked_for_is_kept_and_its_error_told(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path, change=linear_only(8))
    report = extracted(base, tuned, tmp_path / "out", Aim(rank=5))
    before, after = load(base).state_dict(), load(tuned).state_dict()
    tensors = load_file(tmp_path / "out" / WEIGHTS_NAME)
    path = "model.layers.1.mlp.down_proj"
    a, b = (tensors[f"base_model.model.{path}.lora_{half}.weight"] for half in "AB")
    delta = (after[f"{path}.weight"] - before[f"{path}.weight"]).double()
    values = torch.linalg.svdvals(delta)
    module = report.modules[path]
    assert (module.rank, a.shape[0], b.shape[1]) == (5, 5, 5)
    assert module.error == pytest.approx(float((delta - b.double() @ a.double()).norm() / delta.norm()), rel=1e-4)
    assert module.error == pytest.approx(float(values[5:].norm() / values.norm()), rel=1e-4)
    assert module.moved == pytest.approx(float(delta.norm() / before[f"{path}.weight"].norm()), rel=1e-5)


# -- what is refused ---------------------------------------------------------------------------------------


def refused(*arguments: Any, **options: Any) -> AdapterRefused:
    with pytest.raises(AdapterRefused) as caught:
        extracted(*arguments, **options)
    return caught.value


def test_models_that_differ_in_nothing(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path, change=lambda model: None)
    error = refused(base, tuned, tmp_path / "out")
    assert error.code == "nothing_differs"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "tuned"]


def test_a_copy_in_half_precision_differs_in_nothing(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path, change=lambda model: None, dtypes=(torch.float32, torch.bfloat16))
    assert refused(base, tuned, tmp_path / "out").code == "nothing_differs"


def test_models_of_other_sizes_and_architectures(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path)
    _, other = pair(tmp_path / "gpt2", "gpt2")
    error = refused(base, other, tmp_path / "out")
    assert error.code == "different_model"
    edit(tuned / "model.safetensors", model__layers__1__mlp__up_proj__weight=torch.zeros(50, 32))
    error = refused(base, tuned, tmp_path / "out")
    assert error.code == "different_model"
    assert "model.layers.1.mlp.up_proj.weight is [48, 32]" in error.message


def test_a_router_that_changed(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path, "qwen3-moe", lambda model: moved(model, "mlp.gate.weight"))
    error = refused(base, tuned, tmp_path / "out")
    assert error.code == "not_extractable"
    assert "model.layers.0.mlp.gate.weight (model.safetensors)" in error.message


def test_a_router_that_the_base_has_rounded(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path, "qwen3-moe", lambda model: moved(model, "norm.weight"), FINER)
    name = "model.layers.0.mlp.gate.weight"
    router = load_file(tuned / "model.safetensors")[name]
    edit(tuned / "model.safetensors", **{name: router * (1 + 1e-4)})
    error = refused(base, tuned, tmp_path / "out")
    assert error.code == "not_extractable"
    assert f"{name} is F32 in the tuned model (model.safetensors) and BF16 in the base" in error.message
    assert "Give the base in F32" in error.message


def test_norms_that_no_adapter_reaches(tmp_path: Path) -> None:
    """Gemma 3 turns its keys round before it scales them, so that the norm sees no token's row."""
    base, tuned = pair(tmp_path, "gemma3", lambda model: moved(model, "k_norm.weight"))
    error = refused(base, tuned, tmp_path / "out")
    assert error.code == "not_extractable"
    assert "self_attn.k_norm.weight" in error.message


def test_a_mixture_whose_experts_and_routers_are_the_same(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path, "qwen3-moe", lambda model: moved(model, "q_proj.weight", "norm.weight"))
    extracted(base, tuned, tmp_path / "out")
    assert apart(in_peft(base, tmp_path / "out"), logits(load(tuned))) < 1e-5


def test_a_smaller_vocabulary(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path, change=lambda model: model.resize_token_embeddings(VOCABULARY + 2))
    error = refused(tuned, base, tmp_path / "out")
    assert error.code == "resized_vocabulary"
    assert "swapped?" in error.message


def test_a_number_that_is_none_in_one_shard(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path, shards="20KB")
    name = "model.layers.2.mlp.up_proj.weight"
    shard = tuned / json.loads((tuned / "model.safetensors.index.json").read_text())["weight_map"][name]
    weight = load_file(shard)[name]
    weight[3, 4] = torch.nan
    edit(shard, **{name: weight})
    error = refused(base, tuned, tmp_path / "out")
    assert error.code == "nonfinite_weights"
    assert name in error.message
    assert str(shard) in error.message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("broken", ["cut", "gone", "no header", "integers"])
def test_files_that_are_none(broken: str, tmp_path: Path) -> None:
    base, tuned = pair(tmp_path)
    file = tuned / "model.safetensors"
    if broken == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    elif broken == "gone":
        file.unlink()
    elif broken == "integers":
        edit(file, model__norm__weight=torch.ones(32, dtype=torch.int8))
    else:
        file.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    error = refused(base, tuned, tmp_path / "out")
    assert error.code == "bad_model"
    assert "tuned" in error.message


def test_a_directory_that_is_taken(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    assert refused(base, tuned, tmp_path / "out").code == "output_exists"
    (tmp_path / "out" / "mine").unlink()
    extracted(base, tuned, tmp_path / "out")  # an empty one is as good as none
