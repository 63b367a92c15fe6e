"""Who answers are compared with, other than the server under test itself."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from livery_loadtest.peers.launching import model_directory
from livery_loadtest.peers.peft import VARIABLES, ensure_peft, peft_command
from livery_loadtest.servers import LaunchedServer, LaunchSpec, free_port
from livery_loadtest.session import Served, find_served
from livery_loadtest.target import Target

PEFT = "peft"
READY_S = 600.0
ROWS = 16


@contextmanager
def reference(said: str | None, model: str, adapters: Path | None) -> Iterator[Served | None]:
    """The reference that an option names; PEFT's plain loop is started, and stopped at the end.

    Raises ValueError, TargetUnusable, ServerFailed, EnvironmentFailed.
    """
    if said is None:
        yield None
    elif said != PEFT:
        yield asyncio.run(find_served(Target("the reference", said)))
    else:
        if adapters is None:
            raise ValueError(
                "--compare-with peft needs --reference-adapters DIRECTORY, with a directory for each adapter"
            )
        ensure_peft()
        found = {path.parent.name: path.parent for path in sorted(adapters.glob("*/adapter_config.json"))}
        if not found:
            raise ValueError(f"--reference-adapters {adapters}: no directory in it has an adapter_config.json")
        port = free_port()
        command = peft_command(model_directory(model), model, port, found, merge=False, streams=ROWS)
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "peft.log"
            spec = LaunchSpec(PEFT, command, f"http://127.0.0.1:{port}", log, VARIABLES, expects=frozenset(found))
            with LaunchedServer(spec) as server:
                server.wait_ready(READY_S, Console(stderr=True))
                yield asyncio.run(find_served(Target("PEFT", spec.url)))
