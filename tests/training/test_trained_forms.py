"""Forms of a run that the others leave alone: a base in bf16, few layers, gradients added up or worked out again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from cli.conftest import Livery
from livery.models import ResolvedModel
from livery.training import trainer
from livery.training.model import TrainingStopped, load_base
from livery.training.run_file import parse_run
from livery_adapters.tensor_file import WEIGHTS_NAME
from training.conftest import Written

pytestmark = [pytest.mark.train, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("name", ["lm_head", "embed_tokens", "input_layernorm"])
def test_a_module_is_trained_whole_in_a_base_in_bf16(
    name: str, written: Written, tmp_path: Path, livery: Livery
) -> None:
    adapter = {"r": 2, "target_modules": ["v_proj"], "modules_to_save": [name]}
    run = written(dtype="bfloat16", adapter=adapter, checkpoint_every=2)
    done = livery("adapters", "train", run, "--out", tmp_path / "out", "--json").json()
    found = done["evaluation"]
    assert found["after"]["loss"] < found["before"]["loss"], "it learnt"
    # The engine's base is fp32 on a CPU; PEFT's was rounded to 8 bits of mantissa.
    assert found["after"]["loss"] == pytest.approx(found["peft"]["after"]["loss"], rel=0.03)
    assert [step for step, _ in done["held_out_losses"]] == [0, 2, 4, 6]
    assert done["coverage"]["dtypes"] == ["F32"]


def test_a_base_with_scaled_positions_reads_its_scaled_length(base: Path, tmp_path: Path) -> None:
    """As it is served: 256 positions, stretched to 1024."""
    scaled = shutil.copytree(base, tmp_path / "scaled")
    config = json.loads((scaled / "config.json").read_text())
    rope = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 256}
    (scaled / "config.json").write_text(json.dumps(config | {"rope_parameters": rope}))
    text = "kind: cpt\nbase: b\ndata: d\ndevice: cpu\nmax_length: "
    load_base(parse_run(f"{text}1024"), ResolvedModel("b", scaled), "cpu")
    with pytest.raises(TrainingStopped, match="max_length is 1025, and the base reads 1024 tokens"):
        load_base(parse_run(f"{text}1025"), ResolvedModel("b", scaled), "cpu")


def test_all_linear_modules_of_some_layers_are_those_of_no_other(
    written: Written, tmp_path: Path, livery: Livery
) -> None:
    run = written(adapter={"r": 2, "layers": [1]})
    found = livery("adapters", "train", run, "--out", tmp_path / "out", "--json").json()["evaluation"]
    assert found["after"]["loss"] == pytest.approx(found["peft"]["after"]["loss"], rel=2e-3)
    with safe_open(tmp_path / "out" / WEIGHTS_NAME, framework="numpy") as file:
        names = list(file.keys())
    assert names and all(".layers.1." in name for name in names)
    linear = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert {name.split(".")[-3] for name in names} == linear


def test_a_step_of_parts_is_the_step_of_the_whole(written: Written, tmp_path: Path, livery: Livery) -> None:
    """Gradients of two halves added up, and worked out a second time, are those of the whole batch."""
    common: dict[str, Any] = {"epochs": 2, "steps": 0, "weight_decay": 0.1, "schedule": "constant"}
    runs = {
        "whole": common,
        "parts": {**common, "batch_size": 2, "accumulate": 2},
        "again": {**common, "gradient_checkpointing": True},
    }
    found = {}
    for name, fields in runs.items():
        done = livery("adapters", "train", written(**fields), "--out", tmp_path / name, "--json").json()
        found[name] = (done["steps"], done["evaluation"]["after"]["loss"])
    assert found["again"] == (found["whole"][0], pytest.approx(found["whole"][1], rel=1e-4))
    assert found["parts"] == (found["whole"][0], pytest.approx(found["whole"][1], rel=0.02))


def test_what_cant_be_measured_is_kept_all_the_same(
    written: Written, tmp_path: Path, livery: Livery, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = written(steps=4, checkpoint_every=2)
    whole = livery("adapters", "train", run, "--out", tmp_path / "whole", "--json").json()
    measure, calls = trainer.measure, []

    def fails(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == 2:  # the first is of the base
            raise MemoryError
        return measure(*given)

    with monkeypatch.context() as once:
        once.setattr(trainer, "measure", fails)
        done = livery("adapters", "train", run, "--out", tmp_path / "out")
    assert (done.code, "Step 2 is kept" in " ".join(done.err.split())) == (1, True), done.err
    again = livery("adapters", "train", run, "--out", tmp_path / "out", "--json").json()
    assert again["resumed_from"] == 2
    assert again["held_out_losses"] == whole["held_out_losses"]
    assert (tmp_path / "out" / WEIGHTS_NAME).read_bytes() == (tmp_path / "whole" / WEIGHTS_NAME).read_bytes()
    assert json.loads((tmp_path / "out" / "training.json").read_text())["steps"] == 4
