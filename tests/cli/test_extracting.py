"""`livery adapters extract` from two models on disk to an adapter that a server serves."""

from __future__ import annotations

import copy
import errno
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3Config

from adapters.tuned_made import Change, all_of_it, linear_only, load
from bos import expect_bos
from cli.conftest import Livery
from livery.commands.eval_here import evaluate_directories
from livery.commands.extracting import _doubts, _warnings
from livery.commands.text_loss import compared, reading_prover
from livery.commands.two_models import _check_fields
from livery.evaluation.pieces import Windows
from livery.evaluation.scorer import BASE_LABEL
from livery.models import base_digest
from livery.text import Tokenizer
from livery_adapters.making.extract import Aim, ExtractReport, ModuleExtract
from livery_adapters.refusal import AdapterRefused
from livery_adapters.tensor_file import FILE_NAMES, WEIGHTS_NAME
from server.running import TOKENIZER_FILES, livery_serve, tiny_model

PROMPT = [500, 600, 700, 800]
TEXT = "The lamp was lit at dusk and the keeper wrote it down. " * 8


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def tuned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(base, tmp_path_factory.mktemp("models") / "tiny-tuned")


def save(base: Path, folder: Path, change: Change = all_of_it) -> Path:
    """A fine-tune, of every parameter unless told otherwise, with the base's tokenizer."""
    model = copy.deepcopy(load(base))
    change(model)
    model.save_pretrained(folder)
    for name in TOKENIZER_FILES:
        shutil.copy(base / name, folder / name)
    return folder


def edited(folder: Path, file: str, **fields: Any) -> None:
    (folder / file).write_text(json.dumps({**json.loads((folder / file).read_text()), **fields}))


def test_a_full_fine_tune_is_served_from_its_base(base: Path, tuned: Path, tmp_path: Path, livery: Livery) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    out = tmp_path / "out"
    way = ["adapters", "extract", "--base", base, "--tuned", tuned, "--out", out]
    found = livery(*way, "--rank", "64", "--text", text, "--json").json()
    assert found["error"] < 1e-5
    assert found["text"]["tokens"] > 50
    assert found["text"]["adapter"]["perplexity"] == pytest.approx(found["text"]["tuned"]["perplexity"], rel=1e-4)
    assert found["text"]["adapter"]["kl"] < 1e-6 < 1e-3 < found["text"]["base"]["kl"]
    assert found["text"]["adapter"]["same_best"] == 1.0
    assert sorted(path.name for path in out.iterdir()) == sorted([*FILE_NAMES, "extraction.json"])
    assert json.loads((out / "extraction.json").read_text()) == found
    again = livery(*way)
    assert (again.code, f"something at {out} already" in again.err) == (1, True)


def test_two_fine_tunes_are_served_from_their_base_at_once(
    base: Path, tuned: Path, tmp_path: Path, livery: Livery
) -> None:
    """Each answers as the whole model that it was extracted from, in batches that have both and the base."""
    models = {"mine": tuned, "yours": save(base, tmp_path / "other-tuned", linear_only(rank=3)), base.name: base}
    (tmp_path / "adapters").mkdir()
    with livery_serve(base, tmp_path / "adapters", tmp_path) as server:
        for name in ("mine", "yours"):
            way = ["--base", base, "--tuned", models[name], "--out", tmp_path / name, "--rank", "64"]
            livery("adapters", "extract", *way, "--json").json()
            added = livery("adapters", "add", name, tmp_path / name, "--url", server.url, "--json").json()
            assert added["proven"] is True
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=60)

        def answer(name: str) -> list[int]:
            body = {"return_token_ids": True, "ignore_eos": True}
            given = client.completions.create(model=name, prompt=PROMPT, max_tokens=12, temperature=0, extra_body=body)
            return given.choices[0].model_extra["token_ids"]  # type: ignore[index,no-any-return]

        with ThreadPoolExecutor(6) as pool:
            told = list(pool.map(lambda name: (name, answer(name)), [*models, *models]))
    expected = {name: generated(path) for name, path in models.items()}
    assert told == [(name, expected[name]) for name in [*models, *models]]
    assert len({tuple(ids) for ids in expected.values()}) == len(models), "each has an answer of its own"


