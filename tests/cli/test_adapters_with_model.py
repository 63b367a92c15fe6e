"""Commands that load the model themselves, on tiny random ones: shapes, proof, PEFT's word, and merging."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from peft import HiraConfig, IA3Config, LoKrConfig, LoraConfig, PeftConfig
from safetensors import safe_open
from torch import Tensor

from adapters.object_stores import environment, moto, s3
from adapters.peft_types import TARGETS, base, make
from cli.conftest import Livery
from engine.oracle import save_grown
from engine.pooled import save_classifier, save_embedding_adapter
from livery.commands.eval_found import in_data
from livery.commands.offline import Place
from livery.data_folder import DataFolder
from livery.engine import memory
from livery_adapters.store import BlobStore
from livery_adapters.tensor_file import WEIGHTS_NAME

__all__ = ["environment", "moto", "s3"]  # fixtures

LORA: dict[str, Any] = {"task_type": "CAUSAL_LM", "target_modules": TARGETS["llama"]}


@pytest.fixture(autouse=True)
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeroing a gigabyte of KV cache takes longer than the rest of most tests."""
    monkeypatch.setattr(memory, "CPU_KV_MOST", 16 << 20)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("models") / "tiny-llama"
    base("llama").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("lora") / "lora", LoraConfig(r=4, **LORA))


def saved(folder: Path, config: PeftConfig, seed: int = 0) -> Path:
    make(folder, "llama", config, seed=seed)
    return folder


def test_a_model_is_known_by_its_shapes_and_remembered_by_the_folder(
    model: Path, lora: Path, tmp_path: Path, livery: Livery
) -> None:
    data = tmp_path / "data"
    added = livery("adapters", "add", "pirate", lora, "--data", data, "--model", model, "--json").json()
    assert (added["state"], added["coverage"]["exact"], added["coverage"]["base"]) == ("registered", None, "tiny-llama")
    again = livery("adapters", "add", "again", lora, "--data", data, "--json").json()  # the base is known now
    assert again["digest"] == added["digest"]
    other = tmp_path / "other"
    base("gpt2").save_pretrained(other)
    done = livery("adapters", "add", "x", lora, "--data", data, "--model", other)
    assert (done.code, "another base" in done.err) == (1, True)
    assert livery("adapters", "add", "x", lora, "--data", data, "--model", "no/such/model").code == 2
    wrong = livery("adapters", "check", lora, "--model", other, "--json")
    assert (wrong.code, json.loads(wrong.out)["code"]) == (1, "no_matching_module")


def test_a_version_can_be_proven_here(model: Path, lora: Path, tmp_path: Path, livery: Livery) -> None:
    way = ["--data", tmp_path / "data", "--model", model, "--prove"]
    added = livery("adapters", "add", "pirate", lora, *way, "--json").json()
    assert (added["state"], added["proven"], added["coverage"]["exact"]) == ("ready", True, True)
    assert 0 < added["coverage"]["smallest_effect"] <= added["coverage"]["largest_effect"]
    shown = livery("adapters", "show", "pirate", "--data", tmp_path / "data").out
    assert "exact" in shown
    assert "min " in shown
    make(tmp_path / "still", "llama", LoraConfig(r=2, **LORA), std=0.0)  # PEFT starts with B = 0
    refused = livery("adapters", "add", "still", tmp_path / "still", *way)
    assert (refused.code, "changes nothing" in refused.err) == (1, True)


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=4, use_rslora=True, rank_pattern={"q_proj": 2}, **LORA),
        LoraConfig(r=4, alora_invocation_tokens=[5, 9, 5], **LORA),
        IA3Config(feedforward_modules=["down_proj"], task_type="CAUSAL_LM", target_modules=["v_proj", "down_proj"]),
        LoKrConfig(r=4, task_type="CAUSAL_LM", target_modules=TARGETS["llama"]),
    ],
    ids=["lora", "alora", "ia3", "lokr"],
)
def test_the_engines_logits_are_compared_with_pefts(
    config: PeftConfig, model: Path, tmp_path: Path, livery: Livery
) -> None:
    folder = saved(tmp_path / "made", config)
    answer = livery("adapters", "check", folder, "--model", model, "--verify-with-peft", "--json").json()
    peft = answer["peft"]
    assert answer["ok"] is True
    assert peft["difference"] < 1e-4
    assert peft["moves_base"] > 1e-2
    assert answer["coverage"]["exact"] is True


def test_tokens_of_its_own_are_compared_with_a_resized_model(model: Path, tmp_path: Path, livery: Livery) -> None:
    rows = base("llama").config.vocab_size
    tokens = LoraConfig(r=2, trainable_token_indices=[3, rows, rows + 1], **LORA)
    folder = save_grown(model, tmp_path / "own", 1, tokens, rows + 2, save_embedding_layers=False)
    answer = livery("adapters", "check", folder, "--model", model, "--verify-with-peft", "--json").json()
    assert (answer["ok"], answer["coverage"]["added_tokens"]) == (True, 2)
    assert answer["peft"]["difference"] < 1e-4


