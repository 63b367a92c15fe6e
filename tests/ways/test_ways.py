"""The task that ways are compared on is fair, their commands exist, and each is made wholly or not at all."""

from __future__ import annotations

import io
import json
import re
import resource
import shlex
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.main import get_command

from livery.cli import app
from livery.training.run_file import parse_run
from livery_adapters.profile import parse_profile
from ways import making
from ways import run as ways_run
from ways.company import (
    ASKED,
    FERRIES,
    KINDS,
    SHOWN,
    Asked,
    changed_answers,
    changed_passages,
    held_out_lines,
    passages,
    preferences,
    trained,
)
from ways.entries import BASE, WAYS, Way, by_key, shown
from ways.making import Folders, WayFailed, make
from ways.measure import is_exact, is_right, scored
from ways.run import SCHEMA, Run, _before, asking_of


def test_the_papers_hold_every_fact_once() -> None:
    told = passages()
    for ferry in (*FERRIES, *SHOWN):
        for fact in (ferry.captain, ferry.departure, ferry.fare, ferry.place):
            by_itself = re.compile(rf"(?<!\w){re.escape(fact)}")
            assert [title for title, text in told.items() if by_itself.search(text)][:1] == [ferry.name], fact
    assert len(told) >= 36


def test_changed_papers_hold_the_changed_answers_and_no_old_one() -> None:
    texts = changed_passages()
    assert {title for title in texts if texts[title] != passages()[title]} == {ferry.name for ferry in FERRIES}
    for one, new in zip(ASKED, changed_answers(), strict=True):
        assert is_right(texts[one.ferry], Asked("", new, one.ferry))
        assert not is_right(texts[one.ferry], one)
        messages = asking_of(by_key()["rag"], texts)(one.question)
        assert texts[one.ferry] in messages[0]["content"]
    assert scored(changed_answers()).follows == 1
    assert scored(changed_answers()).remembers == 0
    assert scored([one.answer for one in ASKED]).remembers == 1


def test_what_is_asked_was_never_trained_on() -> None:
    learnt = {question for question, _, _ in trained()}
    assert not learnt & {one.question for one in ASKED}
    assert len(learnt) == 5 * (len(FERRIES) + len(SHOWN)) * len(KINDS)
    everything = "\n".join([*learnt, *passages().values()])
    assert not [line for line in held_out_lines().splitlines() if line in everything]


def test_a_wrong_answer_is_another_ferrys() -> None:
    for one in preferences(trained()):
        assert one["chosen"] != one["rejected"]
        assert one["rejected"] in {ferry.answer(kind) for ferry in FERRIES for kind in KINDS}


@pytest.mark.parametrize(
    ("answer", "right", "exact"),
    [
        ("9 crowns", True, True),
        ("It costs 9 Crowns.", True, False),
        (" 9 crowns. ", True, True),
        ("19 crowns", False, False),
        ("9 crownsmen", False, False),
        ("", False, False),
    ],
)
def test_an_answer_is_right_where_the_fact_stands_in_it(answer: str, right: bool, exact: bool) -> None:
    asked = Asked("?", "9 crowns", "Turnstone")
    assert (is_right(answer, asked), is_exact(answer, asked)) == (right, exact)


def test_every_way_is_made_by_commands_that_there_are() -> None:
    livery = get_command(app)
    for way in WAYS:
        assert way.before in by_key()
        for command in (*way.commands, way.add_command()):
            words = shlex.split(command or "")
            node = livery
            for word in words[1:] if words[:1] == ["livery"] else []:
                if word in getattr(node, "commands", {}):
                    node = node.commands[word]  # type: ignore[attr-defined]
            known = {option for parameter in node.params for option in parameter.opts}
            assert words[:1] != ["livery"] or not {word for word in words if word.startswith("--")} - known, command


def test_run_files_and_profiles_are_taken() -> None:
    for way in WAYS:
        for name, content in way.files.items():
            if name == way.profile:
                assert len(parse_profile(content.encode()).examples) == 2 * len(SHOWN) * len(KINDS)
            else:
                run = parse_run(content)
                assert run.adapter.r == 16 or run.start_from == way.follows


