"""The chaos suite on a live server: the engine is killed and stopped, errors are told by kind, and it comes back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from openai import OpenAI
from peft import LoraConfig

from engine.families import LLAMA_LINEAR
from engine.oracle import save_adapter
from livery_loadtest.commands.ending import Exit
from livery_loadtest.report.result import Result, read_result
from loadtest.test_report_page import self_contained
from server.running import SMALL, RunningServer, livery_serve, tiny_model

pytestmark = pytest.mark.bench

# Three seconds each in place of 150, and 15 requests a second, so that some come while there is no engine.
SHORT = ("--time", "0.02", "--capacity", "30")


def chaos(server: RunningServer, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "livery_loadtest", "suite", "chaos", "--url", f"livery={server.url}", *SHORT]
    environment = {**os.environ, "SERVER_PID": str(server.pid), "COLUMNS": "200"}
    return subprocess.run(
        [*command, "--out", str(folder), *options], env=environment, capture_output=True, text=True, timeout=200
    )


def hooks(result: Result) -> list[tuple[str, int | None]]:
    return [(hook.name, hook.status) for repeat in result.repeats for hook in repeat.hooked]


def test_a_killed_and_a_stopped_engine_cost_errors_by_kind_and_nothing_else(tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "tiny")
    config = LoraConfig(r=4, target_modules=LLAMA_LINEAR, task_type="CAUSAL_LM")
    for seed, name in enumerate(("red", "blue")):
        save_adapter(base, tmp_path / "adapters" / name, seed, config)
    with livery_serve(base, tmp_path / "adapters", tmp_path, *SMALL) as server:
        done = chaos(server, tmp_path / "out", "--allow-hooks", "--allow-errors")
        client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=20)  # as long as it is told to wait
        assert client.completions.create(model="red", prompt="And now?", max_tokens=2).usage.completion_tokens == 2
    assert done.returncode in (Exit.FINE, Exit.INVALID), done.stderr
    killed, stopped = (read_result(tmp_path / "out" / f"engine-{what}.json") for what in ("killed", "stopped"))
    assert hooks(killed) == [("kill the engine", 0)]
    assert hooks(stopped) == [("stop the engine", 0), ("let it go on", 0)]
    (summary,) = killed.summary
    assert summary.completed and summary.completed + summary.failed == summary.requests, "every request came to an end"
    kinds = {error.kind: error.count for error in summary.errors}
    assert kinds["http 503"] and kinds.keys() <= {"http 503", "error event"}, kinds
    assert sum(kinds.values()) == summary.failed
    text = self_contained((tmp_path / "out" / "index.html").read_text()).text
    for kind, count in kinds.items():
        assert f"livery: {count} × {kind}" in done.stdout
        assert kind in text
    assert "kill the engine" in text and "stop the engine" in text