@pytest.mark.parametrize(("labels", "words"), [(0, "embeddings"), (3, "classification, 3 classes")])
def test_vectors_and_classes_are_compared_with_pefts(
    labels: int, words: str, model: Path, tmp_path: Path, livery: Livery
) -> None:
    folder, fields = tmp_path / "made", {"target_modules": TARGETS["llama"]}
    if labels:
        save_classifier(model, folder, 1, labels, **fields)
    else:
        save_embedding_adapter(model, folder, 1, **fields)
    check = ["adapters", "check", folder, "--model", model, "--verify-with-peft"]
    peft = livery(*check, "--json").json()["peft"]
    assert peft["ok"] is True
    assert peft["difference"] < 1e-4
    assert peft["moves_base"] > 1e-2
    assert words in livery(*check).out


def test_what_differs_from_peft_fails(model: Path, tmp_path: Path, livery: Livery) -> None:
    folder = saved(tmp_path / "hira", HiraConfig(r=3, task_type="CAUSAL_LM", target_modules=TARGETS["llama"]))
    whole = livery("adapters", "check", folder, "--model", model, "--json")
    assert whole.code == 1
    assert "--approximate RANK" in json.loads(whole.out)["message"]
    check = ["adapters", "check", folder, "--model", model, "--verify-with-peft", "--approximate", "1"]
    done = livery(*check)
    assert done.code == 1
    assert "differ from PEFT's" in done.err
    assert "rank 1" in done.err
    assert "approximated" in done.out
    told = json.loads(livery(*check, "--json").out)
    assert told["ok"] is False
    assert told["peft"]["difference"] > 1e-3
    assert told["coverage"]["error"] > 0


