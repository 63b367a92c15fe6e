"""Runs that go on with an adapter: its own weights and rank, and for preferences itself as the reference."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file

from cli.conftest import Livery
from engine.oracle import save_tuned
from livery.models import ResolvedModel
from livery.text import Tokenizer
from livery.training.dataset import prepare
from livery.training.run_file import read_run
from livery.training.trainer import trainer_of
from livery.training.work import Work
from livery_adapters.tensor_file import CONFIG_NAME, WEIGHTS_NAME
from training.conftest import Written

pytestmark = [pytest.mark.train, pytest.mark.filterwarnings("ignore")]

FIRST = [
    {"r": 4, "lora_alpha": 6},
    {"r": 4, "use_dora": True, "use_rslora": True},
    {"r": 4, "modules_to_save": ["lm_head"]},
]


def trained(livery: Livery, run: Path, out: Path) -> dict[str, Any]:
    found: dict[str, Any] = livery("adapters", "train", run, "--out", out, "--json").json()
    return found


@pytest.mark.parametrize("adapter", FIRST, ids=["lora", "dora", "head"])
@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_it_begins_where_the_other_ended(
    kind: str, adapter: dict[str, Any], written: Written, tmp_path: Path, livery: Livery
) -> None:
    first = trained(livery, written(adapter=adapter), tmp_path / "first")
    found = trained(livery, written(kind, start_from="first", learning_rate=1e-3), tmp_path / "out")
    evaluation = found["evaluation"]
    for when in ("before", "after"):
        peft = evaluation["peft"][when]
        assert evaluation[when] == {name: pytest.approx(value, rel=2e-3, abs=1e-5) for name, value in peft.items()}
    assert evaluation["after"]["loss"] < evaluation["before"]["loss"], "it learnt"
    if kind == "sft":
        assert evaluation["before"]["loss"] == pytest.approx(first["evaluation"]["after"]["loss"], rel=1e-4)
    else:
        # Itself is the reference, for TRL as well: nothing departs from it yet.
        assert found["losses"][0][1] == pytest.approx(math.log(2), abs=1e-4)
        assert evaluation["before"]["loss"] == pytest.approx(math.log(2), rel=1e-4)
    assert (found["trained_numbers"], found["warnings"]) == (first["trained_numbers"], [])
    configs = [json.loads((tmp_path / name / CONFIG_NAME).read_text()) for name in ("first", "out")]
    assert configs[0] == configs[1]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        path.name for path in (tmp_path / "first").iterdir()
    )


def test_rows_of_tokens_and_an_embedding_are_dpos_reference(base: Path, written: Written, tmp_path: Path) -> None:
    """And that is the same each time, whatever is dropped of the adapter that is trained."""
    tokens = Tokenizer.from_directory(base).encode_plain("Aye, lamps.")
    configs = {
        "rows": LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=tokens),
        "embedding": LoraConfig(r=4, target_modules=["embed_tokens", "q_proj"]),
        "dropped": LoraConfig(r=4, target_modules=["q_proj"], lora_dropout=0.5),
        "whole": LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["norm"], use_dora=True),
    }
    for name, config in configs.items():
        save_tuned(base, tmp_path / name, 1, config)
        run = read_run(written("dpo", start_from=name, dtype="bfloat16" if name == "whole" else "float32"))
        data = prepare(run, tmp_path, Tokenizer.from_directory(base))
        with Work(tmp_path / "out", {}) as work:
            trainer = trainer_of(run, ResolvedModel("tiny", base), data, work, "cpu", tmp_path / name)
        model = trainer.model.train()
        own, other = (get_peft_model_state_dict(model, adapter_name=one) for one in ("default", "ref"))
        assert own.keys() == other.keys() and all(torch.equal(own[key], other[key]) for key in own), name
        batch = next(iter(trainer.get_train_dataloader()))
        references = [torch.cat(trainer.compute_ref_log_probs(model, batch)) for _ in range(2)]
        assert torch.equal(*references), name
        loss = float(trainer.compute_loss(model, batch))
        if name == "dropped":
            assert loss != pytest.approx(math.log(2), abs=1e-3), "what is trained is dropped of"
        else:
            assert loss == pytest.approx(math.log(2), abs=1e-5), name


def test_another_adapter_to_begin_with_doesnt_go_on_with_it(written: Written, tmp_path: Path, livery: Livery) -> None:
    trained(livery, written(), tmp_path / "first")
    run = written("dpo", start_from="first")
    done = trained(livery, run, tmp_path / "out")
    shutil.rmtree(tmp_path / "first")
    trained(livery, written(seed=1), tmp_path / "first")
    other = livery("adapters", "train", written("dpo", start_from="first"), "--out", tmp_path / "out")
    assert (other.code, "there is something at" in other.err) == (1, True)
    assert (
        done["settings"]["start_from"]
        == json.loads((tmp_path / "out" / "training.json").read_text())["settings"]["start_from"]
    )


def test_it_is_gone_on_with_over_a_quantised_base(written: Written, tmp_path: Path, livery: Livery) -> None:
    trained(livery, written(quantization="bnb-nf4"), tmp_path / "first")
    found = trained(livery, written("dpo", start_from="first", quantization="bnb-nf4"), tmp_path / "out")["evaluation"]
    assert found["before"]["loss"] == pytest.approx(math.log(2), rel=1e-4)
    assert found["after"]["loss"] == pytest.approx(found["peft"]["after"]["loss"], rel=2e-3)


@pytest.mark.parametrize("quantization", ["auto", "bnb-nf4"])
def test_no_steps_away_from_it_is_it(quantization: str, written: Written, tmp_path: Path, livery: Livery) -> None:
    """Its own weights are trained, not rounded ones: with a rate of next to nothing they stay."""
    trained(livery, written(quantization=quantization), tmp_path / "first")
    fields = {"start_from": "first", "learning_rate": 1e-12, "steps": 1, "quantization": quantization}
    found = trained(livery, written("dpo", **fields), tmp_path / "out")
    assert found["losses"][0][1] == pytest.approx(math.log(2), abs=1e-5)
    first, out = (load_file(tmp_path / name / WEIGHTS_NAME) for name in ("first", "out"))
    assert first.keys() == out.keys()
    assert all(torch.allclose(first[name], out[name], atol=1e-8) for name in first)
