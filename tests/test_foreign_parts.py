"""What a missing part leaves untested is said so, with the remedy, wherever it was missed; with CI=true it fails."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from foreign_parts import not_run
from three_setups.verdict import ABSENT, GOOD, verdict

TESTS = Path(__file__).parent
ROOT = TESTS.parent
WANTING = """
from foreign_parts import lacking

def test_one(): lacking("kubectl is missing: install it")
def test_two(): lacking("kubectl is missing: install it")
def test_three(): pass
"""


@pytest.mark.parametrize(("ci", "status"), [("", 0), ("true", 1)])
def test_a_script_that_can_do_nothing_says_so(
    ci: str, status: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", ci)
    assert not_run("Ray Serve", "no index: try again") == status
    said = capsys.readouterr().err
    assert said.startswith("Ray Serve: ") and "nothing was tested: no index: try again" in said


@pytest.mark.parametrize("ci", ["", "true"])
def test_skipped_tests_are_told_with_the_remedy(ci: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "test_wanting.py").write_text(WANTING)
    monkeypatch.setenv("CI", ci)
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "conftest", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == bool(ci), done.stdout + done.stderr
    told = "skipped, nothing was tested by 2 of the tests: kubectl is missing: install it"
    assert (told in done.stdout) != bool(ci)


@pytest.mark.parametrize(
    ("found", "ci", "status", "said"),
    [
        ({"livery": {"it answers": GOOD}}, "true", 0, "livery: all as it should be"),
        ({"livery": {"it answers": "no"}, "ray": {"it answers": GOOD}}, "", 1, "livery, ray: 1 wrong"),
        ({"livery": {"it answers": GOOD}, "ray": {ABSENT: "no Ray"}}, "", 0, "livery: all as it should be"),
        ({"livery": {"it answers": GOOD}, "ray": {ABSENT: "no Ray"}}, "true", 1, "livery: all as it should be"),
        ({"vllm": {ABSENT: "no vLLM"}, "ray": {ABSENT: "no Ray"}}, "", 0, ""),
    ],
)
def test_set_ups_that_could_not_be_had_are_never_as_they_should_be(
    found: dict[str, dict[str, str]],
    ci: str,
    status: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CI", ci)
    assert verdict(found, Console(width=200)) == status
    printed = capsys.readouterr()
    assert printed.out.strip() == said
    absent = {name: checks[ABSENT] for name, checks in found.items() if ABSENT in checks}
    for line, (name, why) in zip(printed.err.splitlines(), absent.items(), strict=True):
        assert line.startswith(f"{name}: ") and line.endswith(f"nothing was tested: {why}")


def test_what_needs_foreign_parts_runs_where_nothing_may_be_skipped() -> None:
    """Each target that tests such has a job, with CI=true."""
    (job,) = yaml.safe_load((ROOT / ".github" / "workflows" / "foreign.yml").read_text())["jobs"].values()
    *_, step = job["steps"]
    assert (step["run"], step["env"]["CI"]) == ("make ${{ matrix.target }}", "true")
    targets = {row["target"] for row in job["strategy"]["matrix"]["include"]}
    markers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["markers"]
    of_markers = {found[1] for marker in markers if (found := re.search(r"make ([\w-]+) runs them", marker))}
    of_scripts = {"browser", "conformance", "three-setups"}
    assert targets == of_markers | of_scripts
    made = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert targets <= made
