"""lm-eval's scores by this server's API, and by its own `hf` backend with PEFT: the same for every adapter.

The task is each adapter's held-out examples: once as a choice between four answers, by their likelihoods, and once as
an answer to be given word by word.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from served import ADAPTER_FOLDER, ADAPTERS, BASE, MODEL_FOLDER, V1

sys.path.insert(0, ADAPTER_FOLDER)
import examples

TASKS = Path(__file__).parent / "tasks"
ITEMS = 12
LIKELIHOOD_TOLERANCE = 0.02  # of a whole answer's log likelihood, which is a sum of rounded floats
SERVED = f"model={{model}},base_url={V1}/{{route}},num_concurrent=1,max_retries=1,"
SERVED += f"tokenizer={MODEL_FOLDER},tokenizer_backend=huggingface"
LOCAL = f"pretrained={MODEL_FOLDER},dtype=float32,device=cpu"
HELD_OUT = {
    "json": lambda: examples.from_chat(0, examples.as_json),
    "pirate": lambda: examples.from_chat(0, examples.pirate),
    "portuguese": lambda: examples.portuguese(0),
    "sentiment": lambda: examples.sentiment(0),
    "sql": lambda: examples.sql(0),
}


@dataclass(frozen=True)
class Scores:
    """A backend's score in each task, and what it was made of, item by item."""

    score: float
    parts: list[Any]


@pytest.fixture(scope="module", params=[BASE, *ADAPTERS])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A model's name; its task's data lies in the working directory."""
    folder = tmp_path_factory.mktemp("task")
    before = Path.cwd()
    os.chdir(folder)
    write_items(folder / "items.jsonl", "sentiment" if request.param == BASE else request.param)
    yield request.param
    os.chdir(before)


def write_items(file: Path, adapter: str) -> None:
    """A question, its answer, and three answers to other questions."""
    held_out = HELD_OUT[adapter]().held_out
    answers = list(dict.fromkeys(example.answer for example in held_out))
    with file.open("w") as lines:
        for at, example in enumerate(held_out[:ITEMS]):
            others = [answer for answer in answers[at:] + answers[:at] if answer != example.answer][:3]
            item = {"prompt": example.prompt, "answer": example.answer, "choices": [example.answer, *others]}
            lines.write(json.dumps(item) + "\n")


def evaluate(backend: str, arguments: str, task: str, metric: str, chat: bool) -> Scores:
    found = simple_evaluate(
        model=backend,
        model_args=arguments,
        tasks=[task],
        task_manager=TaskManager(include_path=str(TASKS), include_defaults=False),
        apply_chat_template=chat,
        batch_size=1,
        bootstrap_iters=0,
    )
    parts = [sample["resps"] for sample in sorted(found["samples"][task], key=lambda sample: sample["doc_id"])]
    return Scores(found["results"][task][f"{metric},none"], parts)


def with_peft(model: str) -> str:
    return LOCAL if model == BASE else f"{LOCAL},peft={ADAPTER_FOLDER}/{model}"


def test_likelihoods(model: str, record_property: Any) -> None:
    """By completions, whose logprobs of the prompt are given back."""
    served = evaluate("local-completions", SERVED.format(model=model, route="completions"), "choose", "acc", True)
    local = evaluate("hf", with_peft(model), "choose", "acc", True)
    pairs = [(a, b) for one, other in zip(served.parts, local.parts, strict=True) for a, b in likelihoods(one, other)]
    worst = max(abs(a - b) for a, b in pairs)
    print(
        f"{model}: accuracy {served.score:.3f} served, {local.score:.3f} with PEFT; likelihoods differ by {worst:.5f}"
    )
    told = {"model": model, "task": "the likeliest of four answers", "served": served.score, "hf and PEFT": local.score}
    record(record_property, told | {"item by item": f"log likelihoods differ by at most {worst:.4f}"})
    assert worst < LIKELIHOOD_TOLERANCE
    assert served.score == pytest.approx(local.score, abs=1.01 / ITEMS)


def record(record_property: Any, told: dict[str, Any]) -> None:
    for name, value in told.items():
        record_property(name, f"{value:.3f}" if isinstance(value, float) else value)


def likelihoods(one: Any, other: Any) -> Iterator[tuple[float, float]]:
    for mine, theirs in zip(one, other, strict=True):
        yield float(mine[0][0]), float(theirs[0][0])


def test_answers(model: str, record_property: Any) -> None:
    """By chat completions, greedy."""
    route = SERVED.format(model=model, route="chat/completions")
    served = evaluate("local-chat-completions", route, "answer", "exact_match", True)
    local = evaluate("hf", with_peft(model), "answer", "exact_match", True)
    same = sum(one == other for one, other in zip(served.parts, local.parts, strict=True))
    told = {"model": model, "task": "the answer, word by word", "served": served.score, "hf and PEFT": local.score}
    record(record_property, told | {"item by item": f"{same} of {ITEMS} answers the same"})
    assert same >= ITEMS - 1
    assert served.score == pytest.approx(local.score, abs=1.01 / ITEMS)
