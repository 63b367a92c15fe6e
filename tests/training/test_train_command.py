"""`livery adapters train` up to where the libraries that train come in."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from peft import IA3Config, LoraConfig
from transformers import AutoConfig

from cli.conftest import Livery
from cli.processes import serving, url_in
from engine.families import save
from engine.oracle import save_adapter, save_grown, save_tuned
from livery.commands.train_target import Active, Kept, Target
from livery.models import base_digest, resolve_model

PIRATE = Path(__file__).parents[2] / "adapters" / "demo" / "pirate"
RUN = "kind: sft\nbase: smollm2-135m-instruct\ndata: chats.jsonl\n"
CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Aye."}]}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "chats.jsonl").write_text((json.dumps(CHAT) + "\n") * 10)
    (tmp_path / "run.yaml").write_text(RUN)
    return tmp_path / "run.yaml"


def test_a_check_says_what_is_in_the_data(run: Path, livery: Livery) -> None:
    found = livery("adapters", "train", run, "--check", "--json").json()
    assert found["run"]["kind"] == "sft"
    assert (found["data"]["examples"], found["data"]["held_out"]) == (9, 1)
    assert found["data"]["learnt_tokens"] == 9 * 4, "Aye. and the end of the turn"
    shown = livery("adapters", "train", run, "--check").out
    assert "9 examples" in shown


def test_a_check_tells_of_broken_lines(run: Path, livery: Livery) -> None:
    (run.parent / "chats.jsonl").write_text(json.dumps(CHAT) + "\n{bad\n" + json.dumps(CHAT) + "\n")
    stopped = livery("adapters", "train", run, "--check")
    assert (stopped.code, "chats.jsonl:2: not JSON" in stopped.err) == (1, True)
    run.write_text(RUN + "broken_lines: skip\n")
    shown = livery("adapters", "train", run, "--check")
    assert (shown.code, "chats.jsonl:2: not JSON" in shown.out) == (0, True)


@pytest.mark.parametrize("missing", [["trl"], ["accelerate", "datasets", "peft", "trl"]])
def test_libraries_that_are_missing_are_named_with_the_remedy(
    missing: list[str], run: Path, livery: Livery, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = importlib.util.find_spec

    def found(name: str, package: str | None = None) -> Any:
        return None if name in missing else there("json") if name in ("trl", "datasets") else there(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", found)
    done = livery("adapters", "train", run, "--out", run.parent / "out")
    assert done.code == 1
    assert f"training needs {', '.join(missing)}, which isn't installed: pip install 'livery[train]'" in done.err
    assert sorted(path.name for path in run.parent.iterdir()) == ["chats.jsonl", "run.yaml"]


def trl_is(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the libraries were here."""
    there, told = importlib.util.find_spec, importlib.metadata.version
    here = ("trl", "datasets", "accelerate", "peft")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, package=None: there("json" if name in here else name, package)
    )
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version if name in here else told(name))


def test_a_trl_that_is_too_old_is_named(run: Path, livery: Livery, monkeypatch: pytest.MonkeyPatch) -> None:
    trl_is("0.29.1", monkeypatch)
    done = livery("adapters", "train", run, "--out", run.parent / "out")
    assert (done.code, "training needs trl 1.16 or later, and 0.29.1 is here" in done.err) == (1, True)


def test_a_form_of_the_base_that_isnt_for_this_machine(
    run: Path, livery: Livery, monkeypatch: pytest.MonkeyPatch
) -> None:
    trl_is("1.16.0", monkeypatch)
    run.write_text(RUN + "quantization: bnb-int8\ndevice: cpu\n")
    done = livery("adapters", "train", run, "--out", run.parent / "out")
    assert done.code == 2
    assert "--quantization bnb-int8, which isn't for CPUs" in done.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--out is missing"),
        (("--out", "o", "--as", "n"), "--as and --alias go with --add-to"),
        (("--out", "o", "--add-to", "d"), "--add-to needs --as NAME"),
        (("--out", "o", "--add-to", "d", "--as", "n", "--alias", "n"), "an alias is another name"),
    ],
)
def test_arguments_that_make_no_sense(arguments: tuple[str, ...], words: str, run: Path, livery: Livery) -> None:
    done = livery("adapters", "train", run, *arguments)
    assert done.code == 2
    assert words in " ".join(done.err.replace("│", " ").split())


def test_what_the_file_says_wrongly_ends_it(run: Path, livery: Livery) -> None:
    run.write_text(RUN + "learning_rate: fast\n")
    done = livery("adapters", "train", run, "--out", run.parent / "out")
    assert (done.code, "learning_rate is 'fast'" in done.err) == (1, True)
    run.write_text(RUN.replace("smollm2-135m-instruct", "no-such-base"))
    done = livery("adapters", "train", run, "--check")
    assert (done.code, "model 'no-such-base' not found" in done.err) == (2, True)


@pytest.mark.parametrize(
    ("adapter", "words"),
    [
        (
            "target_modules: [q_proj, v_porj]",
            "adapter.target_modules has v_porj, which no module of smollm2-135m-instruct is called; v_proj may be "
            "meant: it has down_proj, embed_tokens, gate_proj, k_proj, lm_head",
        ),
        ("modules_to_save: [lm_haed]", "adapter.modules_to_save has lm_haed, which no module of"),
        (
            "layers: [28, 29, 30]",
            "adapter.layers has 30, and smollm2-135m-instruct has 30 layers, 0 to 29",
        ),
        ("{target_modules: [q_proj, lm_head], layers: [1]}", "lm_head, which isn't in any of the layers 1"),
        ("{target_modules: [q_proj, lm_head], modules_to_save: [lm_head]}", "lm_head, which modules_to_save trains"),
    ],
)
def test_names_that_the_base_doesnt_have_are_told(adapter: str, words: str, run: Path, livery: Livery) -> None:
    """Where others fit, PEFT says nothing."""
    run.write_text(RUN + f"adapter:\n  {adapter}\n")
    done = livery("adapters", "train", run, "--check")
    assert (done.code, words in " ".join(done.err.split())) == (1, True), done.err


