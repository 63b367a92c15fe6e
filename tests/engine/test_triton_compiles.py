"""What the interpreter runs must also compile: Triton needs no GPU for that."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import engine.triton_under_test  # noqa: F401 (skips where there is no Triton)

pytestmark = pytest.mark.gpu


def test_every_kernel_compiles_for_hopper(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    script = Path(__file__).with_name("triton_compiled.py")
    found = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert found.returncode == 0, found.stderr
    lines = found.stdout.splitlines()
    # Weights arrive in whole lines, and tall tiles reach the matrix units of warp groups.
    large = [line for line in lines if line.startswith(("shrink", "expand", "decode", "prefill"))]
    assert len(large) == 10 and all("v4" in line or "cp.async" in line for line in large), lines
    assert sum("wgmma" in line for line in lines) >= 3, lines
