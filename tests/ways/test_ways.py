"""The task that ways are compared on is fair, their commands exist, and the pages say what was measured."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from livery.cli import app
from livery.training.run_file import parse_run
from livery_adapters.profile import parse_profile
from ways.company import ASKED, FERRIES, KINDS, SHOWN, Asked, held_out_lines, passages, preferences, trained
from ways.entries import WAYS, by_key
from ways.measure import is_exact, is_right
from ways.page import PAGES, RESULT, ROWS, table, written
from ways.run import SCHEMA, _before


def test_the_papers_hold_every_fact_once() -> None:
    told = passages()
    for ferry in (*FERRIES, *SHOWN):
        for fact in (ferry.captain, ferry.departure, ferry.fare, ferry.place):
            by_itself = re.compile(rf"(?<!\w){re.escape(fact)}")
            assert [title for title, text in told.items() if by_itself.search(text)][:1] == [ferry.name], fact
    assert len(told) >= 36


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
                assert parse_run(content).adapter.r == 16


def test_a_way_that_is_scored_by_its_own_reward_has_a_row() -> None:
    found = json.loads(RESULT.read_text())
    row = {"key": "rl", "title": "RL", "before": "base", "bytes": 9, "minutes": 1.0, "reward": [0.25, 0.5]}
    line = next(line for line in table({**found, "ways": [row]}, ROWS["pt"]).splitlines() if "0,25" in line)
    assert line.startswith("| aprendizagem por reforço | 9 | 1,0 min | recompensa própria: 0,25 → 0,50 | – |")
    assert line.count("|") == len(ROWS["pt"].columns) + 1


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


@pytest.mark.parametrize("language", PAGES)
def test_the_pages_say_what_was_measured(language: str) -> None:
    found = json.loads(RESULT.read_text())
    page = PAGES[language].read_text()
    assert written(page, found, ROWS[language]) == page, "python tests/ways/page.py writes them"
    other = json.loads(RESULT.read_text())
    other["ways"][0]["answer_perplexity"] += 1
    assert written(page, other, ROWS[language]) != page
    assert len(table(found, ROWS[language]).splitlines()) > len(found["ways"])


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="has no <!-- ways -->"):
        written("# nothing", {}, ROWS["en"])