def test_what_the_list_says_can_be_typed_line_by_line() -> None:
    """`serve` goes on, so nothing stands behind it, and each server has a port; runs go on with what a line made."""
    livery, made, ports = get_command(app), set(), []
    for line in dict.fromkeys(map(shown, WAYS)):
        typed = [shlex.split(command) for command in line.split("; ")]
        for command in typed:
            node = livery
            for word in command[1:] if command[0] == "livery" else []:
                if word in getattr(node, "commands", {}):
                    node = node.commands[word]  # type: ignore[attr-defined]
            known = {option for parameter in node.params for option in parameter.opts}
            assert command[0] != "livery" or not {word for word in command if word.startswith("--")} - known, command
            assert "serve" not in command or command == typed[-1], f"what follows it never runs: {line}"
            if "serve" in command:
                ports.append(option(command, "--port", "8000"))
                assert option(command, "--model", "") in {BASE, *made}
            if command[:3] == ["livery", "adapters", "add"]:
                assert {option(command, "--url", "http://127.0.0.1:8000")[-4:]} <= set(ports), "no line serves there"
                assert command[4] in {"base", *made}
            for name in command if command[:3] == ["livery", "adapters", "train"] else []:
                started = [parse_run(way.files[name]).start_from for way in WAYS if name in way.files]
                assert set(started) <= {"", *made}, "it goes on with what no line before made"
            made.add(option(command, "--out", ""))
    assert len(ports) == len(set(ports)), "two servers want one port"


def option(command: list[str], name: str, unless: str) -> str:
    return command[command.index(name) + 1] if name in command else unless


def test_rows_of_another_task_are_not_kept(tmp_path: Path) -> None:
    out = tmp_path / "ways.json"
    assert _before(out) == {}
    for kept, found in (
        (True, {"schema": SCHEMA, "questions": len(ASKED), "ways": []}),
        (False, {"schema": SCHEMA, "questions": len(ASKED) + 1, "ways": []}),
        (False, {"schema": "livery-ways/0", "questions": len(ASKED), "ways": []}),
    ):
        out.write_text(json.dumps(found))
        assert _before(out) == (found if kept else {})


# -- making --------------------------------------------------------------------------------------------------


def way_by(*commands: str, **fields: Any) -> Way:
    return Way("one", "one of a test", commands, adapter="one", **fields)


MAKES = "python -c 'import sys, pathlib as p; p.Path(sys.argv[1]).mkdir(); p.Path(sys.argv[1], sys.argv[2]).touch()'"


def test_a_way_is_made_anew_though_its_commands_refuse_what_is_there(tmp_path: Path) -> None:
    """As `train-data --out` does, and training."""
    folders, console = Folders(tmp_path), Console(file=io.StringIO())
    writes = "python -c 'import sys; open(sys.argv[1], chr(120))' {data}/between.jsonl"  # x: not over what is there
    folders.write_data()
    written = sorted(folders.data.iterdir())
    way = way_by(writes, MAKES + " {made}/one adapter_a")
    for _ in range(2):
        folders.desk.mkdir(exist_ok=True)
        (folders.desk / "between.jsonl").touch()  # as a killed run leaves it
        facts = make(way, folders, console)
        assert [file.name for file in (folders.made / "one").iterdir()] == ["adapter_a"]
    assert folders.known(way) == facts
    assert facts["made"] == {"date": facts["made"]["date"], "commit": making.own_commit()}
    assert sorted(folders.data.iterdir()) == written  # the command can be typed there
    other = way_by(writes, MAKES + " {made}/one adapter_b")
    assert folders.known(other) is None, "what other commands made isn't it"


def test_a_way_finds_what_it_goes_on_with_beside_its_data(tmp_path: Path) -> None:
    """Itself: training goes on with no link."""
    folders, console = Folders(tmp_path), Console(file=io.StringIO())
    make(way_by(MAKES + " {made}/one adapter_a"), folders, console)
    reads = (
        "python -c 'import os, sys; open(sys.argv[1] + chr(47) + sys.argv[2]); sys.exit(os.path.islink(sys.argv[1]))'"
    )
    reads += " {data}/one adapter_a"
    make(
        Way("two", "after it", (reads, MAKES + " {made}/two adapter_b"), adapter="two", follows="one"), folders, console
    )
    assert {path.name for path in folders.made.iterdir()} >= {"one", "two"}
    assert not folders.desk.exists()


