"""Which files hold a model: transformers is asked what it loads, and the hub what was fetched of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from adapters.hub_server import REPO, HubServer
from adapters.tuned_made import shapes
from engine.families import save
from livery.engine.base_bytes import expected_bytes
from livery.engine.vllm_weights import FileWeights
from livery.models import ModelNotFound, base_digest, resolve_model
from livery_adapters.making.extract_checkpoint import Checkpoint
from livery_adapters.model_files import INDEX_NAME, WHOLE_NAME, FilesUnusable, weight_files

NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save("llama", tmp_path_factory.mktemp("models") / "tiny")
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    (folder / WHOLE_NAME).unlink()
    model.save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


@pytest.fixture
def model(sharded: Path, tmp_path: Path) -> Path:
    """A copy of it, in shards."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    for file in sharded.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def whole(model: Path, name: str, norm: float) -> None:
    """All tensors of a model in a file of this name, but another norm."""
    tensors = {key: tensor for file in weight_files(model) for key, tensor in load_file(file).items()}
    save_file({**tensors, NORM: torch.full_like(tensors[NORM], norm)}, model / name, {"format": "pt"})


def loaded_norm(model: Path) -> float:
    """As transformers loads it."""
    return float(AutoModelForCausalLM.from_pretrained(model).get_parameter(NORM)[0])


def read_norm(model: Path) -> float:
    """As extraction reads it."""
    return float(Checkpoint.open(model).tensors[NORM].read()[0])


def held(model: Path) -> int:
    return expected_bytes(model, shapes(model), None, 4).held


def test_weights_that_are_there_twice_count_once(model: Path, sharded: Path) -> None:
    whole(model, "consolidated.safetensors", 3.0)
    assert [file.name for file in weight_files(model)] == [file.name for file in weight_files(sharded)]
    assert read_norm(model) == loaded_norm(model) == loaded_norm(sharded) != 3.0
    assert held(model) == held(sharded)
    assert base_digest(model) == base_digest(sharded)
    assert resolve_model(str(model)).path == model


@pytest.mark.parametrize("index", ["as it was", "of files that are gone"])
def test_one_file_goes_before_an_index(index: str, model: Path, sharded: Path) -> None:
    whole(model, WHOLE_NAME, 3.0)
    if index != "as it was":
        for file in model.glob("model-*.safetensors"):
            file.unlink()
    assert weight_files(model) == (model / WHOLE_NAME,)
    assert read_norm(model) == loaded_norm(model) == 3.0
    assert held(model) == held(sharded)
    assert float(FileWeights(model, shapes(model))._read(NORM)[0]) == 3.0


def test_a_file_that_the_configuration_names_goes_before_both(model: Path) -> None:
    whole(model, WHOLE_NAME, 3.0)
    whole(model, "mine.safetensors", 5.0)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "transformers_weights": "mine.safetensors"}))
    assert read_norm(model) == loaded_norm(model) == 5.0
    (model / "mine.safetensors").unlink()
    with pytest.raises(FilesUnusable, match=r"lacks mine\.safetensors, which config\.json names"):
        weight_files(model)


def test_files_of_other_names_are_all_taken(model: Path) -> None:
    (model / INDEX_NAME).unlink()
    assert weight_files(model) == tuple(sorted(model.glob("*.safetensors")))


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("a shard is gone", r"tiny lacks model-00001\S+, which model\.safetensors\.index\.json names; copy it there"),
        ("no index", "is no index of safetensors files; save the model again"),
        ("outside", "names a file outside of its folder"),
        ("nothing", r"tiny has no \*\.safetensors"),
    ],
)
def test_what_is_missing_is_named(broken: str, words: str, model: Path) -> None:
    first = weight_files(model)[0]
    if broken == "a shard is gone":
        first.unlink()
    elif broken == "no index":
        (model / INDEX_NAME).write_text("{}")
    elif broken == "outside":
        (model / INDEX_NAME).write_text(json.dumps({"weight_map": {NORM: "../x.safetensors"}}))
    else:
        (model / INDEX_NAME).unlink()
        for file in model.glob("*.safetensors"):
            file.unlink()
    with pytest.raises(ModelNotFound, match=words):
        resolve_model(str(model))


RESOLVE = "import sys; from livery.models import resolve_model; print(resolve_model(sys.argv[1]).path)"


@pytest.mark.parametrize("kept", ["shards", "one file", "names of their own"])
def test_only_what_is_loaded_is_fetched_from_a_hub(kept: str, hub: HubServer, model: Path, tmp_path: Path) -> None:
    """In a process of its own: huggingface_hub reads where the hub is when it is imported."""
    whole(model, "consolidated.safetensors", 3.0)
    if kept == "one file":
        whole(model, WHOLE_NAME, 3.0)
    elif kept == "names of their own":
        (model / INDEX_NAME).unlink()
    commit = hub.push({file.name: file.read_bytes() for file in model.iterdir()})
    environ = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run([sys.executable, "-c", RESOLVE, REPO], env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    assert folder.name == commit
    assert {file.name for file in folder.glob("*.safetensors")} == {file.name for file in weight_files(model)}
    assert base_digest(folder) == base_digest(model)
