"""inference-perf: traffic split between adapters, streamed, with a report for each of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from served import ADAPTERS, BASE, MODEL_FOLDER, URL

PROGRAM = Path(sys.executable).parent / "inference-perf"
REQUESTS = 40
TOKENS = 12
SPLIT = {ADAPTERS[0]: 0.5, ADAPTERS[1]: 0.25, ADAPTERS[2]: 0.25}


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What it wrote after a short run: reports by file name."""
    folder = tmp_path_factory.mktemp("inference-perf")
    (folder / "config.yml").write_text(yaml.safe_dump(config(folder)))
    command = [str(PROGRAM), "--config_file", str(folder / "config.yml")]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-4000:]
    return {file.stem: json.loads(file.read_text()) for file in (folder / "reports").glob("*.json")}


def config(folder: Path) -> dict[str, Any]:
    def fixed(length: int) -> dict[str, Any]:
        return {"type": "fixed", "min": length, "max": length, "mean": length, "std_dev": 0, "total_count": REQUESTS}

    return {
        "load": {
            "type": "concurrent",
            "stages": [{"num_requests": REQUESTS, "concurrency_level": 8}],
            "num_workers": 1,
            "base_seed": 7,
            "lora_traffic_split": [{"name": name, "split": split} for name, split in SPLIT.items()],
        },
        "api": {"type": "completion", "streaming": True},
        "server": {"type": "vllm", "model_name": BASE, "base_url": URL, "ignore_eos": True},
        "tokenizer": {"pretrained_model_name_or_path": MODEL_FOLDER},
        "data": {"type": "random", "input_distribution": fixed(24), "output_distribution": fixed(TOKENS)},
        "storage": {"local_storage": {"path": str(folder / "reports")}},
        "report": {"request_lifecycle": {"summary": True, "per_adapter": True}},
    }


def test_every_request_succeeds(reports: dict[str, Any]) -> None:
    summary = reports["summary_lifecycle_metrics"]
    assert summary["failures"]["count"] == 0
    assert summary["successes"]["count"] == REQUESTS


@pytest.mark.parametrize("adapter", SPLIT)
def test_an_adapter_gets_its_share(reports: dict[str, Any], adapter: str) -> None:
    """The client draws the adapter of each request; with its fixed seed shares are near those asked for."""
    report = reports[f"adapter_{adapter}_lifecycle_metrics"]
    assert report["failures"]["count"] == 0
    assert report["successes"]["count"] == pytest.approx(SPLIT[adapter] * REQUESTS, abs=8)


def test_the_shares_make_up_the_whole(reports: dict[str, Any]) -> None:
    counts = [report["successes"]["count"] for name, report in reports.items() if name.startswith("adapter_")]
    assert sum(counts) == REQUESTS
