"""The example of retrieval: it finds the passages that hold the answers, and a server reads their beginning once."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import openai
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from server.running import SMALL, RunningServer, livery_serve, tiny_model
from ways.company import ASKED, FERRIES, KINDS, chat
from ways.measure import COSTED, cpu_seconds, measure_cost, measure_quality

SCRIPT = Path(__file__).parents[2] / "server" / "examples" / "rag" / "ask.py"


@pytest.fixture(scope="module")
def rag() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rag_ask", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look for it there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("rag")
    (folder / "adapters").mkdir()
    with livery_serve(tiny_model(folder / "model"), folder / "adapters", folder, *SMALL) as server:
        yield server


@pytest.fixture(scope="module")
def client(served: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none")


def test_the_passage_with_the_answer_is_found_and_cited(rag: ModuleType) -> None:
    index = rag.Index(rag.read_passages())
    for ferry in FERRIES:
        for kind in KINDS:
            for question in (*kind.trained, kind.asked):
                given = index.best(question.format(ferry.name))
                assert ferry.name in [passage.title for passage in given]
                assert [passage.number for passage in given] == sorted(passage.number for passage in given)
                told = f"{ferry.name}: {ferry.answer(kind)}"
                assert [passage.title for passage in index.cited(told, given)] == [ferry.name]
    assert len(ASKED) == len(FERRIES) * len(KINDS)


def test_what_shares_no_word_with_a_question_is_not_given(rag: ModuleType) -> None:
    index = rag.Index(rag.read_passages())
    assert index.best("zzz qqq") == []
    assert [passage.title for passage in index.best("Where are bicycles put?", top=1)] == ["Bicycles"]
    assert index.cited("zzz", index.best("dogs", top=1)) == []


def test_a_beginning_that_was_read_before_comes_from_the_cache(rag: ModuleType, client: openai.OpenAI) -> None:
    pairs = rag.effect(client, "model", rag.Index(rag.read_passages()), top=1, rounds=1)
    assert len(pairs) == 3
    for new, read in pairs:
        assert new.cached_tokens == 0
        assert (
            new.prompt_tokens - 16 <= read.cached_tokens + 1 <= read.prompt_tokens
        )  # whole blocks, and one is computed
        assert read.text == new.text


def test_the_script_answers_with_passages(served: RunningServer) -> None:
    options = ("--url", f"{served.url}/v1", "--model", "model", "--top", "1")
    asked = (sys.executable, SCRIPT, "When does the Petrel leave?", *options)
    done = subprocess.run(asked, capture_output=True, text=True, timeout=120, check=True)
    assert "[1] Petrel: The Petrel sails to Inver Sound" in done.stdout
    assert "prompt tokens" in done.stdout
    effect = subprocess.run((sys.executable, SCRIPT, "--effect", *options), capture_output=True, text=True, timeout=120)
    assert "first token, new beginning over cached" in effect.stdout
    assert "9 pairs" in effect.stdout


def test_perplexities_are_those_of_transformers(served: RunningServer, client: openai.OpenAI) -> None:
    """What the ways are compared by (tests/ways/measure.py)."""
    folder = served.log.parent / "model"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked, line = chat("Who is the Petrel's captain?"), "With Marta Quill the Petrel goes out."
    prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    before = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    found = measure_quality(client, "model", lambda _: asked, [line])
    expected = []
    for text, given in ((line, 1), *((prompt + one.answer, before) for one in ASKED)):
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            scores = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        expected.append(scores[given - 1 :])
    assert found.line_perplexity == pytest.approx(float((-expected[0].mean()).exp()), rel=1e-3)
    assert found.answer_perplexity == pytest.approx(float((-torch.cat(expected[1:]).mean()).exp()), rel=1e-3)
    assert len(found.answers) == len(ASKED)


def test_costs_are_of_all_processes_of_the_server(served: RunningServer, client: openai.OpenAI) -> None:
    before = cpu_seconds(served.pid)
    costs = measure_cost(client, served.pid, {"base": ("model", chat), "again": ("model", chat)})
    used = cpu_seconds(served.pid) - before
    assert used > 0
    counted = sum(cost.cpu_ms for cost in costs.values()) / 1000 * len(COSTED)
    assert 0 < counted <= used
    assert costs["base"].prompt_tokens == costs["again"].prompt_tokens > 0
    assert costs["base"].output_tokens <= 24
