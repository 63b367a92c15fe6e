"""Livery and vLLM on one machine in one run: launch both, measure them in turn, stop them.

Livery is started by its own command, as a user would start it; nothing of it is imported here.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from livery_loadtest.client import Target
from livery_loadtest.peers import VllmEnvironment, vllm_command, vllm_variables
from livery_loadtest.random_adapters import write_random_adapters
from livery_loadtest.servers import (
    LaunchedServer,
    LaunchSpec,
    ServerFailed,
    Sleep,
    SleepingStage,
    free_port,
    memory_mib,
)

FIND_MODEL = "import sys; from livery.models import resolve_model; print(resolve_model(sys.argv[1]).path)"

LIVERY, VLLM, VLLM_PLAIN = "livery", "vllm", "vllm-no-lora"


@dataclass(frozen=True, slots=True)
class PeersSetup:
    """What to launch and how. `folder` keeps adapters and logs; extra arguments go to the servers as they are."""

    model: str
    folder: Path
    environment: VllmEnvironment
    servers: tuple[str, ...] = (LIVERY, VLLM, VLLM_PLAIN)
    adapters: int = 8
    rank: int = 16
    streams: int = 16
    bind: str = "auto"
    dtype: str = "float32"
    sleep: Sleep = Sleep.AUTO
    start_timeout: float = 600.0
    livery_arguments: str = ""
    vllm_arguments: str = ""


class SideBySide:
    """The launched servers, all up and idle; use as a context manager, which stops them."""

    def __init__(self, setup: PeersSetup, console: Console) -> None:
        self.setup = setup
        self.console = console
        self.servers: list[LaunchedServer] = []
        self._stack = ExitStack()

    def __enter__(self) -> SideBySide:
        with ExitStack() as stack:
            for spec in launch_specs(self.setup, self.console):
                server = stack.enter_context(LaunchedServer(spec))
                self.servers.append(server)
                server.wait_ready(self.setup.start_timeout, self.console)
                share = server.watch_idle()
                self.console.print(f"{spec.name} uses {100 * share:.0f} % of a core while idle")
                if self.setup.sleep is not Sleep.NEVER:
                    server.sleep()  # the next one starts undisturbed
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_exit: object) -> None:
        self._stack.close()

    @property
    def adapters(self) -> list[str]:
        """The names of the adapters every server with adapters has."""
        return sorted(set().union(*(server.spec.expects for server in self.servers)))

    @property
    def targets(self) -> list[Target]:
        """The servers as targets, in the order they were started."""
        return [Target(server.spec.name, server.spec.url) for server in self.servers]

    def stage(self) -> SleepingStage:
        """Wakes all servers; from then on only those sleep that the setup says."""
        for server in self.servers:
            server.wake()
        return SleepingStage(self.servers, self.setup.sleep)

    def facts(self, stage: SleepingStage) -> dict[str, Any]:
        """For the report: each server's command, variables, start-up time, memory now, CPU use out of turn.

        The user's home folder is written as ~, so that a report can be shown around.
        """
        home = str(Path.home())
        return {
            server.spec.name: {
                "command": shlex.join(server.spec.command).replace(home, "~"),
                "environment": {key: value.replace(home, "~") for key, value in server.spec.environment.items()},
                "ready_seconds": round(server.ready_seconds, 1),
                "idle_core_share": round(server.idle_share, 3),
                "cpu_seconds_out_of_turn": round(stage.disturbance[server.spec.name], 2),
                "memory_mib": round(memory_mib(server.process.pid), 1),
            }
            for server in self.servers
        }


def launch_specs(setup: PeersSetup, console: Console) -> list[LaunchSpec]:
    """Prepare everything the servers need (model, adapters, vLLM's environment); starts none of them."""
    model = model_directory(setup.model)
    name = setup.model if not Path(setup.model).is_dir() else model.name
    folder = setup.folder / f"adapters-{model.name}-{setup.adapters}x{setup.rank}"
    with console.status(f"writing {setup.adapters} random adapters of rank {setup.rank}"):
        adapters = write_random_adapters(model, folder, setup.adapters, setup.rank)
    if set(setup.servers) - {LIVERY}:
        setup.environment.ensure(console)
    return [_launch_spec(setup, server, model, name, folder, adapters) for server in setup.servers]


def _launch_spec(
    setup: PeersSetup, server: str, model: Path, name: str, folder: Path, adapters: Mapping[str, Path]
) -> LaunchSpec:
    port = free_port()
    url, log = f"http://127.0.0.1:{port}", setup.folder / f"{server}.log"
    if server == LIVERY:
        command = livery_command(setup.model, folder, setup.folder / "livery-data", port)
        command += shlex.split(setup.livery_arguments)
        return LaunchSpec(server, command, url, log, ready="/ready", expects=frozenset(adapters))
    loaded = adapters if server == VLLM else {}
    python = setup.environment.python
    command = vllm_command(python, model, name, port, loaded, setup.rank, setup.streams, setup.dtype)
    command += shlex.split(setup.vllm_arguments)
    variables = vllm_variables(setup.environment.folder, setup.bind)
    return LaunchSpec(server, command, url, log, variables, expects=frozenset(loaded))


def livery_command(model: str, adapters: Path, data: Path, port: int) -> list[str]:
    """The command line of a Livery server, by the `livery` command beside this interpreter."""
    beside = Path(sys.executable).parent / "livery"
    program = str(beside) if beside.is_file() else shutil.which("livery")
    if program is None:
        raise ServerFailed("the command `livery` is not installed beside this Python; run: pip install livery")
    command = [program, "serve", "--model", model, "--adapters", str(adapters)]
    return [*command, "--data", str(data), "--port", str(port)]


def model_directory(model: str) -> Path:
    """The directory of a model: itself, or what Livery's own lookup finds for a name. Raises ServerFailed."""
    path = Path(model).expanduser()
    if path.is_dir():
        return path.resolve()
    # A separate process: this package imports nothing of the server.
    done = subprocess.run([sys.executable, "-c", FIND_MODEL, model], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or "no reason given").splitlines()[-1]
        raise ServerFailed(f"model {model!r} can't be found: {reason}")
    return Path(done.stdout.strip().splitlines()[-1])
