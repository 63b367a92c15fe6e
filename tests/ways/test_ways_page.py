"""The pages about ways say what the kept run measured, and nothing else in numbers or comparisons."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest

from livery.training.run_file import parse_run
from ways.entries import WAYS, by_key
from ways.findings import FINDINGS, compared, sentences, value_of
from ways.page import LIST, PAGES, RESULT, ROWS, listed, table, with_row, written
from ways.run import SCHEMA

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
        row |= {"peak_bytes": 1e9 + at * 1e8, "held": {"bytes": at * 1e7, "as": f"int4 x {at}", "dtype": "float32"}}
        row["extraction"] = {"left_out": 0.3, "kl": {"base": 0.9, "adapter": 0.02}}
        row["extraction"]["perplexity"] = {"base": 10.0, "tuned": 8.5, "adapter": 8.75}
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
        digits = re.sub(r"\{[^}]*\}|nf4|fp32|int4|int8", "", finding[language])
        assert not re.search(r"\d", digits), digits
    other = copy.deepcopy(found)
    dpo = next(row for row in other["ways"] if row["key"] == "dpo")
    dpo["preference"]["after"]["margin"] = 4.75
    assert ("4,75" if language == "pt" else "4.75") in sentences(other, language)
    assert value_of(found, "dpo.margin-after", "en") == "0.50"
    del other["ways"][-1]
    assert len(sentences(other, language).splitlines()) == len(FINDINGS) - 1


@pytest.mark.parametrize(
    ("ratio", "en", "pt"),
    [
        (1.05, "about the same", "quase o mesmo"),
        (0.95, "about the same", "quase o mesmo"),
        (1.26, "26% more", "26% a mais"),
        (0.75, "25% less", "25% a menos"),
        (4.25, "4.2 times as much", "4.2 vezes esse valor"),
    ],
)
def test_what_is_alike_more_or_less_is_said_by_the_numbers(ratio: float, en: str, pt: str) -> None:
    assert (compared(ratio, "en"), compared(ratio, "pt")) == (en, pt)
    found = a_run()
    lora, dora = (next(row for row in found["ways"] if row["key"] == key) for key in ("lora", "dora"))
    dora["minutes"] = ratio * lora["minutes"]
    assert f"for DoRA {dora['minutes']:.1f} minutes ({en})" in sentences(found, "en")
    assert f"{dora['minutes']:.1f} minutos ({pt})".replace(".", ",") in sentences(found, "pt")


def test_rows_say_what_memory_their_base_takes() -> None:
    found = a_run()
    lines = {line.split(" | ")[0]: line for line in table(found, ROWS["en"]).splitlines()}
    for way in WAYS:
        row = next(row for row in found["ways"] if row["key"] == way.key)
        told = "–" if way.rewards else f"{row['held']['bytes'] / 1e6:.1f} MB"
        assert lines[f"| {way.title}"].endswith(f"| {told} |"), way.key


@pytest.mark.parametrize("language", PAGES)
def test_the_words_around_the_table_have_no_measured_numbers(language: str) -> None:
    page = PAGES[language].read_text()
    around = page[: page.index("<!-- ways -->")] + page[page.index("<!-- /ways -->") :]
    assert not re.findall(r"\d+(?:[.,]\d+)?\s*(?:%|ms|MB|kB|min\b)", around)
    comparing = r"(?:more|less) (?:slowly|time|memory)|as long as|mais devagar|mesmo tempo|mesmo que o do"
    assert not re.findall(comparing, around), "what was faster or smaller is the run's to say"
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
    unmeasured = [row["key"] for row in found["ways"] if not by_key()[row["key"]].rewards and "held" not in row]
    assert not unmeasured, "make ways tells how a server holds its base"
    assert len(sentences(found, language).splitlines()) == len(FINDINGS)


def test_the_kept_run_made_the_passes_that_its_run_files_ask_for() -> None:
    rows = {row["key"]: row for row in json.loads(RESULT.read_text())["ways"]}
    for way in WAYS:
        run = next((parse_run(content) for name, content in way.files.items() if name != way.profile), None)
        if run is not None and not run.steps:
            assert rows[way.key]["passes"] == pytest.approx(run.epochs), way.key


def test_the_list_of_results_says_what_was_measured() -> None:
    found = a_run()
    line = listed(found)
    rows = {row["key"]: row for row in found["ways"]}
    for key, words in {"base": "of the base", "rag": "with passages", "full": "of the adapter extracted"}.items():
        assert f"{rows[key]['right']:.0%} {words}".replace("%", " %") in line
    page = LIST.read_text()
    assert line in with_row(page, found).splitlines()
    assert [one for one in with_row(page, found).splitlines() if one != line] == [
        one for one in page.splitlines() if not one.startswith(f"| `{RESULT.name}`")
    ]
    kept = json.loads(RESULT.read_text())
    if kept["schema"] == SCHEMA:
        assert with_row(page, kept) == page, "python tests/ways/page.py writes it"


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="has no <!-- ways -->"):
        written("# nothing", {}, ROWS["en"])
