"""The value check finds an answer that changes under load, and says which."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from typer.testing import CliRunner

from livery_loadtest.check import FIXED_PROMPT, CheckResult, check_target, compare_targets
from livery_loadtest.cli import app
from livery_loadtest.client import Dialect, http_client, send
from livery_loadtest.target import Target
from livery_loadtest.workload import Workload
from loadtest.known_server import CHANGING, CUT, KnownServer

LOAD = Workload(streams=6, requests=12, prompt_words=5, max_tokens=200)


async def check(server: KnownServer, models: list[str]) -> CheckResult:
    async with http_client(10) as client:
        sender = partial(send, client, Target(server.name, server.url), Dialect())
        return await check_target(server.name, sender, models, LOAD, lambda: None)


async def test_a_changing_answer_is_found(faulty: KnownServer) -> None:
    result = await check(faulty, ["base", "pirate", CHANGING])
    assert (result.compared, result.equal, result.failed) == (3, 2, 0)
    assert [one.model for one in result.differences] == [CHANGING]
    assert result.differences[0].alone.startswith("changing:0")
    assert "CHANGING:" in result.differences[0].under_load
    assert result.distinct_answers == 3
    fixed = [request["model"] for request in faulty.seen if request["prompt"] == FIXED_PROMPT]
    assert fixed[:3] == ["base", "pirate", CHANGING]
    assert sorted(str(model) for model in fixed) == sorted(["base", "pirate", CHANGING] * 2)
    assert len(faulty.seen) == 3 + 3 + LOAD.requests


async def test_a_model_that_cannot_answer_is_a_failure_not_an_equal(faulty: KnownServer) -> None:
    result = await check(faulty, ["base", CUT])
    assert (result.compared, result.equal, result.failed) == (1, 1, 1)


async def test_targets_are_compared_by_adapter_name_and_bases_with_each_other(
    pair: tuple[KnownServer, KnownServer],
) -> None:
    left, right = pair
    results = [await check(left, left.models), await check(right, right.models)]
    compared = compare_targets(results, {"left": left.models, "right": right.models})
    # The two adapters answer alike on both servers; each base says its own name.
    assert [one.same_as for one in compared] == [{"right": 2}, {"left": 2}]


def test_the_command_reports_the_change(faulty: KnownServer, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    arguments = ["--target", f"faulty={faulty.url}", "--adapters", "pirate,changing", "--rounds", "1"]
    arguments += ["--requests", "8", "--warm-up", "0", "--max-tokens", "100", "--check", "--out", str(out)]
    result = CliRunner().invoke(app, ["serve", *arguments])
    assert result.exit_code == 0, result.output
    output = " ".join(result.output.split())
    assert "faulty: 2 of 3 greedy answers equal alone and under load" in output
    assert "changing parts at character" in output
    (found,) = json.loads(out.read_text())["checks"]
    assert (found["compared"], found["equal"]) == (3, 2)
