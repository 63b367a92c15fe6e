"""Livery and its peers on one machine in one run: launch all, measure them in turn, stop them.

Livery is started by its own command, as a user would start it; nothing of it is imported here.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import dropwhile
from pathlib import Path
from typing import Any

from rich.console import Console

from livery_loadtest.machine import has_amx
from livery_loadtest.peers.device import KV_GIB, Device
from livery_loadtest.peers.llama_cpp import LlamaCppEnvironment, llama_cpp_command, lora_fields
from livery_loadtest.peers.peft import ON_CUDA, VARIABLES, ensure_peft, peft_command
from livery_loadtest.peers.vllm import (
    PRIVATE,
    VllmEnvironment,
    suited_to_cpu,
    vllm_command,
    vllm_memory,
    vllm_variables,
)
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
from livery_loadtest.target import Target

FIND_MODEL = "import sys; from livery.models import resolve_model; print(resolve_model(sys.argv[1]).path)"
FIND_GGUF = "import sys; from livery.models import gguf_file; print(gguf_file(sys.argv[1]))"

LIVERY, VLLM, VLLM_PLAIN, LLAMA_CPP = "livery", "vllm", "vllm-no-lora", "llama.cpp"
PEFT_MIXED, PEFT_MERGED = "peft", "peft-merged"
SERVERS = (LIVERY, VLLM, VLLM_PLAIN, LLAMA_CPP, PEFT_MIXED, PEFT_MERGED)
# What each peer is given beyond its defaults, so that it is seen at its best.
WHY = {
    VLLM: (
        "LoRA only on the modules that the adapters have, all of them resident, slots and rank no larger than theirs: "
        "by default it wraps embedding and head as well and reads every adapter padded. {how}. Intel's OpenMP and "
        "tcmalloc preloaded, as its manual says."
    ),
    VLLM_PLAIN: "the same without LoRA support: what its base costs when nothing is to be adapted",
    LLAMA_CPP: (
        "4-bit weights, a slot for every stream, all cores; adapters loaded once and chosen by each request. Without "
        "its prompt cache in memory, as no prompt comes twice."
    ),
    PEFT_MIXED: "all that waits in one batch with `adapter_names`, up to as many rows as there are streams",
    PEFT_MERGED: "what waits for one adapter in one batch, its weights merged meanwhile: tokens cost no more, but wait",
}
WITH_AMX = "bf16 and threads on all cores, which are faster than fp32 and a core for its scheduler where there is AMX"
WITHOUT_AMX = "fp32 and a core for its scheduler, since this build's bf16 is slower where there is no AMX"
# What of that is another on a GPU.
WHY_ON_CUDA = {
    VLLM: (
        "LoRA only on the modules that the adapters have, all of them resident, slots and rank no larger than theirs: "
        "by default it wraps embedding and head as well and reads every adapter padded. bf16, as all servers here; as "
        "much memory for keys and values as Livery has, since they share the GPU."
    ),
    LLAMA_CPP: (
        "4-bit weights, all layers on the GPU, a slot for every stream; adapters loaded once and chosen by each "
        "request. Without its prompt cache in memory, as no prompt comes twice."
    ),
}
VARIABLE = re.compile(r"[A-Za-z_]\w*=")
NO_NVCC = "Built for the CPU, since CUDA's compiler, nvcc, isn't there. "


@dataclass(frozen=True, slots=True)
class PeersSetup:
    """What to launch and how. `folder` keeps adapters and logs; extra arguments go to the servers as they are.

    `variants` are more Livery servers: what to add to the name -> arguments. `vllm_variants` are more of vLLM's, with
    adapters; their arguments may begin with NAME=VALUE, variables of that server.
    """

    model: str
    folder: Path
    environment: VllmEnvironment
    servers: tuple[str, ...] = SERVERS
    llama_cpp: LlamaCppEnvironment = field(default_factory=LlamaCppEnvironment)
    variants: Mapping[str, str] = field(default_factory=dict)
    vllm_variants: Mapping[str, str] = field(default_factory=dict)
    adapters: int = 8
    rank: int = 16
    streams: int = 16
    bind: str = ""  # vLLM's threads on a CPU; as suits it unless given
    device: Device = Device.CPU
    dtype: str = ""  # vLLM's; as suits it unless given
    sleep: Sleep = Sleep.AUTO
    start_timeout: float = 600.0
    livery_arguments: str = ""
    vllm_arguments: str = ""
    llama_cpp_arguments: str = ""


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
        return sorted(set().union(*(server.spec.expects | set(server.spec.fields) for server in self.servers)))

    @property
    def targets(self) -> list[Target]:
        """The servers as targets, in the order they were started."""
        specs = [server.spec for server in self.servers]
        return [Target(spec.name, spec.url, spec.models, spec.fields) for spec in specs]

    def stage(self) -> SleepingStage:
        """Wakes all servers; from then on only those sleep that the setup says."""
        for server in self.servers:
            server.wake()
        return SleepingStage(self.servers, self.setup.sleep)

    def why(self, name: str) -> str:
        """Why a server was started as it was."""
        if self.setup.device is not Device.CUDA:
            return WHY.get(name, "").format(how=WITH_AMX if has_amx() else WITHOUT_AMX)
        if name == LLAMA_CPP and self.setup.llama_cpp.device is not Device.CUDA:
            return NO_NVCC + WHY[LLAMA_CPP]
        return WHY_ON_CUDA.get(name, WHY.get(name, ""))

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
    """Prepare everything the servers need (model, adapters, the peers' environments); starts none of them."""
    model = model_directory(setup.model)
    folder = setup.folder / f"adapters-{model.name}-{setup.adapters}x{setup.rank}"
    with console.status(f"writing {setup.adapters} random adapters of rank {setup.rank}"):
        adapters = write_random_adapters(model, folder, setup.adapters, setup.rank)
    if {VLLM, VLLM_PLAIN} & set(setup.servers):
        setup.environment.ensure(console)
    specs = []
    for server in setup.servers:
        if server == LIVERY:
            told_by = _told_by("--livery-arguments", setup.livery_arguments)
            specs.append(_livery_spec(setup, LIVERY, folder, adapters, setup.livery_arguments, told_by))
            for name, arguments in setup.variants.items():
                told_by = _told_by("--livery-variant", f"{name}={arguments}")
                specs.append(_livery_spec(setup, f"{LIVERY}-{name}", folder, adapters, arguments, told_by))
        elif server == LLAMA_CPP:
            setup.llama_cpp.ensure(console)
            converted = setup.llama_cpp.converted(model, adapters, folder.with_name(f"{folder.name}-gguf"), console)
            specs.append(_llama_cpp_spec(setup, model, converted))
        elif server in (PEFT_MIXED, PEFT_MERGED):
            ensure_peft()
            specs.append(_peft_spec(setup, server, model, adapters))
        else:
            told_by = _told_by("--vllm-arguments", setup.vllm_arguments)
            specs.append(_vllm_spec(setup, server, model, adapters, setup.vllm_arguments, told_by))
            if server == VLLM:
                for name, arguments in setup.vllm_variants.items():
                    told_by = _told_by("--vllm-variant", f"{name}={arguments}")
                    specs.append(_vllm_spec(setup, f"{VLLM}-{name}", model, adapters, arguments, told_by))
    return specs


def _told_by(option: str, given: str) -> str:
    """An option and what it was given, for the message of a server that doesn't start."""
    return f"{option} {given!r}" if given else ""


def _livery_spec(
    setup: PeersSetup, name: str, folder: Path, adapters: Mapping[str, Path], arguments: str, told_by: str
) -> LaunchSpec:
    port = free_port()
    command = livery_command(setup.model, folder, setup.folder / f"{name}-data", port)
    if setup.device is Device.CUDA:
        command += ["--device", setup.device, "--dtype", setup.device.dtype, "--kv-memory", f"{KV_GIB}GiB"]
    command += shlex.split(arguments)
    log = setup.folder / f"{name}.log"
    return LaunchSpec(name, command, _url(port), log, ready="/ready", expects=frozenset(adapters), told_by=told_by)


def _vllm_spec(
    setup: PeersSetup, server: str, model: Path, adapters: Mapping[str, Path], arguments: str, told_by: str
) -> LaunchSpec:
    port = free_port()
    loaded = {} if server == VLLM_PLAIN else adapters
    own, added = split_variables(arguments)
    python = setup.environment.python
    name = _public_name(setup, model)
    on_gpu = setup.device is Device.CUDA
    dtype, bind = (setup.device.dtype, "") if on_gpu else suited_to_cpu()
    dtype, bind = setup.dtype or dtype, setup.bind or bind
    command = vllm_command(python, model, name, port, loaded, setup.rank, setup.streams, dtype)
    if on_gpu:
        command += vllm_memory(len(setup.servers) + len(setup.variants) + len(setup.vllm_variants))
        variables = PRIVATE
    else:
        variables = vllm_variables(setup.environment.folder, bind)
    command += added  # a later --dtype wins over the one above
    log = setup.folder / f"{server}.log"
    return LaunchSpec(server, command, _url(port), log, variables | own, expects=frozenset(loaded), told_by=told_by)


def split_variables(arguments: str) -> tuple[dict[str, str], list[str]]:
    """The NAME=VALUE words that a line of arguments begins with, and the rest, as a shell reads them."""
    words = shlex.split(arguments)
    rest = list(dropwhile(VARIABLE.match, words))
    return dict(word.split("=", 1) for word in words[: len(words) - len(rest)]), rest


def _llama_cpp_spec(setup: PeersSetup, model: Path, adapters: Mapping[str, Path]) -> LaunchSpec:
    port = free_port()
    name = _public_name(setup, model)
    files = list(adapters.values())
    program, device = setup.llama_cpp.server, setup.llama_cpp.device
    command = llama_cpp_command(program, gguf_file(setup.model), name, port, files, setup.streams, device)
    command += shlex.split(setup.llama_cpp_arguments)
    models = (name, *adapters)
    log, told_by = setup.folder / f"{LLAMA_CPP}.log", _told_by("--llama-cpp-arguments", setup.llama_cpp_arguments)
    fields = lora_fields(name, list(adapters))
    return LaunchSpec(LLAMA_CPP, command, _url(port), log, models=models, fields=fields, told_by=told_by)


def _peft_spec(setup: PeersSetup, server: str, model: Path, adapters: Mapping[str, Path]) -> LaunchSpec:
    port = free_port()
    name, merge = _public_name(setup, model), server == PEFT_MERGED
    command = peft_command(model, name, port, adapters, merge, setup.streams, setup.device)
    variables = ON_CUDA if setup.device is Device.CUDA else VARIABLES
    log = setup.folder / f"{server}.log"
    return LaunchSpec(server, command, _url(port), log, variables, expects=frozenset(adapters))


def _public_name(setup: PeersSetup, model: Path) -> str:
    return model.name if Path(setup.model).expanduser().is_dir() else setup.model


def _url(port: int) -> str:
    return f"http://127.0.0.1:{port}"


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
    return path.resolve() if path.is_dir() else _found(FIND_MODEL, model)


def gguf_file(model: str) -> Path:
    """The GGUF file behind a model's name. Raises ServerFailed."""
    return _found(FIND_GGUF, model)


def _found(script: str, model: str) -> Path:
    # A separate process: this package imports nothing of the server.
    done = subprocess.run([sys.executable, "-c", script, model], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or "no reason given").splitlines()[-1]
        raise ServerFailed(f"model {model!r} can't be found: {reason}")
    return Path(done.stdout.strip().splitlines()[-1])
