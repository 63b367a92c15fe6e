"""The script for machines with a GPU, on a CPU: the same code at tiny shapes, with what such machines lack missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import engine.triton_under_test  # noqa: F401 (skips where there is no Triton)

pytestmark = pytest.mark.gpu

SCRIPT = Path(__file__).parents[1] / "gpu" / "run.py"
ONLY_HERE = ("fastapi", "msgspec", "orjson", "pydantic", "sqlalchemy", "typer", "uvicorn", "zmq")
HIDE = f"""
import runpy, sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {ONLY_HERE}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hidden())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("kernels", ["torch", "triton"])
def test_it_runs_where_there_is_torch_and_little_else(tmp_path: Path, kernels: str) -> None:
    options = ["--out", str(tmp_path), "--device", "cpu", "--shapes", "tiny", "--kernels", kernels]
    if kernels == "triton":  # the interpreter takes a minute for the rest, which test_triton_engine.py tests as well
        options += ["--seconds", "0"]
    environment = dict(os.environ)
    if kernels == "torch":
        del environment["TRITON_INTERPRET"]
    found = subprocess.run(
        [sys.executable, "-c", HIDE, str(SCRIPT), *options],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results["values"]) > 30 and all(check["passed"] for check in results["values"])
    if kernels == "triton":
        assert results["models"] == {}
        return
    rows = results["models"]["tiny"]["rows"]
    assert results["models"]["tiny"]["kernels"] == kernels
    parts = {"decode", "prefill", "cold/warm", "p99 between tokens, 10 loads/s", "profile"}
    assert {row["what"] for row in rows} == parts
    assert all(row["roofline"] > 0 for row in rows if row["what"] == "decode")
