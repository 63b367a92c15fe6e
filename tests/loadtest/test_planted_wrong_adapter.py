"""A server that mixes adapters up under load, or drops them, is found out by `--verify`; a sound one isn't accused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from peft import LoraConfig

from engine.families import LLAMA_LINEAR
from engine.oracle import save_adapter
from livery_loadtest.session import MOST_SUSPECTS
from server.running import SMALL, livery_serve, tiny_model

pytestmark = pytest.mark.bench

PLANTED = str(Path(__file__).parent / "planted.py")
WORKLOAD = {
    "name": "mixed",
    "arrivals": {"kind": "closed", "streams": 6},
    "requests": 24,
    "warm_up": 0,
    "popularity": {"kind": "distinct"},
    "prompt": {"kind": "fixed", "tokens": 12},
    "output": {"kind": "fixed", "tokens": 16},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny base and a folder with three adapters."""
    folder = tmp_path_factory.mktemp("planted")
    base = tiny_model(folder / "tiny")
    config = LoraConfig(r=4, target_modules=LLAMA_LINEAR, task_type="CAUSAL_LM")
    for seed, name in enumerate(("red", "green", "blue")):
        save_adapter(base, folder / "adapters" / name, seed, config)
    return base, folder / "adapters"


def run_against(url: str, folder: Path, *options: str) -> tuple[int, dict[str, Any]]:
    """The load test's exit status, and its document."""
    (folder / "mixed.yaml").write_text(yaml.safe_dump(WORKLOAD))
    command = [sys.executable, "-m", "livery_loadtest", "run", str(folder / "mixed.yaml"), "--target", f"livery={url}"]
    command += ["--repeats", "1", "--out", str(folder / "out"), "--verify", "24", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert (folder / "out" / "mixed.json").is_file(), done.stderr[-2000:]
    return done.returncode, json.loads((folder / "out" / "mixed.json").read_bytes())


def findings(document: dict[str, Any]) -> list[str]:
    return [one["finding"] for one in document["verified"]["livery"]["compared"]]


def compared_under(bug: str, models: tuple[Path, Path], folder: Path) -> tuple[list[Any], list[Any]]:
    """All answers that were asked again of a server with this bug, which the run must be failed for; the accused."""
    base, adapters = models
    with livery_serve(base, adapters, folder, *SMALL, program=[PLANTED, bug]) as server:
        status, document = run_against(server.url, folder)
    assert status == 1
    compared = document["verified"]["livery"]["compared"]
    return compared, [one for one in compared if one["finding"] == "wrong adapter"]


def test_a_mix_up_is_found_by_asking_the_same_server_when_it_is_quiet(
    models: tuple[Path, Path], tmp_path: Path
) -> None:
    _, wrong = compared_under("mixed", models, tmp_path)
    assert wrong
    assert all(one["as_of"] in {"red", "green", "blue"} - {one["model"]} for one in wrong)


def test_adapters_that_are_dropped_under_load_are_found_though_nobody_asked_for_the_base(
    models: tuple[Path, Path], tmp_path: Path
) -> None:
    compared, wrong = compared_under("dropped", models, tmp_path)
    assert not {one["model"] for one in compared} & {"tiny"}
    assert MOST_SUSPECTS // 2 < len(wrong) <= MOST_SUSPECTS
    assert {one["as_of"] for one in wrong} == {"tiny"}


def test_a_sound_server_is_cleared_by_peft(models: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapters = models
    with livery_serve(base, adapters, tmp_path, *SMALL) as server:
        peft = ["--compare-with", "peft", "--reference-model", str(base), "--reference-adapters", str(adapters)]
        status, document = run_against(server.url, tmp_path, *peft)
    assert set(findings(document)) == {"same"}
    assert document["verified"]["livery"]["reference"] == "PEFT"
    assert status in (0, 3)  # 3: the machine was too busy for its times to count, which isn't what this is about
