"""The peer everybody has: PEFT with transformers, a plain loop around `generate`, in this Python's own environment."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path

from livery_loadtest.peers import EnvironmentFailed

REMEDY = "install it beside Livery: pip install 'livery[train]'"
# Passive waiting leaves the second core to the client between batches; spinning threads would fight it.
VARIABLES = {"OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false"}


def ensure_peft() -> None:
    """Raises EnvironmentFailed where PEFT isn't installed."""
    if importlib.util.find_spec("peft") is None:
        raise EnvironmentFailed(f"PEFT is not installed; {REMEDY}")


def peft_command(
    model: Path, name: str, port: int, adapters: Mapping[str, Path], merge: bool, streams: int
) -> list[str]:
    """The command line of the plain loop on 127.0.0.1; up to `streams` rows in a batch, all cores compute."""
    command = [sys.executable, "-m", "livery_loadtest.peers.peft_server", "--model", str(model), "--name", name]
    command += ["--port", str(port), "--batch", str(streams)]
    for adapter, path in adapters.items():
        command += ["--adapter", f"{adapter}={path}"]
    return [*command, "--merge"] if merge else command
