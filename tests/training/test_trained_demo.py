"""The examples' runs on the demo base: what is served has changed in the trained direction, in PEFT's own numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import openai
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from cli.conftest import Livery
from livery.models import DEMO_MODEL, resolve_model
from livery.training.run_file import read_run
from server.running import SMALL, livery_serve

pytestmark = [pytest.mark.train, pytest.mark.filterwarnings("ignore")]

EXAMPLES = Path(__file__).parents[2] / "server" / "examples" / "train"
UNSEEN = ("Is the stove warm?", "What do you see from the tower?", "Who paints the door?")


def test_a_served_keeper_speaks_as_it_was_trained_to(tmp_path: Path, livery: Livery) -> None:
    found = livery("adapters", "train", EXAMPLES / "sft.yaml", "--out", tmp_path / "trained", "--json").json()
    measured = found["evaluation"]
    assert measured["after"]["loss"] < 0.7 * measured["before"]["loss"]
    assert measured["after"]["loss"] == pytest.approx(measured["peft"]["after"]["loss"], rel=1e-3)
    assert found["warnings"] == []
    shutil.copytree(tmp_path / "trained", tmp_path / "adapters" / "keeper")
    said: dict[str, list[str]] = {"keeper": [], DEMO_MODEL: []}
    with livery_serve(DEMO_MODEL, tmp_path / "adapters", tmp_path, *SMALL) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=120)
        for name, answers in said.items():
            for question in UNSEEN:
                answer = client.chat.completions.create(
                    model=name,
                    messages=[{"role": "user", "content": question}],
                    max_tokens=24,
                    temperature=0,
                    logprobs=True,
                    extra_body={"return_token_ids": True},
                )
                answers.append(str(answer.choices[0].message.content))
            choice = answer.choices[0].model_dump()
            if name == "keeper":
                last = choice
    assert all(answer.startswith("Aye, ") for answer in said["keeper"]), said
    assert not any(answer.startswith("Aye") for answer in said[DEMO_MODEL]), said
    base = resolve_model(DEMO_MODEL).path
    ids = AutoTokenizer.from_pretrained(base).apply_chat_template(
        [{"role": "user", "content": UNSEEN[-1]}], add_generation_prompt=True, return_dict=False
    )
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    judge = PeftModel.from_pretrained(model, tmp_path / "trained").eval()
    tokens = ids + last["token_ids"]
    with torch.no_grad():
        logprobs = judge(torch.tensor([tokens]), use_cache=False).logits[0].log_softmax(-1)
    expected = [float(logprobs[at - 1, tokens[at]]) for at in range(len(ids), len(tokens))]
    told = [token["logprob"] for token in last["logprobs"]["content"]]
    assert told == pytest.approx(expected[: len(told)], abs=2e-3)


def test_preferences_move_to_the_better_answers(tmp_path: Path, livery: Livery) -> None:
    """Half of the example's steps, which show the way."""
    shutil.copy(EXAMPLES / "preferences.jsonl", tmp_path)
    (tmp_path / "dpo.yaml").write_text((EXAMPLES / "dpo.yaml").read_text().replace("steps: 16", "steps: 8"))
    found = livery("adapters", "train", tmp_path / "dpo.yaml", "--out", tmp_path / "trained", "--json").json()
    assert found["steps"] == 8
    before, after = found["evaluation"]["before"], found["evaluation"]["after"]
    assert before["margin"] == 0.0 < after["margin"]
    assert after["preferred"] > before["preferred"]
    assert after["loss"] == pytest.approx(found["evaluation"]["peft"]["after"]["loss"], rel=0.02, abs=1e-3)


def test_the_examples_in_the_readme_are_all_there() -> None:
    kinds = {file.stem: read_run(file).kind for file in EXAMPLES.glob("*.yaml")}
    assert set(kinds.values()) == {"sft", "dpo", "cpt", "raft"}
    assert all(f"[`{name}.yaml`]({name}.yaml)" in (EXAMPLES / "README.md").read_text() for name in kinds)
    lines = (EXAMPLES / "raft.jsonl").read_text().splitlines()
    assert {tuple(sorted(json.loads(line))) for line in lines} == {("answer", "documents", "golden", "question")}
