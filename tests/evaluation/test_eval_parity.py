"""An evaluation of several adapters at once says what PEFT in a plain loop says of each alone."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest
from peft import LoraConfig

from engine.families import LLAMA_LINEAR
from engine.oracle import save_adapter
from evaluation.conftest import ADAPTERS
from evaluation.plain_loop import PlainLoop
from livery.commands.eval_here import evaluate_directories
from livery.evaluation.pieces import Windows
from livery.evaluation.report import NATS, Report
from livery.evaluation.scorer import BASE_LABEL

WINDOW = 48
TEXT = "".join(f"At {hour} o'clock the keeper wrote: wind {hour * 3}, sea grey — né, 日本.\n" for hour in range(40))
WORDS = (
    "lamp",
    "sea",
    "a wind",
    "grey stones",
    "nothing at all",
    "birds",
    "the tide",
    "rope",
    "dusk",
    "harbour lights",
)
CHOICES: list[dict[str, Any]] = [
    {
        "prompt": f"What came after {word} on day {day}?",
        "choices": [WORDS[(day + step) % len(WORDS)] for step in (1, 4, 7)],
        "answer": day % 3,
    }
    for day, word in enumerate(WORDS * 4)
] + [
    {
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is it <|im_end|>?"}],
        "choices": ["yes", "no"],
        "answer": "no",
    }
]
ASKED = [f"Say {word}." for word in WORDS[:6]]
ANSWERED = 6  # tokens
TEACHER = "two"  # whose answers are the right ones


@pytest.fixture(scope="module")
def files(answers: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("files")
    (root / "log.txt").write_text(TEXT)
    asked = [
        {"prompt": prompt, "answer": answer, "max_tokens": ANSWERED}
        for prompt, answer in zip(ASKED, answers[TEACHER], strict=True)
    ]
    for name, items in (("choose", CHOICES), ("answer", asked)):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    return root


@pytest.fixture(scope="module")
def loops(tiny: Path, folder: Path) -> dict[str, PlainLoop]:
    return {BASE_LABEL: PlainLoop(tiny), **{name: PlainLoop(tiny, folder / name) for name in ADAPTERS}}


@pytest.fixture(scope="module")
def answers(loops: dict[str, PlainLoop]) -> dict[str, list[str]]:
    """By PEFT, greedily."""
    prompts = [[{"role": "user", "content": prompt}] for prompt in ASKED]
    return {label: [loop.answer(loop.chat(one), ANSWERED).strip() for one in prompts] for label, loop in loops.items()}


@pytest.fixture(scope="module")
def report(tiny: Path, folder: Path, files: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Of good adapters, one that computes no numbers, and one that isn't there."""
    config = LoraConfig(r=2, target_modules=LLAMA_LINEAR)
    poison = save_adapter(tiny, tmp_path_factory.mktemp("poison") / "poison", 9, config, std=1e15)
    adapters = {**{name: folder / name for name in ADAPTERS}, "poison": poison, "gone": folder / "gone"}
    return evaluate_directories(
        str(tiny),
        adapters,
        texts=[files / "log.txt"],
        tasks=[files / "choose.jsonl", files / "answer.jsonl"],
        windows=Windows(WINDOW),
    )


def test_perplexity_is_that_of_peft(report: Report, loops: dict[str, PlainLoop]) -> None:
    subject = report.subject("log.txt")
    ids = loops[BASE_LABEL].encode(TEXT)
    parts = [ids[at : at + WINDOW] for at in range(0, len(ids), WINDOW)]
    assert (subject.pieces, subject.tokens) == (len(parts), sum(len(part) - 1 for part in parts))
    assert subject.nbytes < len(TEXT.encode())
    nats = {}
    for label, loop in loops.items():
        measures = subject.row(label).measures
        nats[label] = math.fsum(loop.losses(TEXT, WINDOW))
        assert measures[NATS].value == pytest.approx(nats[label] / subject.tokens, rel=2e-5)
        assert measures["perplexity"].value == pytest.approx(math.exp(nats[label] / subject.tokens), rel=2e-4)
        assert measures["bits_per_byte"].value == pytest.approx(nats[label] / subject.nbytes / math.log(2), rel=2e-5)
        interval = measures["perplexity"].interval
        assert interval is not None and interval[0] < measures["perplexity"].value < interval[1]
    for label in ADAPTERS:
        (versus,) = subject.row(label).versus
        assert (versus.than, versus.metric) == (BASE_LABEL, NATS)
        assert versus.difference == pytest.approx((nats[label] - nats[BASE_LABEL]) / subject.tokens, rel=1e-3)
        assert abs(versus.difference) > 0.01, "or a mix-up of adapters would not show"


def test_accuracy_is_that_of_peft(report: Report, loops: dict[str, PlainLoop]) -> None:
    subject = report.subject("choose.jsonl")
    seen = set()
    for label, loop in loops.items():
        plain, by_length = [], []
        for item in CHOICES:
            messages = item.get("messages") or [{"role": "user", "content": item["prompt"]}]
            choices = item["choices"]
            answer = item["answer"] if isinstance(item["answer"], int) else choices.index(item["answer"])
            sums = loop.likeliest(loop.chat(messages), [loop.encode(choice) for choice in choices])
            plain.append(is_right(sums, answer))
            by_length.append(is_right([one / len(text) for one, text in zip(sums, choices, strict=True)], answer))
        measures = subject.row(label).measures
        for metric, found in (("accuracy", plain), ("accuracy_norm", by_length)):
            undecided = found.count(None)
            assert undecided <= 2, "or nothing is compared"
            right = len(CHOICES) * measures[metric].value
            assert right == pytest.approx(round(right)) and found.count(True) <= round(right)
            assert round(right) <= found.count(True) + undecided
        seen.add((plain.count(True), by_length.count(True)))
    assert len(seen) > 1, "adapters that all say the same prove nothing"


def is_right(sums: list[float], answer: int) -> bool | None:
    """None where PEFT itself is undecided: two choices are as likely, but for rounding."""
    second, first = sorted(sums)[-2:]
    if first - second < 1e-4 * abs(first):
        return None
    return sums.index(first) == answer


def test_answers_are_those_of_peft(report: Report, loops: dict[str, PlainLoop], answers: dict[str, list[str]]) -> None:
    """What is right is what PEFT answers under one adapter: nobody else says all of it."""
    subject = report.subject("answer.jsonl")
    assert len(set(answers[TEACHER])) > 1, "one answer to all questions proves little"
    for label in loops:
        right = [one == wanted for one, wanted in zip(answers[label], answers[TEACHER], strict=True)]
        assert subject.row(label).measures["exact_match"].value == pytest.approx(sum(right) / len(right))
    assert {label for label in loops if subject.row(label).measures["exact_match"].value == 1} == {TEACHER}


def test_who_fails_is_told_and_the_others_go_on(report: Report) -> None:
    assert "not a number" in report.variant("poison").failed
    assert "gone" in report.variant("gone").failed or "No such file" in report.variant("gone").failed
    for subject in report.subjects:
        assert subject.row("poison").measures == subject.row("gone").measures == {}
        assert all(subject.row(label).measures for label in (BASE_LABEL, *ADAPTERS))


def test_a_report_is_read_back(report: Report) -> None:
    assert msgspec.json.decode(report.to_json(), type=Report) == report