def generated(model: Path) -> list[int]:
    """By transformers, greedily behind PROMPT, past any end."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    ids = list(PROMPT)
    with torch.no_grad():
        for _ in range(12):
            ids.append(int(loaded(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(PROMPT) :]


def test_an_adapter_above_a_servers_usual_limits_is_told_with_their_knobs() -> None:
    modules = {"a": ModuleExtract("pair", rank=300), "b": ModuleExtract("pair", rank=256), "c": ModuleExtract("same")}
    report = ExtractReport(modules, 0.1, 0.1, 0.0, 0, (2 << 30) + 1, 0)
    rank, nbytes = _warnings(report, Aim(most=300))
    assert rank.startswith("a has rank 300")
    assert "--max-rank 300" in rank
    assert nbytes.startswith(f"{WEIGHTS_NAME} has 2147483649 bytes")
    assert "--max-adapter-bytes 3GiB" in nbytes
    assert _warnings(replace(report, modules={"b": modules["b"]}, nbytes=2 << 30), Aim()) == []


def test_a_text_is_read_as_an_evaluation_reads_it(base: Path, tuned: Path, tmp_path: Path, livery: Livery) -> None:
    """Of a base that expects a BOS before any text, in every window."""
    models = [Path(shutil.copytree(model, tmp_path / model.name)) for model in (base, tuned)]
    for model in models:
        expect_bos(model)
    text, out = tmp_path / "text.txt", tmp_path / "out"
    text.write_text(TEXT * 3)
    way = ["adapters", "extract", "--base", models[0], "--tuned", models[1], "--out", out]
    found = livery(*way, "--rank", "64", "--text", text, "--json").json()["text"]
    assert found["tokens"] == len(Tokenizer.from_directory(base).encode_bare(TEXT * 3)) > 256
    windows = Windows(256)  # what the tiny base reads at once
    report = evaluate_directories(str(models[0]), {"out": out}, texts=[text], windows=windows).subject("text.txt")
    for label, one in ((BASE_LABEL, "base"), ("out", "adapter")):
        assert report.row(label).measures["perplexity"].value == pytest.approx(found[one]["perplexity"], rel=1e-4)


def test_what_ended_before_its_text_goes_on_with_it(base: Path, tuned: Path, tmp_path: Path, livery: Livery) -> None:
    """And with nothing else: not of other models, not by another rank, not where the text is read already."""
    text, out = tmp_path / "text.txt", tmp_path / "out"
    text.write_text(TEXT)
    way = ["adapters", "extract", "--base", base, "--tuned", tuned, "--out", out]
    alone = livery(*way, "--rank", "4", "--json").json()
    weights = (out / WEIGHTS_NAME).stat().st_mtime_ns
    other = livery(*way, "--rank", "5", "--text", text)
    assert (other.code, f"something at {out} already" in other.err) == (1, True)
    found = livery(*way, "--rank", "4", "--text", text, "--json").json()
    assert found["text"]["tuned"]["perplexity"] > 1
    assert {**alone, "text": found["text"], "warnings": found["warnings"]} == found
    assert json.loads((out / "extraction.json").read_text()) == found
    assert (out / WEIGHTS_NAME).stat().st_mtime_ns == weights
    again = livery(*way, "--rank", "4", "--text", text)
    assert (again.code, f"something at {out} already" in again.err) == (1, True)


@pytest.mark.parametrize("at", [1, 2], ids=["beside the adapter", "with the text"])
def test_no_room_for_its_record(
    at: int, base: Path, tuned: Path, tmp_path: Path, livery: Livery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full once, when the record is begun: the same command ends well, and goes on where it was."""
    text, out, real, begun = tmp_path / "text.txt", tmp_path / "out", Path.open, []
    text.write_text(TEXT)

    def full(path: Path, mode: str = "r", *how: Any, **more: Any) -> Any:
        opened = real(path, mode, *how, **more)
        begun.extend([path] if "extraction.json" in path.name and mode.startswith("w") else [])
        if begun and path is begun[-1] and len(begun) == at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return opened

    monkeypatch.setattr(Path, "open", full)
    way = ["adapters", "extract", "--base", base, "--tuned", tuned, "--out", out, "--rank", "2", "--text", text]
    short = livery(*way)
    assert (short.code, "make room and give the same command again" in " ".join(short.err.split())) == (1, True)
    assert (len(begun), out.exists()) == (at, at == 2)
    found = livery(*way, "--json").json()
    assert (found["resumed"] > 0) == (at == 1)
    assert json.loads((out / "extraction.json").read_text()) == found
    assert sorted(path.name for path in out.iterdir()) == sorted([*FILE_NAMES, "extraction.json"])


