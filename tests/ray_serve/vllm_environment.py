"""An environment with Livery, vLLM and Ray: the one of `make test-vllm`, borrowed, and Ray installed beside it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from engine_vllm.run import ServerEnvironment
from livery_loadtest.peers import MARKER
from livery_loadtest.peers.vllm import VllmEnvironment, default_environment
from ray_serve.run import RAY


def vllm_beside_ray() -> tuple[Path, dict[str, str]] | None:
    """Its interpreter and the variables it needs, built where it isn't there; None without vLLM's environment.

    Raises CalledProcessError.
    """
    server = ServerEnvironment(VllmEnvironment(default_environment()))
    if not (server.folder / MARKER).is_file():
        return None
    folder = server.folder.with_name(f"{server.folder.name}-ray")
    python = folder / "bin" / "python"
    if not (folder / MARKER).is_file():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        lenders = (server.folder, server.vllm.folder)
        borrowed = [path for one in lenders for path in one.glob("lib/python3*/site-packages")]
        for packages in folder.glob("lib/python3*/site-packages"):
            (packages / "borrowed.pth").write_text("\n".join(map(str, borrowed)))
        # What is borrowed counts as installed: only what it lacks is.
        subprocess.run([str(python), "-m", "pip", "install", "--disable-pip-version-check", RAY], check=True)
        (folder / MARKER).touch()
    return python, server.variables()
