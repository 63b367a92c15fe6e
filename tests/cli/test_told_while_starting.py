"""`livery serve` is told to stop while it fetches its model."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from adapters.hub_server import REPO, HubServer, hang
from cli.processes import ENVIRON
from foreign_parts import lacking

NAMESPACE = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child")
REMEDY = (
    "a process that is the first of its namespace can't be had: install unshare (util-linux), and allow it "
    "(sysctl kernel.apparmor_restrict_unprivileged_userns=0)"
)


def namespace() -> Sequence[str]:
    allowed = shutil.which(NAMESPACE[0]) and not subprocess.run([*NAMESPACE, "true"], check=False).returncode
    return NAMESPACE if allowed else lacking(REMEDY)


@pytest.mark.parametrize("first", [True, False], ids=["as process 1", "as any process"])
def test_sigterm_while_the_model_is_fetched_ends_it_with_143(first: bool, hub: HubServer, tmp_path: Path) -> None:
    """The first process of a container has no default for SIGTERM; and threads that download are not waited for."""
    before = namespace() if first else ()
    fetching = threading.Event()

    def hanging(handler: BaseHTTPRequestHandler) -> None:
        fetching.set()
        hang(hub, b"1")(handler)

    hub.push({"config.json": b"{}", "model.safetensors": bytes(1000)})
    hub.special["model.safetensors"] = [hanging] * 9
    command = [*before, sys.executable, "-m", "livery", "serve", "--model", REPO, "--port", "0"]
    environ = {**ENVIRON, **os.environ, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0"}
    with subprocess.Popen([*command, "--data", str(tmp_path / "data")], env=environ) as process:
        try:
            assert fetching.wait(60)
            served = process.pid
            if first:
                (served,) = map(int, Path(f"/proc/{served}/task/{served}/children").read_text().split())
            os.kill(served, signal.SIGTERM)
            assert process.wait(30) == 143
        finally:
            process.kill()