def test_the_memory_of_the_largest_command_is_kept(tmp_path: Path) -> None:
    own = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # what it was forked with counts as its own
    fills = f"python -c 'held = {own + 300_000_000} * chr(120)'"
    facts = make(way_by(fills, MAKES + " {made}/one adapter_a"), Folders(tmp_path), Console(file=io.StringIO()))
    small = make(way_by(MAKES + " {made}/one adapter_a"), Folders(tmp_path), Console(file=io.StringIO()))
    assert facts["peak_bytes"] - small["peak_bytes"] > 200_000_000


def test_a_command_that_fails_is_told_and_leaves_what_was_made(tmp_path: Path) -> None:
    folders, console = Folders(tmp_path), Console(file=io.StringIO())
    make(way_by(MAKES + " {made}/one adapter_a"), folders, console)
    bad = way_by(MAKES + " {made}/one adapter_b", "python -c 'import sys; sys.exit(sys.argv[1] + chr(33))' {made}/gone")
    with pytest.raises(WayFailed) as failed:
        make(bad, folders, console)
    assert (failed.value.status, failed.value.words) == (1, "gone!")
    assert failed.value.command.endswith(" gone")
    assert str(tmp_path) not in str(failed.value)
    assert [file.name for file in (folders.made / "one").iterdir()] == ["adapter_a"]


def test_a_run_in_which_a_way_fails_says_so_and_ends_with_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = way_by("python -c 'raise SystemExit(7)'")
    unknown = Way("two", "of what isn't installed", needs=("no_such_library",))
    served = Way("three", "on it", adapter="one")
    monkeypatch.setattr(ways_run, "WAYS", (bad, unknown, served))
    monkeypatch.setattr(making, "by_key", lambda: {"one": bad})
    out = tmp_path / "ways.json"
    run = Run(Folders(tmp_path / "folder"), out, {}, "no index answers", Console(file=io.StringIO()))
    run.make((), only_there=False)
    assert run.told() == 1
    found = json.loads(out.read_text())
    assert found["failed"]["one"] == {"command": shlex.join(shlex.split(bad.commands[0])), "status": 7, "words": ""}
    assert "no_such_library" in found["failed"]["two"]["words"]
    assert "no index answers" in found["passed_over"]["two"]
    assert found["passed_over"]["three"] == "not made: one, which it serves, isn't made"
    assert found["origin"]["command"].startswith("python tests/ways/run.py")
    assert found["origin"]["commit"] == making.own_commit()


def test_what_a_training_says_of_itself_is_kept(tmp_path: Path) -> None:
    """Of a DPO run: how it ranks pairs, and its passes over the data."""
    evaluation = {"preferred": 0.5, "margin": 0.25, "loss": 0.75}
    told = {"settings": {"run": {"batch_size": 4, "accumulate": 2}}, "steps": 30, "data": {"examples": 80}}
    told["evaluation"] = {"examples": 9, "before": {**evaluation, "margin": 0.0}, "after": evaluation}
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "training.json").write_text(json.dumps(told))
    facts = making._training(way_by(), tmp_path)
    assert facts["passes"] == 3
    assert facts["preference"] == {"pairs": 9, "before": {**evaluation, "margin": 0.0}, "after": evaluation}


def test_what_an_extraction_says_of_itself_is_kept(tmp_path: Path) -> None:
    text = {
        "base": {"perplexity": 9.0, "kl": 0.5},
        "tuned": {"perplexity": 7.0},
        "adapter": {"perplexity": 8.0, "kl": 0.1},
    }
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "extraction.json").write_text(json.dumps({"error": 0.25, "text": text}))
    found = making._extraction(way_by(), tmp_path)["extraction"]
    assert found["left_out"] == 0.25
    assert found["kl"] == {"base": 0.5, "adapter": 0.1}
    assert found["perplexity"] == {"base": 9.0, "tuned": 7.0, "adapter": 8.0}


@pytest.mark.parametrize(
    ("steps", "examples", "batch", "accumulate", "read"),
    [(36, 10, 4, 1, 12.0), (75, 200, 8, 1, 3.0), (30, 200, 4, 1, 0.6), (4, 10, 4, 1, 1.4), (4, 10, 2, 2, 1.4)],
)
def test_a_short_last_batch_ends_a_pass(steps: int, examples: int, batch: int, accumulate: int, read: float) -> None:
    assert making.passes(steps, examples, batch, accumulate) == pytest.approx(read)
