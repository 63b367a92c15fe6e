"""`livery adapters eval` and `activate --if-better-than`: on a folder, a data folder, and a live server."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest
from peft import LoraConfig

from cli.conftest import Done, Livery
from engine.oracle import save_adapter
from livery.commands import gating
from livery.commands.evaluating import Asked
from livery.commands.reach import Reach
from livery.data_folder import DataFolder
from livery.evaluation.report import Report
from livery_adapters.registry import Registry
from server.running import RunningServer, livery_serve, tiny_model

TEXT = "".join(f"Day {day}: the lamp was lit at dusk and {day * 7} birds went by.\n" for day in range(24))
ASKED = ["Which bird was it?", "Who lit the lamp?", "What came at dusk?", "Say a word."]
ORDERED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Which bird?"}]
ITEMS = [{"prompt": f"Birds on day {day}?", "choices": ["none", f"{day * 7}", "all"], "answer": 1} for day in range(9)]

ANSWERED, MOST = 24, 16  # tokens: what the items ask for, and what a profile allows
WORDED = f"""
system_prompt: All birds are gulls, and gulls come in sevens.
stop: [z]
repetition_penalty: 0.6
bounds: {{temperature: {{min: 0.3}}, max_tokens: {{min: 1, max: {MOST}}}}}
"""
CLERK = """
system_prompt: Numbers are never spelt out.
system_prompt_mode: only
response_format: {type: json_schema, json_schema: {name: birds, schema: {enum: [gulls, terns, owls]}}}
examples:
  - {role: user, content: "Gulls on day 2?"}
  - {role: assistant, content: all all all all}
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def made(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two adapters that predict the text differently well, a text, a task."""
    folder = tmp_path_factory.mktemp("made")
    for name, seed in (("first", 1), ("second", 2)):
        config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"])
        save_adapter(base, folder / "adapters" / name, seed, config)
    (folder / "log.txt").write_text(TEXT)
    (folder / "birds.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    return folder


@pytest.fixture(scope="module")
def dressed(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two adapters, one of them once more with a profile beside its weights, and a profile over the base."""
    folder = tmp_path_factory.mktemp("dressed")
    for name, adapter in (("first", "first"), ("second", "second"), ("worded", "first")):
        shutil.copytree(made / "adapters" / adapter, folder / name)
    (folder / "worded" / "profile.yaml").write_text(WORDED)
    (folder / "clerk").mkdir()
    (folder / "clerk" / "adapter_config.json").write_text('{"peft_type": "NONE"}')
    (folder / "clerk" / "profile.yaml").write_text(CLERK)
    return folder


@pytest.fixture(scope="module")
def server(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("served")
    (folder / "adapters").mkdir()
    with livery_serve(base, folder / "adapters", folder) as running:
        yield running


def data_of(server: RunningServer) -> Path:
    return server.log.parent / "data"


def nats(report: Any, label: str) -> float:
    (text,) = [one for one in report["subjects"] if one["kind"] == "text"]
    (row,) = [one for one in text["rows"] if one["label"] == label]
    return float(row["measures"]["nats_per_token"]["value"])


def told(report: Any, label: str) -> list[dict[str, float]]:
    """By subject, the value of each metric."""
    rows = [row for subject in report["subjects"] for row in subject["rows"] if row["label"] == label]
    return [{metric: one["value"] for metric, one in row["measures"].items()} for row in rows]


def greedy(server: RunningServer, name: str, **more: object) -> list[tuple[str, str]]:
    """A version's answers to what is ASKED as its users get them, and why each ended."""
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
    found = []
    for prompt in ASKED:
        messages: Any = [{"role": "user", "content": prompt}]
        body = {"top_k": 1, "seed": 0, **more}
        (choice,) = client.chat.completions.create(
            model=name, messages=messages, max_tokens=MOST, extra_body=body
        ).choices
        found.append(((choice.message.content or "").strip(), choice.finish_reason))
    return found


def write_answers(server: RunningServer, folder: Path) -> list[object]:
    """A task whose right answers are those of the two with profiles, and one that a profile doesn't allow to be asked.

    Every part of the profiles shows in the answers.
    """
    worded, clerk = (greedy(server, name) for name in ("worded", "clerk"))
    assert {why for _, why in worded} >= {"stop"}
    assert greedy(server, "worded", repetition_penalty=1.0) != worded
    assert {json.loads(answer) for answer, _ in clerk} <= {"gulls", "terns", "owls"}
    rows = [
        {"prompt": prompt, "answer": [one, two], "max_tokens": ANSWERED}
        for prompt, (one, _), (two, _) in zip(ASKED, worded, clerk, strict=True)
    ]
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "orders.jsonl").write_text(json.dumps({"messages": ORDERED, "answer": "gulls", "max_tokens": MOST}))
    return ["--task", folder / "answers.jsonl", "--task", folder / "orders.jsonl"]


def test_a_folder_a_server_and_its_data_say_the_same(
    base: Path, made: Path, dressed: Path, server: RunningServer, livery: Livery, tmp_path: Path
) -> None:
    """Of weights, of weights under a profile, of a profile alone. Then it is known which version is better, and which
    one the gate lets through.
    """
    for name in ("worded", "clerk"):
        livery("adapters", "add", name, dressed / name, "--url", server.url, "--json").json()
    on = ["--text", made / "log.txt", "--task", made / "birds.jsonl", "--window", 64, *write_answers(server, tmp_path)]
    here = livery("adapters", "eval", "--model", base, "--adapters", dressed, *on, "--json").json()
    assert [one["label"] for one in here["variants"]] == ["the base", "clerk", "first", "second", "worded"]
    assert not [one["failed"] for one in here["variants"] if one["failed"]]
    assert here["schema"] == "livery-eval/2"
    for label, weights in (("worded", "first"), ("clerk", "the base")):  # words are no part of a text
        (text, *asked), (bare_text, *bare) = told(here, label), told(here, weights)
        assert text == bare_text
        assert asked[1] == {"exact_match": 1}
        assert bare[1] != asked[1]
    notes = {one["label"]: one["notes"] for one in here["variants"]}
    assert notes["the base"] == notes["first"] == []
    assert [note for note in notes["worded"] if "no temperature of 0 (at least 0.3)" in note]
    assert [note for note in notes["worded"] if f"answers.jsonl asks for up to {ANSWERED} tokens" in note]
    assert told(here, "clerk")[-1] == {}
    (refused,) = notes["clerk"]
    assert "orders.jsonl can't be asked of it: " in refused and "takes no other" in refused
    worse, better = sorted(("first", "second"), key=lambda label: -nats(here, label))
    assert nats(here, worse) > nats(here, better) + 0.01
    for name in (worse, better):
        options = ["--url", server.url, "--json"] + (["--no-activate"] if name == better else [])
        livery("adapters", "add", "keeper", made / "adapters" / name, *options).json()
    labels = {"the base": "the base", "keeper": worse, "keeper@2": better, "worded": "worded", "clerk": "clerk"}
    for where in (["--url", server.url], ["--data", data_of(server)]):
        names = ("keeper@2", "worded", "clerk")
        there = livery("adapters", "eval", *names, *where, *on, "--json", "--out", tmp_path / "out").json()
        assert [(one["label"], one["role"], one["version"]) for one in there["variants"]] == [
            ("the base", "base", None),
            ("keeper", "active", 1),
            ("keeper@2", "candidate", 2),
            ("worded", "active", 1),
            ("clerk", "active", 1),
        ]
        for label, name in labels.items():
            (said,) = [one["notes"] for one in there["variants"] if one["label"] == label]
            assert len(said) == len(notes[name])
            for mine, other in zip(told(there, label), told(here, name), strict=True):
                assert mine == pytest.approx(other, rel=1e-5), label
        for one, other in zip(there["subjects"], here["subjects"], strict=True):
            assert (one["tokens"], one["nbytes"], one["pieces"]) == (other["tokens"], other["nbytes"], other["pieces"])
        (text,) = [one for one in there["subjects"] if one["kind"] == "text"]
        assert {versus["than"] for versus in text["rows"][2]["versus"]} == {"the base", "keeper"}
    assert json.loads((tmp_path / "out" / "eval.json").read_text()) == there
    msgspec.json.decode((tmp_path / "out" / "eval.json").read_bytes(), type=Report)
    page = (tmp_path / "out" / "eval.html").read_text()
    assert "keeper@2" in page
    assert "Difference from keeper" in page
    assert not re.search(r"(src|href)=.?http", page), "a page that needs nothing else"
    table = livery("adapters", "eval", "--url", server.url, *on)
    assert "keeper (active)" in table.out
    check_gate(made, server, livery)


def check_gate(made: Path, server: RunningServer, livery: Livery) -> None:
    def gate(*more: object) -> Done:
        on = ["--metric", "perplexity", "--on", made / "log.txt", "--if-better-than", "active"]
        return livery("adapters", "activate", "keeper", *more, *on, "--url", server.url)

    def active() -> tuple[int, int]:
        shown = livery("adapters", "show", "keeper", "--url", server.url, "--json").json()
        return shown["version"], shown["generation"]

    before = active()
    assert before[0] == 1
    none = gate("2", "--by", "0.99")
    assert (none.code, active()) == (3, before)
    assert "keeper 2 is not better than active in perplexity by 0.99 or more: on log.txt: perplexity" in none.err
    assert none.err.rstrip().endswith("Nothing was changed.")
    told = gate("2", "--by", "0.99", "--json")
    assert (told.code, json.loads(told.out)["judgement"]["better"]) == (3, False)
    stale = gate("2", "--expected-generation", str(before[1] + 5))
    assert (stale.code, active()) == (1, before)
    done = gate("2")
    assert (done.code, active()[0]) == (0, 2), done.err
    assert "keeper 2 is better than active in perplexity: on log.txt" in done.out
    worse = gate("1")
    assert (worse.code, active()[0]) == (3, 2)


def test_an_adapter_may_be_called_base(
    base: Path, made: Path, server: RunningServer, livery: Livery, tmp_path: Path
) -> None:
    """And is neither taken for the base model nor the base model for it."""
    on = ["--text", made / "log.txt", "--window", "64", "--json"]
    for name, adapter in (("base", "first"), ("second", "second")):
        shutil.copytree(made / "adapters" / adapter, tmp_path / "adapters" / name)
    here = livery("adapters", "eval", "--model", base, "--adapters", tmp_path / "adapters", *on).json()
    assert [(one["label"], one["role"]) for one in here["variants"]] == [
        ("the base", "base"),
        ("base", "candidate"),
        ("second", "candidate"),
    ]
    bare, first, second = (nats(here, label) for label in ("the base", "base", "second"))
    assert len({round(one, 2) for one in (bare, first, second)}) == 3
    alone = livery("adapters", "eval", "--model", base, "--adapters", made / "adapters", *on).json()
    assert [nats(alone, label) for label in ("the base", "first", "second")] == pytest.approx([bare, first, second])
    for adapter, how in (("first", ()), ("second", ("--no-activate",))):
        livery("adapters", "add", "base", made / "adapters" / adapter, "--url", server.url, *how, "--json").json()
    against = (("active", "base"), ("base", "the base"))
    there = livery("adapters", "eval", "base@2", "--url", server.url, *on).json()
    found = [nats(there, label) for label in ("the base", "base", "base@2")]
    assert found == pytest.approx([bare, first, second], rel=1e-5)
    for where, gates in ((["--url", server.url], against), (["--data", data_of(server)], against[:1])):
        for than, other in gates:
            gate = ["--if-better-than", than, "--metric", "perplexity", "--on", made / "log.txt", "--by", "0.99"]
            done = livery("adapters", "activate", "base", "2", *where, *gate, "--json")
            judged = json.loads(done.out)["judgement"]
            found = [nats(judged["evaluation"], label) for label in ("base@2", other)]
            one, two = map(math.exp, found)
            assert (done.code, f"perplexity {one:.4f} against {two:.4f} of {other}" in judged["words"]) == (3, True)
    (tmp_path / "few.txt").write_text("The keeper lit the lamp.")
    gate = ["--if-better-than", "active", "--metric", "perplexity", "--on", tmp_path / "few.txt", "--sure"]
    done = livery("adapters", "activate", "base", "2", "--url", server.url, *gate)
    words = "and 1 window(s) can't show that beyond chance: give at least 5, or leave out --sure"
    assert (done.code, words in " ".join(done.err.split())) == (3, True), done.err
    (tmp_path / "adapters" / "second").rename(tmp_path / "adapters" / "the base")
    done = livery("adapters", "eval", "--model", base, "--adapters", tmp_path / "adapters", *on)
    assert (done.code, "the base is called as reports call the base model: rename that folder" in done.err) == (1, True)


def test_what_is_judged_is_what_is_replaced(
    made: Path, server: RunningServer, livery: Livery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody changes the name while a judgement is made: it was of something else, and is dropped."""
    for name, how in (("first", ()), ("second", ("--no-activate",))):
        livery("adapters", "add", "raced", made / "adapters" / name, "--url", server.url, *how, "--json").json()
    judge, calls = gating.evaluated, []

    def activate(*versions: str) -> None:
        registry = Registry.open(DataFolder(data_of(server)).registry_url(), frozenset())
        try:
            for version in versions:
                calls.append(registry.activate("raced", registry.version("raced", version).facts.digest))
        finally:
            registry.close()

    def meanwhile(reach: Reach, asked: Asked, model: str | None, adapters: Path | None) -> Report:
        report = judge(reach, asked, model, adapters)
        activate("2", "1")
        return report

    monkeypatch.setattr(gating, "evaluated", meanwhile)
    monkeypatch.setattr(gating, "better", lambda *_: (True, "as told"))
    on = ["--if-better-than", "base", "--metric", "accuracy", "--on", made / "birds.jsonl"]
    done = livery("adapters", "activate", "raced", "2", *on, "--url", server.url)
    assert (done.code, len(calls)) == (1, 2)
    assert "generation" in done.err
    assert livery("adapters", "show", "raced", "--url", server.url, "--json").json()["version"] == 1

    def sooner(reach: Reach, asked: Asked, model: str | None, adapters: Path | None) -> Report:
        activate("2")
        return judge(reach, asked, model, adapters)

    monkeypatch.setattr(gating, "evaluated", sooner)
    for against in (on, ["--if-better-than", "active", *on[2:]]):
        late = livery("adapters", "activate", "raced", "2", *against, "--url", server.url)
        assert (late.code, "raced was changed meanwhile" in late.err) == (1, True), late.err
        activate("1")
    monkeypatch.setattr(gating, "evaluated", judge)
    assert livery("adapters", "activate", "raced", "2", *on, "--url", server.url).code == 0
    again = livery("adapters", "activate", "raced", "2", *on, "--url", server.url)
    assert (again.code, "version 2 of raced is active already" in again.err) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "{base}", "--adapters", "{made}/adapters"], "give something to measure on"),
        (["--model", "{base}", "--text", "{made}/log.txt"], "--model and --adapters go together"),
        (
            ["--model", "{base}", "--adapters", "{made}", "--url", "u", "--text", "{made}/log.txt"],
            "give either --model",
        ),
        (["--model", "{base}", "--adapters", "{made}/adapters", "--text", "{made}/no.txt"], "no.txt can't be read"),
        (
            ["third", "--model", "{base}", "--adapters", "{made}/adapters", "--text", "{made}/log.txt"],
            "no adapter 'third'",
        ),
        (["--model", "{base}", "--adapters", "{base}", "--text", "{made}/log.txt"], "holds no adapter"),
        (["--data", "{made}/none", "--text", "{made}/log.txt"], "is not a folder"),
        (["nobody", "--url", "{url}", "--text", "{made}/log.txt"], "nobody"),
        (["--url", "http://127.0.0.1:9", "--text", "{made}/log.txt"], "no answer from http://127.0.0.1:9"),
        (["--url", "{url}", "--text", "{made}/short.txt"], "short.txt has 1 token, and at least 2 are needed"),
        (
            ["--url", "{url}", "--text", "{made}/log.txt", "--quantization", "bnb-nf4"],
            "--quantization goes with --data or --model",
        ),
        (
            ["--model", "{base}", "--adapters", "{made}/adapters", "--text", "{made}/log.txt", "--quantization", "q4"],
            "--quantization is 'q4': give one of auto, bnb-nf4",
        ),
        (
            # no such model either: the folder is looked at before anything is loaded
            ["--model", "gone", "--adapters", "{made}", "--text", "{made}/log.txt", "--out", "{made}/log.txt/out"],
            "/log.txt/out can't be written: Not a directory",
        ),
        (["--lm-eval", "arc_easy", "--url", "{url}"], "needs the package lm-eval, which isn't installed here"),
    ],
)
def test_what_cannot_be_evaluated_is_said(
    base: Path, made: Path, server: RunningServer, livery: Livery, arguments: list[str], words: str
) -> None:
    (made / "short.txt").write_text("a")
    filled = [one.format(base=base, made=made, url=server.url) for one in arguments]
    done = livery("adapters", "eval", *filled)
    assert done.code in (1, 2)
    assert words in " ".join(done.err.replace("│", " ").split())
