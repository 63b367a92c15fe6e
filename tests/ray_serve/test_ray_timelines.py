"""The script that kills a replica under load and replaces all of them holds its checks; it prints the timeline."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ray_serve.ports import ports_of


@pytest.mark.timeout(900)
def test_a_killed_replica_takes_its_own_streams_and_replacing_all_takes_none() -> None:
    script = Path(__file__).parent / "timelines.py"
    environ = {**os.environ, **ports_of(1)}  # the other tests' cluster may be up
    command = [sys.executable, str(script), "--before-s", "5"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-2000:]}"
