"""The result document: written, read back, whole; without secrets; refused where it isn't one."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest

from livery_loadtest.columns import Columns
from livery_loadtest.figures import Measured, summarise
from livery_loadtest.machine import Machine
from livery_loadtest.origin import Origin
from livery_loadtest.report.packed import pack, unpack_samples
from livery_loadtest.report.result import (
    SCHEMA,
    Result,
    ResultUnreadable,
    Server,
    make_result,
    read_result,
    write_result,
)
from loadtest.made_runs import BUSY, Making, made_run, workload

ORIGIN = Origin(
    "livery bench run load.yaml --target ours=http://admin:secret@host:1",
    "2026-11-21T12:00:00+00:00",
    "1.0",
    Machine("A CPU", 2, 16.0, "Linux", "3.11", 0.1),
)


def made_result(repeats: int = 2, **making: object) -> Result:
    ours = Making(requests=90, failing=0.05, leaving=0.05, cold=5, **making)
    theirs = Making(requests=90, ttft_s=0.16, cold=5, **making)
    runs = [
        made_run(some, name, repeat) for repeat in range(repeats) for name, some in (("ours", ours), ("theirs", theirs))
    ]
    targets = [
        Server(name="ours", url="http://admin:secret@host:1", adapters=("a", "b"), settings={"--x": "because"}),
        Server(name="theirs", url="http://host:2"),
        Server(name="unused", url="http://host:3"),
    ]
    return make_result(workload(), targets, runs, ORIGIN)


def test_a_result_comes_back_as_it_was(tmp_path: Path) -> None:
    result = made_result()
    path = tmp_path / "deep" / "result.json"
    write_result(result, path)
    again = read_result(path)
    assert msgspec.json.encode(again) == msgspec.json.encode(result)
    assert [one.name for one in again.targets] == ["ours", "theirs"]
    for name, repeats in again.measured.items():
        worked_out = summarise(name, repeats, again.workload)
        told = next(one for one in again.summary if one.target == name)
        assert worked_out == told  # any number can be worked out again from the file


def test_the_file_is_plain_json_with_a_line_for_each_repeat(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_result(made_result(), path)
    assert json.loads(path.read_text())["schema"] == "livery-load/1"
    before, _, repeats = path.read_text().partition('"repeats": [\n')
    assert (len(before.splitlines()), len(repeats.splitlines())) == (len(Result.__struct_fields__), 4 + 2)


def test_columns_keep_what_was_recorded_to_the_microsecond() -> None:
    run = made_run(Making(requests=70, failing=0.1, leaving=0.1, cold=3))
    run.records[3].retried = True
    before, after = Columns.of(run), pack(run, run.started).columns()
    for name in Columns.__slots__:
        told, found = getattr(before, name), getattr(after, name)
        if isinstance(told, tuple):
            assert told == found
        elif told.dtype == np.float64:
            np.testing.assert_allclose(found, told, atol=1.6e-6 if name == "arrivals" else 6e-7, equal_nan=True)
        else:
            np.testing.assert_array_equal(found, told)


def test_a_file_without_the_column_of_second_tries_has_none() -> None:
    packed = pack(made_run(Making(requests=30)), 1000.0)
    old = msgspec.structs.replace(packed, requests=msgspec.structs.replace(packed.requests, retried=[]))
    assert not old.columns().retried.any() and len(old.columns().retried) == 30


def test_samples_and_loads_come_back() -> None:
    run = made_run(Making(requests=30))
    packed = pack(run, run.started)
    assert packed.loads == list(run.loads)
    assert set(packed.samples.steady) == {"process_open_fds"}
    for before, after in zip(run.samples, unpack_samples(packed.samples), strict=True):
        assert after.values == before.values
        assert after.at == pytest.approx(before.at, abs=1e-3)


def test_no_password_is_written(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_result(made_result(), path)
    assert "secret" not in path.read_text()
    assert "http://host:1" in path.read_text()


def test_what_makes_a_run_invalid_is_told_with_its_target_and_repeat() -> None:
    runs = [made_run(Making(requests=30), "ours", 0), made_run(Making(requests=30), "ours", 1, BUSY)]
    result = make_result(workload(), [Server(name="ours", url="http://host")], runs, ORIGIN)
    assert result.doubts == [f"ours, repeat 2: {BUSY.reasons[0]}"]
    assert made_result().doubts == []


def test_a_result_of_nothing_is_a_result(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_result(make_result(workload(), [], [], ORIGIN), path)
    assert read_result(path).summary == ()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda told: told.update(schema="livery-load/9"), "schema"),
        (lambda told: told["repeats"][0]["requests"]["sent_us"].pop(), "column sent_us has 89 entries"),
        (lambda told: told["repeats"][0]["requests"].update(gaps="AAAA"), "gaps can't be read"),
        (lambda told: told["repeats"][0]["requests"]["model"].__setitem__(0, 99), "column model"),
        (lambda told: told["repeats"][0]["requests"]["events"].__setitem__(0, 999), "gaps has"),
        (lambda told: told["repeats"][0].update(target="nobody"), "nobody"),
        (lambda told: told.update(extra=1), "extra"),
    ],
)
def test_what_is_no_result_is_refused_by_name(tmp_path: Path, change: object, says: str) -> None:
    path = tmp_path / "result.json"
    write_result(made_result(repeats=1), path)
    told = json.loads(path.read_text())
    assert callable(change)
    change(told)
    path.write_text(json.dumps(told))
    with pytest.raises(ResultUnreadable, match=says) as refused:
        read_result(path)
    assert str(path) in str(refused.value)


def test_a_missing_or_broken_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ResultUnreadable, match=r"nowhere\.json: No such file"):
        read_result(tmp_path / "nowhere.json")
    (tmp_path / "cut.json").write_text('{"schema": "livery-load/1", ')
    with pytest.raises(ResultUnreadable, match=r"cut\.json"):
        read_result(tmp_path / "cut.json")


def test_measured_repeats_are_in_order_whatever_the_order_of_the_file() -> None:
    result = made_result(repeats=3)
    turned = msgspec.structs.replace(result, repeats=tuple(reversed(result.repeats)))
    assert [one.repeat for one in turned.measured["ours"]] == [0, 1, 2]
    assert isinstance(turned.measured["ours"][0], Measured)


RESULTS = Path(__file__).parents[2] / "loadtest" / "results"
PARTS = {"origin", "schema", "summary", "workload"}


def test_kept_load_tests_hold_what_their_page_says() -> None:
    """Whole documents can be read; of those that are "summaries only" the page promises nothing else."""
    page = (RESULTS / "README.md").read_text()
    rows = {file: row for row in page.splitlines() for file in re.findall(r"`([\w.-]+\.json)`", row) if row[:1] == "|"}
    kinds = {"whole": 0, "summaries": 0}
    for file in sorted(RESULTS.glob("*.json")):
        assert file.name in rows, f"{file.name} has no row in {RESULTS / 'README.md'}"
        held = json.loads(file.read_bytes())
        entries = held if isinstance(held, list) else [held]
        if entries[0].get("schema") != SCHEMA:
            continue
        only = all(set(entry) == PARTS for entry in entries)
        assert only == ("summaries only" in rows[file.name])
        if only:
            verifies = re.search(r"\d+ of \d+ answers", rows[file.name])
            assert verifies is None, f"{file.name} holds no checked answers, yet its row says: {verifies}"
        else:
            read_result(file)
        kinds["summaries" if only else "whole"] += 1
    assert kinds["summaries"], "nothing was looked at"


def test_a_result_of_a_target_was_made_by_the_targets_own_command() -> None:
    """Rows that name `make …` alone; where its files go is the reader's to choose."""
    recipes = dict(
        re.findall(r"^([\w-]+): setup\n\t\$\(BIN\)/python (.+)\n", (RESULTS.parents[1] / "Makefile").read_text(), re.M)
    )
    looked_at = 0
    for file, target in re.findall(
        r"^\| `([\w.-]+\.json)`[^|]*\| `make ([\w-]+)`", (RESULTS / "README.md").read_text(), re.M
    ):
        origin = json.loads((RESULTS / file).read_bytes())["origin"]
        assert own_words(origin["command"]) == own_words(recipes[target]), (
            f"{file}: make {target} measures something else"
        )
        looked_at += 1
    assert looked_at >= 5


def own_words(command: str) -> list[str]:
    """The script's name and its options, without where results are written and what `make` lets through."""
    words = command.replace("$(ONLY)", "").removeprefix("python ").split()
    kept = [word for before, word in pairwise(["", *words]) if not {before, word} & {"--out", "--svg"}]
    return [kept[0].rpartition("/")[2], *kept[1:]]
