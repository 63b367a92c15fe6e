"""The peer everybody has: PEFT with transformers, a plain loop around `generate`, in this Python's own environment."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path

from livery_loadtest.peers import EnvironmentFailed
from livery_loadtest.peers.device import Device

REMEDY = "install it beside Livery: pip install 'livery[train]'"
ON_CUDA = {"TOKENIZERS_PARALLELISM": "false"}
# Passive waiting leaves the second core to the client between batches; spinning threads would fight it.
VARIABLES = {"OMP_WAIT_POLICY": "passive", **ON_CUDA}


def ensure_peft() -> None:
    """Raises EnvironmentFailed where PEFT isn't installed."""
    if importlib.util.find_spec("peft") is None:
        raise EnvironmentFailed(f"PEFT is not installed; {REMEDY}")


def peft_command(
    model: Path,
    name: str,
    port: int,
    adapters: Mapping[str, Path],
    merge: bool,
    streams: int,
    device: Device = Device.CPU,
) -> list[str]:
    """The command line of the plain loop on 127.0.0.1; up to `streams` rows in a batch, on all cores or on a GPU."""
    command = [sys.executable, "-m", "livery_loadtest.peers.peft_server", "--model", str(model), "--name", name]
    command += ["--port", str(port), "--batch", str(streams), "--device", str(device), "--dtype", device.dtype]
    for adapter, path in adapters.items():
        command += ["--adapter", f"{adapter}={path}"]
    return [*command, "--merge"] if merge else command
