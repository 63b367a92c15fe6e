"""Files of adapters with tokens of their own, in every way in which PEFT saves them, and which can't be served."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftConfig, TrainableTokensConfig, get_peft_model

from adapters.peft_made import Weights, edit_tensors, tiny_base, tiny_model
from livery_adapters import grown
from livery_adapters.canonical import CanonicalAdapter, Kronecker, LinearChange
from livery_adapters.compose import compose
from livery_adapters.formats import convert
from livery_adapters.formats.added import cut_linear
from livery_adapters.making.merge import MergePart, merge
from livery_adapters.manifest import AdapterRefused, CoverageReport, check_against, read_manifest
from livery_adapters.measure import BaseNorms, measure

pytestmark = pytest.mark.filterwarnings("ignore")

ROWS, ADDED = 97, 3
OWN = [ROWS, ROWS + 1, ROWS + 2]
EMBEDDINGS = ["embed_tokens", "lm_head"]
TIED, UNTIED = "llama", "qwen3"


def lora(**settings: Any) -> LoraConfig:
    return LoraConfig(**{"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **settings})


def save(folder: Path, family: str, config: PeftConfig, rows: int = ROWS + ADDED, **saving: Any) -> Any:
    """An adapter of a resized model, everything that is trained moved; returns PEFT's model."""
    torch.manual_seed(4)
    model = copy.deepcopy(tiny_model(family))
    model.resize_token_embeddings(rows)
    tuned = get_peft_model(model, config)
    with torch.no_grad():
        for weight in tuned.parameters():
            if weight.requires_grad:
                weight += torch.randn_like(weight) * 0.3
    tuned.save_pretrained(folder, **saving)
    return tuned.eval()


def taken(folder: Path, family: str) -> tuple[CoverageReport, CanonicalAdapter]:
    manifest = read_manifest(folder)
    report = check_against(manifest, tiny_base(family))
    return report, convert(folder, manifest, Weights(family))


WAYS: dict[str, tuple[str, PeftConfig]] = {
    "both saved, tied": (TIED, lora(modules_to_save=EMBEDDINGS)),
    "both saved": (UNTIED, lora(modules_to_save=EMBEDDINGS)),
    "one saved, the head as resized": (UNTIED, lora(modules_to_save=["embed_tokens"])),
    "one saved, one tied": (TIED, lora(modules_to_save=["embed_tokens"])),
    "tied by PEFT": (TIED, lora(modules_to_save=["embed_tokens"], ensure_weight_tying=True)),
    "as resized": (TIED, lora()),
    "pairs": (UNTIED, lora(target_modules=EMBEDDINGS)),
    "pairs, tied by PEFT": (TIED, lora(target_modules=["embed_tokens"], ensure_weight_tying=True)),
    "gains": (UNTIED, lora(target_modules=EMBEDDINGS, use_dora=True)),
    "tokens, tied": (TIED, lora(trainable_token_indices=[5, *OWN])),
    "some tokens, the others as resized": (
        UNTIED,
        lora(trainable_token_indices={name: [5, ROWS] for name in EMBEDDINGS}),
    ),
    "tokens alone": (TIED, TrainableTokensConfig(token_indices=OWN)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("saving", [True, False], ids=["with tables", "without"])
def test_the_rows_behind_are_those_that_peft_works_with(way: str, saving: bool, tmp_path: Path) -> None:
    family, config = WAYS[way]
    tuned = save(tmp_path, family, config, save_embedding_layers=saving)
    if not saving and way in ("as resized", "some tokens, the others as resized"):
        return  # nothing tells of the other rows
    if not saving and not way.startswith(("both", "tokens", "tied")):
        with pytest.raises(AdapterRefused) as caught:
            taken(tmp_path, family)
        assert caught.value.code == "resized_vocabulary"
        return
    report, adapter = taken(tmp_path, family)
    assert report.added_tokens == adapter.added_tokens == ADDED
    embedding, head = adapter.embeddings["model.embed_tokens"], adapter.linears["lm_head"]
    inner = tuned.base_model.model
    ids = torch.tensor(OWN)
    with torch.no_grad():
        expected = inner.model.embed_tokens(ids)
        hidden = torch.randn(4, expected.shape[1])
        logits = inner.lm_head(hidden)[:, ROWS:]
    assert embedding.added is not None and head.added is not None
    torch.testing.assert_close(embedding.added, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(hidden @ head.added.weight.T, logits, rtol=1e-4, atol=1e-4)
    for change, width in ((embedding, ROWS), (head, ROWS)):
        assert change.weight is None or len(change.weight) == width
        assert change.rows is None or int(change.rows.ids.max()) < width


def refusal(folder: Path, family: str) -> AdapterRefused:
    with pytest.raises(AdapterRefused) as caught:
        taken(folder, family)
    return caught.value


def test_more_rows_than_can_be_served_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, TIED, lora(), save_embedding_layers=True)
    monkeypatch.setattr(grown, "MAX_ADDED_ROWS", ADDED - 1)
    refused = refusal(tmp_path, TIED)
    assert refused.code == "resized_vocabulary"
    assert f"has {ROWS + ADDED} rows and the base {ROWS}: at most {ADDED - 1} more" in refused.message


def test_tables_of_different_heights_are_refused(tmp_path: Path) -> None:
    save(tmp_path, UNTIED, lora(modules_to_save=EMBEDDINGS), save_embedding_layers=False)
    edit_tensors(tmp_path, **{"base_model.model.lm_head.weight": torch.ones(ROWS + ADDED + 1, 32)})
    assert refusal(tmp_path, UNTIED).code == "resized_vocabulary"
    edit_tensors(tmp_path, **{"base_model.model.lm_head.weight": torch.ones(ROWS, 32)})
    assert "has no row in lm_head" in refusal(tmp_path, UNTIED).message


def test_a_token_that_leaves_a_gap_is_refused(tmp_path: Path) -> None:
    save(tmp_path, TIED, lora(trainable_token_indices=[ROWS, ROWS + 2]), save_embedding_layers=False)
    assert f"token {ROWS + 1} has no row in model.embed_tokens" in refusal(tmp_path, TIED).message


def test_a_product_over_all_rows_cannot_be_cut() -> None:
    change = LinearChange(deltas=(Kronecker(torch.ones(10, 4), torch.ones(10, 8), 1.0),))
    with pytest.raises(AdapterRefused, match="Kronecker product over all of them") as caught:
        cut_linear("lm_head", change, ROWS, torch.zeros(ADDED, 32), None)
    assert caught.value.code == "unsupported_combination"


def test_it_is_added_to_nothing_and_merged_into_nothing(tmp_path: Path) -> None:
    save(tmp_path / "own", UNTIED, lora(target_modules=["q_proj", *EMBEDDINGS]), save_embedding_layers=True)
    _, adapter = taken(tmp_path / "own", UNTIED)
    with pytest.raises(AdapterRefused, match="tokens of its own") as caught:
        compose([(adapter, 0.5)], "f" * 64)
    assert caught.value.code == "not_additive"
    with pytest.raises(AdapterRefused, match="tokens of its own") as caught:
        merge([MergePart(adapter, 1.0)], Weights(UNTIED), "linear", out=tmp_path / "out")
    assert caught.value.code == "not_mergeable"


def test_new_rows_alone_are_an_effect(tmp_path: Path) -> None:
    save(tmp_path, TIED, TrainableTokensConfig(token_indices=OWN), save_embedding_layers=False)
    _, adapter = taken(tmp_path, TIED)
    weights = Weights(TIED)
    effect = measure(adapter, weights, BaseNorms(weights))
    assert not effect.changes_nothing
