"""`livery adapters extract` from two models on disk to an adapter that a server serves."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from transformers import AutoModelForCausalLM

from adapters.tuned_made import all_of_it, load
from cli.conftest import Livery
from livery_adapters.tensor_file import FILE_NAMES
from server.running import TOKENIZER_FILES, livery_serve, tiny_model

TEXT = "The lamp was lit at dusk and the keeper wrote it down. " * 8


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def tuned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(base, tmp_path_factory.mktemp("models") / "tiny-tuned")


def save(base: Path, folder: Path) -> Path:
    """A fine-tune of every parameter, with the base's tokenizer."""
    model = copy.deepcopy(load(base))
    all_of_it(model)
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
    assert (again.code, "something at 'out' already" in again.err) == (1, True)
    (tmp_path / "adapters").mkdir()
    with livery_serve(base, tmp_path / "adapters", tmp_path) as server:
        assert livery("adapters", "add", "mine", out, "--url", server.url, "--json").json()["proven"] is True
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=60)
        prompt = [500, 600, 700, 800]
        answer = client.completions.create(
            model="mine", prompt=prompt, max_tokens=6, temperature=0, extra_body={"return_token_ids": True}
        )
    ids = torch.tensor([prompt])
    model = AutoModelForCausalLM.from_pretrained(tuned, dtype=torch.float32)
    expected = model.generate(ids, max_new_tokens=6, do_sample=False)[0, 4:].tolist()
    assert answer.choices[0].model_extra["token_ids"] == expected  # type: ignore[index]


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


def test_models_that_dont_belong_together(base: Path, tuned: Path, tmp_path: Path, livery: Livery) -> None:
    copied = shutil.copytree(tuned, tmp_path / "copied")
    assert "name two models" in wrong(base, base, tmp_path, livery)
    edited(copied, "config.json", rms_norm_eps=0.1)
    assert "rms_norm_eps of config.json is 1e-06 in the base and 0.1" in wrong(base, copied, tmp_path, livery)
    edited(copied, "config.json", model_type="mistral", rms_norm_eps=1e-6)
    assert "of the type 'mistral'" in wrong(base, copied, tmp_path, livery)


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
    assert livery("adapters", "extract", "--base", base, "--tuned", carded, "--out", tmp_path / "out").code == 0


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
