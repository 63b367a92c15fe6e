"""The environment that the ways are tried in, which is that of `make test-train`: what trains, and bitsandbytes.

python = environment(Console())      # its interpreter; built once, in the user's cache
"""

from __future__ import annotations

import os
from pathlib import Path

from rich.console import Console

from conformance.environments import Suite
from training.run import LIBRARIES, OWN

ROOT = Path(__file__).parents[2]


def environment(console: Console) -> str:
    """Raises conformance.environments.PartMissing and livery_loadtest.peers.EnvironmentFailed."""
    suite = Suite("ways", server="", tests="", python=LIBRARIES, borrows=True)
    suite.ensure(console)
    return str(suite.folder / "bin" / "python")


def paths() -> dict[str, str]:
    """What a process of that environment is given to find this project."""
    return {"PYTHONPATH": os.pathsep.join(str(ROOT / name) for name in OWN)}