def test_without_peft_the_remedy_is_named(
    model: Path, lora: Path, livery: Livery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    done = livery("adapters", "check", lora, "--model", model, "--verify-with-peft")
    assert done.code == 1
    assert 'pip install "livery[train]"' in done.err


def test_a_merge_is_a_version_that_knows_its_parents(model: Path, lora: Path, tmp_path: Path, livery: Livery) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    other = saved(tmp_path / "other", LoraConfig(r=2, **LORA), seed=1)
    first = livery("adapters", "add", "first", lora, "--data", data, "--model", model, "--json").json()["digest"]
    second = livery("adapters", "add", "second", other, "--data", data, "--json").json()["digest"]
    made = livery("adapters", "merge", "both", "first=1", f"second@{second[:10]}=-0.5", "--data", data, "--json").json()
    assert made["parents"] == [{"digest": first, "weight": 1.0}, {"digest": second, "weight": -0.5}]
    assert (made["proven"], made["source"], made["merge"]["error"]) == (True, "merge", 0)
    assert made["coverage"]["ranks"] == [6]
    assert f"1 × {first[:12]} + -0.5 × {second[:12]}" in livery("adapters", "show", "both", "--data", data).out
    ties = ["merge", "both", "first", "second", "--method", "ties", "--density", "0.5", "--rank", "3", "--data", data]
    written = livery("adapters", *ties, "--out", out, "--json").json()
    assert written["merge"]["error"] > 0
    assert len(livery("adapters", "versions", "both", "--data", data, "--json").json()["data"]) == 1
    checked = livery("adapters", "check", out, "--model", model, "--verify-with-peft", "--json").json()
    assert checked["ok"] is True
    there = livery("adapters", *ties, "--out", out)
    assert (there.code, f"there is something at {out} already" in there.err) == (1, True)
    assert "this command stands in there" in livery("adapters", *ties, "--out", ".").err
    over = ["merge", "both", "first", "second", "--data", data]
    for limit, words in (
        ("--max-rank=5", "would have rank 6, and the limit is 5"),
        ("--max-adapter-bytes=1KiB", "1024"),
    ):
        refused = livery("adapters", *over, limit)
        assert (refused.code, words in refused.err, limit.partition("=")[0] in refused.err) == (1, True, True)
        assert "merging" not in refused.err
    assert livery("adapters", *over, "--out", tmp_path / "any", "--max-rank", 5).code == 0  # a directory may be larger
    for parts, words in ((["nobody"], "nobody"), (["first@9"], "no version '9'"), (["first=1", "first=-1"], "zero")):
        done = livery("adapters", "merge", "none", *parts, "--data", data)
        assert (done.code, words in done.err) == (1, True), done


def test_a_merge_is_for_what_its_parts_were_trained_for(
    model: Path, lora: Path, tmp_path: Path, livery: Livery
) -> None:
    data, merge = ["--data", tmp_path / "data"], ["adapters", "merge"]
    for seed, name in enumerate(("near", "far")):
        made = save_embedding_adapter(model, tmp_path / name, seed, target_modules=TARGETS["llama"])
        assert livery("adapters", "add", name, made, "--model", model, *data, "--json").json()["task"] == "embed"
    livery("adapters", "add", "chat", lora, *data)
    assert livery(*merge, "both", "near", "far=0.5", *data, "--json").json()["task"] == "embed"
    livery(*merge, "any", "near", "far=0.5", *data, "--out", tmp_path / "out", "--json").json()
    checked = livery("adapters", "check", tmp_path / "out", "--model", model, "--verify-with-peft", "--json").json()
    assert checked["ok"] is True
    assert checked["peft"]["moves_base"] > 1e-2
    mixed = livery(*merge, "mixed", "near", "chat", *data)
    assert mixed.code == 1
    assert "near and chat were trained for different tasks (embed, generate)" in mixed.err


def test_two_ranks_of_the_same_files_are_two_parts_of_a_merge(model: Path, tmp_path: Path, livery: Livery) -> None:
    """Each as it is served: the merge is the sum of the two pairs, not twice one of them."""
    data, targets = ["--data", tmp_path / "data"], ["q_proj"]
    hira = saved(tmp_path / "hira", HiraConfig(r=3, task_type="CAUSAL_LM", target_modules=targets))
    for name, rank in (("coarse", 1), ("fine", 4)):
        livery("adapters", "add", name, hira, "--approximate", rank, "--model", model, *data, "--json").json()
    out = {name: tmp_path / name for name in ("coarse", "fine", "both")}
    for name, parts in (("coarse", ["coarse"]), ("fine", ["fine"]), ("both", ["coarse", "fine=0.5"])):
        report = livery("adapters", "merge", name, *parts, *data, "--out", out[name], "--json").json()["merge"]
        assert len(report["parents"]) == len(parts)
    changes = {name: change_of(folder) for name, folder in out.items()}
    assert not torch.allclose(changes["coarse"], changes["fine"], rtol=0.01)
    torch.testing.assert_close(changes["both"], changes["coarse"] + 0.5 * changes["fine"])


def change_of(folder: Path) -> Tensor:
    """ΔW of the first layer's q_proj in a directory that a merge wrote, whose scale is 1."""
    with safe_open(str(folder / WEIGHTS_NAME), framework="pt") as file:
        a, b = (
            file.get_tensor(f"base_model.model.model.layers.0.self_attn.q_proj.lora_{half}.weight") for half in "AB"
        )
    return b @ a


@pytest.mark.usefixtures("s3")
def test_a_merge_and_an_evaluation_fetch_files_that_another_server_took_in(
    model: Path, lora: Path, tmp_path: Path, livery: Livery
) -> None:
    """They lie in the object store that the folder's server shares, and are held while they are read."""
    data = tmp_path / "data"
    livery("adapters", "add", "before", lora, "--data", data, "--model", model)
    known = DataFolder(data).base()
    assert known is not None
    DataFolder(data).write_base(msgspec.structs.replace(known, blob_store="s3://bucket/livery"))
    other = saved(tmp_path / "other", LoraConfig(r=2, **LORA), seed=1)
    first, second = (
        livery("adapters", "add", name, files, "--data", data, "--json").json()["digest"]
        for name, files in (("first", lora), ("second", other))
    )
    store = BlobStore(DataFolder(data).adapters)
    assert set(store.collect_garbage([], 0.0)) == {first, second}
    livery("adapters", "merge", "both", "first", "second", "--data", data, "--out", tmp_path / "out", "--json").json()
    assert set(store.collect_garbage([], 0.0)) == {first, second}
    found = in_data(Place(data), ["first", "second"])
    assert all(one.directory.is_dir() for one in found.adapters)
    assert store.collect_garbage([], 0.0) == [], "they are held"
    for one in found.adapters:
        assert one.hold is not None
        one.hold.release()
    assert set(store.collect_garbage([], 0.0)) == {first, second}
    DataFolder(data).write_base(known)  # no object store: they are nowhere
    gone = livery("adapters", "merge", "both", "first", "second", "--data", data)
    assert (gone.code, "the files of first@1" in gone.err, "add the adapter again" in gone.err) == (1, True, True)
    assert "the files of first@1" in in_data(Place(data), ["first"]).adapters[0].gone


def test_a_merge_of_damaged_files_is_refused(model: Path, lora: Path, tmp_path: Path, livery: Livery) -> None:
    data = tmp_path / "data"
    livery("adapters", "add", "pirate", lora, "--data", data, "--model", model)
    (weights,) = data.rglob("adapter_model.safetensors")
    weights.chmod(0o644)
    stored = bytearray(weights.read_bytes())
    stored[-4] ^= 1  # the lowest bit of the last number
    weights.write_bytes(stored)
    done = livery("adapters", "merge", "twice", "pirate=2", "--data", data)
    assert (done.code, "changed since they were added" in done.err) == (1, True), done