def test_one_model_is_in_memory_at_a_time(base: Path, tuned: Path, tmp_path: Path, livery: Livery) -> None:
    livery("adapters", "extract", "--base", base, "--tuned", tuned, "--out", tmp_path / "out", "--json").json()
    loading: list[str] = []  # what it says while the model is loaded
    prover, seen = reading_prover(base, base_digest(base), 8, loading.append), []
    ids = list(range(500, 532))
    compared(prover, tuned, [tmp_path / "out"], ids, 8, lambda done, total: seen.append((done, bool(loading))))
    assert [loaded for done, loaded in seen if done <= len(ids)] == [False] * 4
    assert all(loaded for done, loaded in seen if done > len(ids))


COMPARES = """
import resource, sys
from livery.commands import text_loss
real = text_loss._by_transformers
def limited(*given):
    taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + (1 << 18),) * 2)
    yield from real(*given)
text_loss._by_transformers = limited
from livery.cli import main
main()
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="a limit on memory is set by what Linux tells")
def test_too_little_memory_for_the_text_leaves_the_adapter(base: Path, tuned: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    way = ["--base", base, "--tuned", tuned, "--out", tmp_path / "out", "--text", tmp_path / "text.txt"]
    command = [sys.executable, "-c", COMPARES, "adapters", "extract", *map(str, way)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 1, done.stderr[-2000:]
    assert "there isn't enough memory to compare the models on the text" in " ".join(done.stderr.split()), done.stderr
    assert "Traceback" not in done.stderr
    assert "text" not in json.loads((tmp_path / "out" / "extraction.json").read_text())


def test_a_larger_vocabulary_is_compared_too(base: Path, tmp_path: Path, livery: Livery) -> None:
    model = load(base)
    model.resize_token_embeddings(model.config.vocab_size + 2)
    all_of_it(model)
    model.save_pretrained(tmp_path / "grown")
    (tmp_path / "text").write_text(TEXT)
    way = ["--base", base, "--tuned", tmp_path / "grown", "--out", tmp_path / "out", "--rank", "64"]
    found = livery("adapters", "extract", *way, "--text", tmp_path / "text", "--text-tokens", "40", "--json").json()
    assert found["added_tokens"] == 2
    assert found["text"]["tokens"] == 39
    assert found["text"]["adapter"]["kl"] < 1e-6 < found["text"]["base"]["kl"]


def test_people_see_what_was_done(base: Path, tuned: Path, tmp_path: Path, livery: Livery) -> None:
    done = livery("adapters", "extract", "--base", base, "--tuned", tuned, "--out", tmp_path / "out", "--energy", "0.5")
    assert done.code == 0, done.err
    assert "q_proj" in done.out
    assert "whole" in done.out
    assert "of ΔW" in done.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--rank", "none"), "give a whole number from 1 up, or auto"),
        (("--rank", "4", "--energy", "0.5"), "they go with --rank auto"),
        (("--energy", "0.5", "--error", "0.5"), "give one of them"),
        (("--error", "2"), "from 0 to 1"),
    ],
)
def test_arguments_that_make_no_sense(
    arguments: tuple[str, ...], words: str, base: Path, tuned: Path, tmp_path: Path, livery: Livery
) -> None:
    done = livery("adapters", "extract", "--base", base, "--tuned", tuned, "--out", tmp_path / "out", *arguments)
    assert done.code == 2
    assert words in " ".join(done.err.replace("│", " ").split())


def wrong(base: Path, tuned: Path, tmp_path: Path, livery: Livery, *arguments: object) -> str:
    done = livery("adapters", "extract", "--base", base, "--tuned", tuned, "--out", tmp_path / "out", *arguments)
    assert done.code == 1
    assert not (tmp_path / "out").exists()
    return done.err


@pytest.mark.parametrize("out", [".", "..", "/", "there/.."])
def test_the_folder_one_stands_in_is_no_output(
    out: str, base: Path, tuned: Path, tmp_path: Path, livery: Livery, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    done = livery("adapters", "extract", "--base", base, "--tuned", tuned, "--rank", "1", "--out", out)
    place = {"/": Path("/"), "..": tmp_path}.get(out, tmp_path / "here")
    assert (done.code, f"--out is {place}, and this command stands in there" in done.err) == (1, True), done
    assert [path.name for path in tmp_path.rglob("*")] == ["here"]


def test_models_that_dont_belong_together(base: Path, tuned: Path, tmp_path: Path, livery: Livery) -> None:
    copied = shutil.copytree(tuned, tmp_path / "copied")
    assert "name two models" in wrong(base, base, tmp_path, livery)
    edited(copied, "config.json", rms_norm_eps=0.1)
    assert "rms_norm_eps of config.json is 1e-06 in the base and 0.1" in wrong(base, copied, tmp_path, livery)
    edited(copied, "config.json", model_type="mistral", rms_norm_eps=1e-6)
    assert "of the type 'mistral'" in wrong(base, copied, tmp_path, livery)


def test_notes_in_a_configuration_are_told_and_refuse_nothing(
    base: Path, tuned: Path, tmp_path: Path, livery: Livery
) -> None:
    copied = shutil.copytree(tuned, tmp_path / "copied")
    edited(copied, "config.json", quantization_config={"quant_method": "fp8"})
    assert "quantization_config of config.json is None in the base" in wrong(base, copied, tmp_path, livery)
    edited(
        copied, "config.json", quantization_config=None, unsloth_version="2025.3.1", unsloth_fixed=True, use_cache=False
    )
    way = ["--base", base, "--tuned", copied, "--rank", "1"]
    warnings = livery("adapters", "extract", *way, "--out", tmp_path / "out", "--json").json()["warnings"]
    (told,) = [warning for warning in warnings if "unsloth" in warning]
    assert "LlamaConfig" in told
    assert "unsloth_version is None in the base and '2025.3.1' in the tuned model" in told
    assert "unsloth_fixed is None in the base and True" in told
    assert "use_cache" not in told


def test_nested_configurations_are_compared_field_by_field() -> None:
    """Those of a model that also sees: its text is one of two."""

    def config(**fields: Any) -> Gemma3Config:
        return Gemma3Config(text_config={"hidden_size": 32, **fields}, vision_config={"hidden_size": 32})

    excused = config(vocab_size=99, use_cache=False, dtype="bfloat16", eos_token_id=7, attention_dropout=0.1)
    assert _check_fields(config(), excused) == []
    (noted,) = _check_fields(config(), config(unsloth_fixed=True))
    assert "text_config.unsloth_fixed is None in the base and True" in noted
    for refused in ({"rms_norm_eps": 0.1}, {"sliding_window": 8}):
        with pytest.raises(AdapterRefused, match=rf"text_config\.{next(iter(refused))} of config\.json is"):
            _check_fields(config(), config(**refused))


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_where_answers_end_is_what_servers_go_by(
    file: str, base: Path, tuned: Path, tmp_path: Path, livery: Livery
) -> None:
    copied = shutil.copytree(tuned, tmp_path / "copied")
    edited(copied, file, eos_token_id=[2, 0])
    way = ["--base", base, "--tuned", copied, "--rank", "1"]
    warnings = livery("adapters", "extract", *way, "--out", tmp_path / "out", "--json").json()["warnings"]
    told = [warning for warning in warnings if "answers end" in warning]
    if file == "config.json":  # which the other one outranks
        assert told == []
    else:
        (words,) = told
        assert "end with <|im_end|> (2), <|endoftext|> (0) and the base's with <|im_end|> (2)" in words


def test_another_vocabulary(base: Path, tuned: Path, tmp_path: Path, livery: Livery) -> None:
    copied = shutil.copytree(tuned, tmp_path / "copied")
    tokenizer = json.loads((copied / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    (one, first), (other, second) = list(words.items())[500:502]
    words.update({one: second, other: first})
    (copied / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "another vocabulary" in wrong(base, copied, tmp_path, livery)


def test_base_and_tuned_are_swapped(base: Path, tuned: Path, tmp_path: Path, livery: Livery) -> None:
    carded = shutil.copytree(tuned, tmp_path / "tuned")
    (carded / "README.md").write_text(f"---\nbase_model: someone/{base.name}\nlicense: mit\n---\nText\n")
    assert "--base and --tuned are swapped" in wrong(carded, base, tmp_path, livery)
    done = livery("adapters", "extract", "--base", base, "--tuned", carded, "--out", tmp_path / "out", "--json").json()
    assert not [warning for warning in done["warnings"] if "swapped" in warning]
    (carded / "README.md").unlink()
    way = ["--base", carded, "--tuned", base, "--out", tmp_path / "other", "--rank", "1"]
    warnings = livery("adapters", "extract", *way, "--json").json()["warnings"]
    assert "neither tiny nor tuned says in its model card or config.json" in " ".join(warnings)


@pytest.mark.parametrize(("before", "after", "odd"), [(10.0, 10.5, True), (10.0, 9.5, False), (10.0, 10.0, False)])
def test_a_tuned_model_that_reads_worse_is_told(before: float, after: float, odd: bool) -> None:
    told = _doubts({"base": {"perplexity": before}, "tuned": {"perplexity": after}})
    assert ["perplexity 10.50 and 10.00): are --base and --tuned swapped" in " ".join(told)] == [odd]


@pytest.mark.parametrize("side", ["base", "tuned model"])
def test_vocabularies_that_cant_be_compared_are_told(
    side: str, base: Path, tuned: Path, tmp_path: Path, livery: Livery
) -> None:
    copied = shutil.copytree(base if side == "base" else tuned, tmp_path / "copied")
    (copied / "tokenizer.json").unlink()
    pair = (copied, tuned) if side == "base" else (base, copied)
    way = ["--base", pair[0], "--tuned", pair[1], "--out", tmp_path / "out", "--rank", "1"]
    warnings = livery("adapters", "extract", *way, "--json").json()["warnings"]
    assert f"not checked: the {side}'s {copied / 'tokenizer.json'} isn't there" in " ".join(warnings)
    if side == "tuned model":
        with (copied / "tokenizer.json").open("wb") as file:
            file.truncate((64 << 20) + 1)
        way = ["--base", base, "--tuned", copied, "--out", tmp_path / "large", "--rank", "1"]
        assert "is larger than 64 MiB" in " ".join(livery("adapters", "extract", *way, "--json").json()["warnings"])


def test_its_own_template_comes_along(base: Path, tuned: Path, tmp_path: Path, livery: Livery) -> None:
    copied = shutil.copytree(tuned, tmp_path / "copied")
    (copied / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    way = ["--base", base, "--tuned", copied, "--out", tmp_path / "out"]
    found = livery("adapters", "extract", *way, "--rank", "2", "--json").json()
    assert "chat_template.jinja" in found["beside"]
    assert (tmp_path / "out" / "chat_template.jinja").read_bytes() == (copied / "chat_template.jinja").read_bytes()


@pytest.mark.parametrize(("content", "words"), [(b"\xff\xfe", "is not UTF-8 text"), (b"", "has 0 tokens")])
def test_a_text_that_is_none(
    content: bytes, words: str, base: Path, tuned: Path, tmp_path: Path, livery: Livery
) -> None:
    (tmp_path / "text").write_bytes(content)
    assert words in wrong(base, tuned, tmp_path, livery, "--text", tmp_path / "text")
