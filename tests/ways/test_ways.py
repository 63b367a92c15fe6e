"""The task that ways are compared on is fair, their commands exist, and the pages say what was measured."""

from __future__ import annotations

import copy
import io
import json
import re
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
from ways.entries import WAYS, Way, by_key
from ways.findings import FINDINGS, numbers, sentences
from ways.making import Folders, WayFailed, make
from ways.measure import is_exact, is_right, scored
from ways.page import PAGES, RESULT, ROWS, table, written
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
                assert run.adapter.r == 16 or run.start_from == f"../made/{way.follows}"


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


LIST = RESULT.parent / "README.md"


# -- making --------------------------------------------------------------------------------------------------


def way_by(*commands: str, **fields: Any) -> Way:
    return Way("one", "one of a test", commands, adapter="one", **fields)


MAKES = "python -c 'import sys, pathlib as p; p.Path(sys.argv[1]).mkdir(); p.Path(sys.argv[1], sys.argv[2]).touch()'"


def test_a_way_is_made_anew_though_its_commands_refuse_what_is_there(tmp_path: Path) -> None:
    """As `train-data --out` does, and training."""
    folders, console = Folders(tmp_path), Console(file=io.StringIO())
    writes = "python -c 'import sys; open(sys.argv[1], chr(120))' {data}/between.jsonl"  # x: not over what is there
    folders.data.mkdir()
    way = way_by(writes, MAKES + " {made}/one adapter_a", between=("between.jsonl",))
    for _ in range(2):
        (folders.data / "between.jsonl").touch()  # as a killed run leaves it
        facts = make(way, folders, console)
        assert [file.name for file in (folders.made / "one").iterdir()] == ["adapter_a"]
    assert folders.known(way) == facts
    assert facts["made"] == {"date": facts["made"]["date"], "commit": making.own_commit()}
    assert not list(folders.data.iterdir())  # the command can be typed there
    other = way_by(writes, MAKES + " {made}/one adapter_b", between=("between.jsonl",))
    assert folders.known(other) is None, "what other commands made isn't it"


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


@pytest.mark.parametrize(
    ("steps", "examples", "batch", "accumulate", "read"),
    [(36, 10, 4, 1, 12.0), (75, 200, 8, 1, 3.0), (30, 200, 4, 1, 0.6), (4, 10, 4, 1, 1.4), (4, 10, 2, 2, 1.4)],
)
def test_a_short_last_batch_ends_a_pass(steps: int, examples: int, batch: int, accumulate: int, read: float) -> None:
    assert making.passes(steps, examples, batch, accumulate) == pytest.approx(read)


# -- the pages -----------------------------------------------------------------------------------------------

STAMP = {"date": "2026-11-22T10:00:00+00:00", "commit": "c" * 40}


def a_run() -> dict[str, Any]:
    """What a run of all ways writes, with numbers that are all different."""
    rows = []
    for at, way in enumerate(WAYS, 1):
        row: dict[str, Any] = {
            "key": way.key,
            "title": way.title,
            "before": way.before,
            "command": "x",
            "bytes": 1000 * at,
        }
        row |= {"minutes": at / 2, "made": STAMP, "asked": STAMP, "costed": STAMP, "passes": at / 4}
        if way.rewards:
            rows.append(row | {"reward": [0.25, 0.5], "iterations": 7})
            continue
        row |= {"right": at / 36, "exact": (at - 1) / 36, "answer_perplexity": at + 0.25, "line_perplexity": at + 0.5}
        row |= {"cost": {"prompt_tokens": 10 * at, "cached_tokens": at, "output_tokens": at + 0.1, "cpu_ms": 100 + at}}
        row |= {"changed": {"follows": (at + 1) / 36, "remembers": (at + 2) / 36}}
        numbers = {"preferred": 0.3, "margin": 0.125, "loss": 0.5}
        row |= {"preference": {"pairs": 10, "before": numbers, "after": {**numbers, "margin": 0.5}}}
        rows.append(row)
    machine = {"cpu": "a processor", "cores": 2, "load_average": 1.25}
    origin = {
        "command": "python tests/ways/run.py",
        "date": STAMP["date"],
        "commit": STAMP["commit"],
        "machine": machine,
    }
    shown = {"origin": origin, "base": "a-base", "questions": 36, "ways": rows, "passed_over": {}, "failed": {}}
    return {"schema": SCHEMA, **shown}


