"""What runs foreign clients: its table, its environments, and how it counts. The clients themselves need a network."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from conformance.environments import CLIENTS, MARKER, PartMissing, Suite, suites
from conformance.results import Result, markdown, reasons, succeeded
from livery_loadtest.peers import EnvironmentFailed

QUIET = Console(quiet=True)
REPORT = """<testsuites><testsuite>
  <testcase name="good"><properties><property name="model" value="a"/><property name="score" value="0.5"/></properties>
  </testcase>
  <testcase name="bad"><failure message="404 is not 200">long text</failure></testcase>
  <testcase name="broken"><error message="no fixture"/></testcase>
  <testcase name="known"><skipped type="pytest.xfail" message="no images"/></testcase>
  <testcase name="skipped"><skipped type="pytest.skip" message="no audio"/></testcase>
  <testsuite name="nested"><testcase name="also good"/></testsuite>
</testsuite></testsuites>"""


@pytest.fixture(autouse=True)
def cache_of_ones_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LIVERY_CACHE", str(tmp_path / "cache"))


def suite(*python: str, interpreter: str | None = None, borrows: bool = False) -> Suite:
    return Suite("made-up", "tiny", "none.py", python=python, interpreter=interpreter, borrows=borrows)


@pytest.mark.parametrize("row", suites(), ids=lambda row: row.name)
def test_every_row_says_what_runs_and_against_what(row: Suite) -> None:
    assert (CLIENTS / row.tests).is_file()
    assert row.server in ("demo", "tiny")
    assert bool(row.python) != bool(row.npm)


def test_environments_are_shared_by_requirements() -> None:
    assert suite("a==1").folder == suite("a==1").folder
    assert len({suite("a==1").folder, suite("a==2").folder, suite("a==1", interpreter="python3.12").folder}) == 3


def test_an_environment_is_built_once_and_runs_what_it_borrows() -> None:
    """pip finds what is asked for among the borrowed packages, so no index is needed."""
    made = suite("pytest", borrows=True)
    made.ensure(QUIET)
    built = (made.folder / "bin" / "python").lstat().st_ctime_ns
    made.ensure(QUIET)
    assert (made.folder / "bin" / "python").lstat().st_ctime_ns == built
    python, *_ = made.command(Path("report.xml"))
    subprocess.run([python, "-c", "import pytest"], check=True, timeout=60)


def test_an_environment_that_fails_is_told_and_never_taken_for_built(tmp_path: Path) -> None:
    broken = suite(str(tmp_path / "absent-1.0-py3-none-any.whl"))
    with pytest.raises(EnvironmentFailed, match="package index must be reachable"):
        broken.ensure(QUIET)
    assert not (broken.folder / MARKER).exists()


def test_a_missing_program_is_named_with_the_remedy() -> None:
    with pytest.raises(PartMissing, match=r"python9\.9 isn't on this machine: install python9\.9"):
        suite("a", interpreter="python9.9").ensure(QUIET)


def test_results_are_counted_with_their_reasons(tmp_path: Path) -> None:
    (tmp_path / "report.xml").write_text(REPORT)
    result = Result("made-up", "a==1")
    result.read(tmp_path / "report.xml")
    assert result.passed == 2
    assert list(reasons([result])) == [
        "made-up: failed: bad: 404 is not 200",
        "made-up: failed: broken: no fixture",
        "made-up: known: known: no images",
        "made-up: left out: skipped: no audio",
    ]
    assert "| made-up | a==1 | 2 | 1: 404 is not 200; 1: no fixture | 1: no images; 1: no audio |" in markdown([result])
    assert markdown([result]).endswith("| made-up: model | score |\n|---|---|\n| a | 0.5 |")


def test_what_is_missing_fails_only_where_all_must_run() -> None:
    missing, failed = Result("one", "", missing="no node"), Result("two", "", failures=[("test", "why")])
    assert succeeded([missing], all_must_run=False)
    assert not succeeded([missing], all_must_run=True)
    assert not succeeded([failed], all_must_run=False)
