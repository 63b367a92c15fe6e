"""What an engine's process writes to its log about a failure names the requests that it hit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.families import save
from engine.faults import cause
from engine.supervised import config, greedy, outcome, supervised
from livery import logs
from livery.engine.base import AdapterRef, EngineError


async def test_json_lines_hold_the_ids_of_the_requests_concerned(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    talking = msgspec.structs.replace(config(save("llama", tmp_path / "model")), log_format="json", log_level="warning")
    async with supervised(talking, tmp_path / "faults") as started:
        cause(started.faults, "disk")
        cold = greedy("cold-1", AdapterRef.of("b" * 64, str(tmp_path / "adapter")))
        (ended,) = [delta async for delta in started.engine.generate(cold)]
        assert ended.error is not None
        cause(started.faults, "device")
        assert isinstance(await outcome(started.engine, greedy("stepped-1")), EngineError)
    lines = written(capfd.readouterr().err)
    assert not any("request_id" in line for line in lines)  # that of one, which the server's lines have
    (unread,) = [line for line in lines if "can't be loaded" in line["message"]]
    assert unread["request_ids"] == ["cold-1"] and "cold-1" in unread["message"]
    (failed,) = [line for line in lines if line["message"].startswith("a step failed")]
    assert failed["request_ids"] == ["stepped-1"] and "stepped-1" in failed["message"]
    assert failed["level"] == "error" and "asked for by a test" in failed["traceback"]


def written(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith('{"time"')]


def test_a_line_names_so_many_requests_and_no_more() -> None:
    ids = [f"r{number}" for number in range(logs.NAMED_REQUESTS + 2)]
    assert logs.of_requests(ids) == {"fields": {"request_ids": ids[:-2]}}
    assert logs.listed(ids).endswith(f"{ids[-3]} and 2 more")
    assert logs.of_requests([]) == {"fields": {}} and logs.listed(ids[:2]) == "r0, r1"