def test_names_that_the_base_has_pass(run: Path, livery: Livery) -> None:
    fields = "target_modules: [self_attn.q_proj, down_proj], modules_to_save: [norm, lm_head], layers: [0, 29]"
    run.write_text(RUN + f"adapter: {{{fields}}}\n")
    assert livery("adapters", "train", run, "--check").code == 0


def test_an_adapter_that_cant_be_gone_on_with_is_named(run: Path, livery: Livery) -> None:
    def said(start: Path | str) -> str:
        run.write_text(RUN + f"start_from: {start}\n")
        done = livery("adapters", "train", run, "--check")
        assert done.code == 1
        return " ".join(done.err.split())

    assert "start_from is none, and" in (told := said("none")) and "adapter_config.json" in told
    small = save("llama", run.parent / "models")
    keys = IA3Config(target_modules=["k_proj"], feedforward_modules=[], task_type="CAUSAL_LM")
    ia3 = save_tuned(small, run.parent / "ia3", 1, keys)
    assert "is IA3 for the task generate: a run goes on training LORA that generates" in said(ia3)
    config = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights="pissa")
    pissa = save_adapter(small, run.parent / "pissa", 1, config)
    assert "init_lora_weights in" in (told := said(pissa)) and "path_initial_model_for_weight_conversion=" in told
    other = save_adapter(small, run.parent / "other", 1, LoraConfig(r=4, target_modules=["q_proj"]))
    assert f"start_from is {other}: " in (told := said(other)) and "q_proj" in told
    run.write_text(RUN + f"start_from: {PIRATE}\n")
    assert livery("adapters", "train", run, "--check").code == 0


def test_what_lies_beside_an_adapter_to_go_on_with_is_told(run: Path, livery: Livery) -> None:
    """A run writes and encodes chats by the base's own."""
    own = shutil.copytree(PIRATE, run.parent / "own")
    (own / "chat_template.jinja").write_text("{{ messages[-1].content }}")
    run.write_text(RUN + f"start_from: {own}\n")
    done = livery("adapters", "train", run, "--check")
    told = " ".join(done.err.split())
    assert (done.code, f"start_from is {own}, and its chat template (chat_template.jinja" in told) == (0, True)
    small = save("llama", run.parent / "models")
    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    rows = AutoConfig.from_pretrained(small).vocab_size + 3
    grown = save_grown(small, run.parent / "grown", 1, config, rows)
    run.write_text(f"kind: sft\nbase: {small}\ndata: chats.jsonl\nstart_from: {grown}\n")
    done = livery("adapters", "train", run, "--check")
    told = " ".join(done.err.split())
    assert (done.code, f"start_from is {grown}, which has rows for 3 tokens that {small} doesn't have" in told) == (
        1,
        True,
    )


def test_where_it_is_to_go_is_asked_before_anything_is_trained(
    run: Path, livery: Livery, monkeypatch: pytest.MonkeyPatch
) -> None:
    trl_is("1.16.0", monkeypatch)
    way = ("adapters", "train", run, "--out", run.parent / "out")
    done = livery(*way, "--add-to", "http://127.0.0.1:9", "--as", "keeper")
    assert (done.code, "no answer from http://127.0.0.1:9" in done.err) == (1, True)
    done = livery(*way, "--add-to", run.parent / "data", "--as", "bad name")
    assert (done.code, "'bad name'" in done.err) == (1, True)
    done = livery("adapters", "train", run, "--out", ".")
    assert (done.code, f"--out is {Path.cwd()}, and this command stands in there" in done.err) == (1, True)
    assert not (run.parent / "out").exists()


def test_a_rank_that_a_server_doesnt_take_is_told_before_anything_is_trained(
    run: Path, livery: Livery, monkeypatch: pytest.MonkeyPatch
) -> None:
    trl_is("1.16.0", monkeypatch)
    run.write_text(RUN + "adapter: {r: 16}\n")
    (run.parent / "adapters").mkdir()
    with serving(run.parent / "adapters", run.parent / "data", "--max-rank", "8") as (_, printed):
        url = url_in(printed)
        way = ("adapters", "train", run, "--out", run.parent / "out", "--add-to", url, "--as", "keeper")
        done = livery(*way)
        assert f"rank 16, and {url} takes up to 8: start that server with --max-rank 16" in done.err
        assert (done.code, "reading the data" in done.err) == (1, False)
        run.write_text(RUN)  # of a rank that fits, and the server's base has another digest
        done = livery(*way)
        assert (done.code, "reading the data" in done.err) == (1, False)
        digest = base_digest(resolve_model("smollm2-135m-instruct").path)
        assert f"base is smollm2-135m-instruct ({digest[:12]}), and {url} serves another one (fafafafafafa)" in done.err


def test_a_data_folder_takes_any_rank_that_can_be_trained(tmp_path: Path) -> None:
    base = save("llama", tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "high", 1, LoraConfig(r=300, target_modules=["q_proj"]))
    target = Target.of(str(tmp_path / "data"), "keeper", None, None)
    assert target is not None
    target.check(str(base), "", 300)
    added = target.add(str(base), adapter, Kept.of(adapter, Active()), activate=True)
    assert added["adapter"]["coverage"]["ranks"] == [300]
    target.check(str(base), "", 300)  # a folder that has served something by now
