"""A whole run over real sockets: the order of measurement, and the report it becomes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from livery_loadtest.benchmark_report import SCHEMA
from livery_loadtest.cli import app
from loadtest.known_server import CUT, FAILING, KnownServer


def bench(*options: str) -> Result:
    return CliRunner().invoke(app, ["serve", *options, "--prompt-words", "6", "--max-tokens", "4"])


def targets(*servers: KnownServer) -> list[str]:
    return [part for server in servers for part in ("--target", f"{server.name}={server.url}")]


def test_rounds_alternate_targets_and_scenarios(pair: tuple[KnownServer, KnownServer]) -> None:
    left, right = pair
    right.seen = left.seen  # one list, in the order the requests came in
    result = bench(*targets(left, right), "--rounds", "2", "--requests", "4", "--warm-up", "0", "--streams", "2")
    assert result.exit_code == 0, result.output
    groups: list[tuple[object, bool]] = []
    for request in left.seen:
        group = (request["server"], str(request["model"]).startswith("base"))
        if not groups or groups[-1] != group:
            groups.append(group)
    assert groups == [("left", True), ("left", False), ("right", True), ("right", False)] * 2
    assert len(left.seen) == 2 * 2 * 2 * 4


def test_targets_get_the_same_prompts_and_none_twice(pair: tuple[KnownServer, KnownServer]) -> None:
    left, right = pair
    options = ("--rounds", "2", "--requests", "6", "--warm-up", "3", "--streams", "1")
    assert bench(*targets(left, right), *options).exit_code == 0
    prompts = [str(request["prompt"]) for request in left.seen]
    assert len(prompts) == 2 * (3 + 2 * 6)
    assert len(set(prompts)) == len(prompts)
    assert prompts == [request["prompt"] for request in right.seen]


def test_the_report_has_everything(pair: tuple[KnownServer, KnownServer], tmp_path: Path) -> None:
    left, right = pair
    out = tmp_path / "deep" / "report.json"
    options = ("--rounds", "3", "--requests", "8", "--warm-up", "2", "--streams", "4", "--check")
    result = bench(*targets(left, right), *options, "--out", str(out))
    assert result.exit_code == 0, result.output
    assert max(left.most_under_way, right.most_under_way) <= 4
    report = json.loads(out.read_text())
    assert report["schema"] == SCHEMA
    assert report["origin"]["machine"]["cores"] >= 1
    assert report["origin"]["command"]
    assert report["workload"]["streams"] == 4
    assert [target["version"] for target in report["targets"]] == ["left-1.0", "right-1.0"]
    assert [target["base"] for target in report["targets"]] == ["base-l", "base-r"]
    assert [(row["target"], row["scenario"]) for row in report["rows"]] == [
        ("left", "base"),
        ("left", "mixed"),
        ("right", "base"),
        ("right", "mixed"),
    ]
    for row in report["rows"]:
        assert row["pooled"]["requests"] == row["pooled"]["completed"] == 24
        assert row["pooled"]["output_tokens"] == row["pooled"]["text_chunks"] == 24 * 4
        assert row["pooled"]["prompt_tokens"] == 24 * 6
        assert row["pooled"]["errors"] == {}
    assert [ratio["name"] for ratio in report["ratios"]] == [
        "left: mixed / base",
        "right: mixed / base",
        "base: left / right",
        "mixed: left / right",
    ]
    assert [(one["round"], one["target"], one["scenario"]) for one in report["rounds"]][:4] == [
        (0, "left", "base"),
        (0, "left", "mixed"),
        (0, "right", "base"),
        (0, "right", "mixed"),
    ]
    assert [request["model"] for request in report["rounds"][1]["requests"]] == ["pirate", "json"] * 4


def test_ratios_are_those_of_the_rounds(pair: tuple[KnownServer, KnownServer], tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    result = bench(*targets(*pair), "--rounds", "3", "--requests", "4", "--warm-up", "0", "--out", str(out))
    assert result.exit_code == 0, result.output
    report = json.loads(out.read_text())
    speed = {
        (one["round"], one["target"], one["scenario"]): one["summary"]["tokens_per_second"] for one in report["rounds"]
    }
    expected = sorted(speed[index, "left", "mixed"] / speed[index, "left", "base"] for index in range(3))
    found = report["ratios"][0]["value"]
    assert [found["low"], found["median"], found["high"]] == pytest.approx(expected)


def test_errors_are_counted_shown_and_end_with_code_one(faulty: KnownServer, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    options = ("--adapters", f"pirate,{CUT},{FAILING}", "--rounds", "1", "--requests", "6", "--warm-up", "3")
    result = bench(*targets(faulty), *options, "--out", str(out))
    assert result.exit_code == 1
    assert "6 requests failed" in result.output
    report = json.loads(out.read_text())
    mixed = report["rows"][1]["pooled"]
    assert mixed["errors"] == {"stream cut": 2, "stream error": 2}
    assert "the engine is gone" in mixed["error_examples"]["stream error"]
    assert (mixed["completed"], mixed["output_tokens"]) == (2, 8)
    assert report["warm_up_errors"] == {"faulty/mixed": 2}
    assert report["rows"][0]["pooled"]["errors"] == {}


def test_a_server_without_adapters_is_measured_on_the_base(
    pair: tuple[KnownServer, KnownServer], tmp_path: Path
) -> None:
    left, right = pair
    right.models = ["base-r"]
    out = tmp_path / "report.json"
    options = ("--adapters", "pirate", "--rounds", "1", "--requests", "2", "--warm-up", "0")
    assert bench(*targets(left, right), *options, "--out", str(out)).exit_code == 0
    report = json.loads(out.read_text())
    assert [(row["target"], row["scenario"]) for row in report["rows"]] == [
        ("left", "base"),
        ("left", "mixed"),
        ("right", "base"),
    ]
    assert [ratio["name"] for ratio in report["ratios"]] == ["left: mixed / base", "base: left / right"]


def test_unknown_adapters_and_twin_targets_are_refused(faulty: KnownServer) -> None:
    result = bench(*targets(faulty), "--adapters", "pirate,parrot")
    assert result.exit_code == 1
    assert "does not serve parrot" in " ".join(result.output.split())
    assert not faulty.seen
    result = bench(*targets(faulty, faulty))
    assert result.exit_code == 1
    assert "two targets have the same name" in " ".join(result.output.split())