def test_a_row_says_shares_with_their_intervals() -> None:
    found = a_run()
    lora = next(row for row in found["ways"] if row["key"] == "lora")
    lora |= {"right": 23 / 36, "exact": 23 / 36}
    line = next(line for line in table(found, ROWS["en"]).splitlines() if line.startswith("| LoRA"))
    assert line.split(" | ")[2:5] == ["2.5 min, passes: 1.2", "3% → 64% (48–78)", "64% (48–78)"]
    reward = next(line for line in table(found, ROWS["pt"]).splitlines() if "recompensa" in line)
    assert "recompensa própria: 0,25 → 0,50 | – |" in reward
    assert reward.count("|") == len(ROWS["pt"].columns) + 1


def test_rows_of_another_commit_are_told() -> None:
    found = a_run()
    assert "another commit" not in table(found, ROWS["en"])
    found["ways"][4]["made"] = {"date": "2026-11-20T10:00:00+00:00", "commit": "d" * 40}
    assert "At another commit than the rest were made: lora (dddddddddddd, 2026-11-20)." in table(found, ROWS["en"])


@pytest.mark.parametrize("language", PAGES)
def test_sentences_have_every_number_from_the_run(language: str) -> None:
    found = a_run()
    assert len(sentences(found, language).splitlines()) == len(FINDINGS), "a sentence names what no way has"
    for finding in FINDINGS:
        digits = re.sub(r"\{[^}]*\}|nf4", "", finding[language])
        assert not re.search(r"\d", digits), digits
    other = copy.deepcopy(found)
    dpo = next(row for row in other["ways"] if row["key"] == "dpo")
    dpo["preference"]["after"]["margin"] = 4.75
    assert ("4,75" if language == "pt" else "4.75") in sentences(other, language)
    assert numbers(found)["dpo.margin-after"] == "0.50"
    del other["ways"][-1]
    assert len(sentences(other, language).splitlines()) == len(FINDINGS) - 1


@pytest.mark.parametrize("language", PAGES)
def test_the_words_around_the_table_have_no_measured_numbers(language: str) -> None:
    page = PAGES[language].read_text()
    around = page[: page.index("<!-- ways -->")] + page[page.index("<!-- /ways -->") :]
    assert not re.findall(r"\d+(?:[.,]\d+)?\s*(?:%|ms|MB|kB|min\b)", around)
    assert written(page, a_run(), ROWS[language]) != page


@pytest.mark.parametrize("language", PAGES)
def test_the_pages_say_what_was_measured(language: str) -> None:
    found = json.loads(RESULT.read_text())
    if found["schema"] != SCHEMA:
        pytest.skip(f"{RESULT.name} is of {found['schema']}: make ways, then python tests/ways/page.py")
    page = PAGES[language].read_text()
    assert written(page, found, ROWS[language]) == page, "python tests/ways/page.py writes them"
    assert (found["passed_over"], found["failed"]) == ({}, {})
    assert [row["key"] for row in found["ways"]] == list(by_key())


def test_the_kept_run_made_the_passes_that_its_run_files_ask_for() -> None:
    rows = {row["key"]: row for row in json.loads(RESULT.read_text())["ways"]}
    for way in WAYS:
        run = next((parse_run(content) for name, content in way.files.items() if name != way.profile), None)
        if run is not None and not run.steps:
            assert rows[way.key]["passes"] == pytest.approx(run.epochs), way.key


def test_the_list_of_results_says_what_was_measured() -> None:
    found = json.loads(RESULT.read_text())
    (line,) = (line for line in LIST.read_text().splitlines() if line.startswith(f"| `{RESULT.name}`"))
    rows = {row["key"]: row for row in found["ways"]}
    loras = [rows[key] for key in ("lora", "rslora", "dora", "qlora")]
    right, cost = (
        [pick(row) for row in loras] for pick in (lambda row: row["right"], lambda row: row["cost"]["cpu_ms"])
    )
    assert f"to {found['questions']} questions that it can't know" in line
    assert (
        f"right answers {rows['base']['right']:.0%} of the base, {rows['rag']['right']:.0%} with passages, "
        f"{100 * min(right):.0f} to {max(right):.0%} of LoRAs after a few minutes, "
        f"{rows['raft']['right']:.0%} of RAFT; "
        f"CPU a request {min(cost):.0f} to {max(cost):.0f} ms of a LoRA, {rows['base']['cost']['cpu_ms']:.0f} of the "
        f"base's wordy answers, {rows['raft']['cost']['cpu_ms']:.0f} of RAFT"
    ) in line.replace(" %", "%")


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="has no <!-- ways -->"):
        written("# nothing", {}, ROWS["en"])
