"""Which machine a measurement was made on."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

DRIVER_S = 30.0  # a driver that nobody uses at the moment takes seconds to begin


@dataclass(frozen=True, slots=True)
class Machine:
    """The facts a reader needs to place a number. `load_average` is the one-minute value at the start.

    `gpus` are NVIDIA's, by name; a client doesn't compute on them, but servers beside it may.
    """

    cpu: str
    cores: int
    memory_gib: float
    system: str
    python: str
    load_average: float
    gpus: tuple[str, ...] = ()


def describe_machine() -> Machine:
    """This machine; `cores` are those this process may run on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return Machine(
        cpu=_cpu_model(),
        cores=usable_cores(),
        memory_gib=round(memory, 1),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        load_average=os.getloadavg()[0],
        gpus=nvidia_gpus(),
    )


def nvidia_gpus() -> tuple[str, ...]:
    """The names of the GPUs that NVIDIA's driver lists; none where there is no driver, or none that answers."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=DRIVER_S)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return tuple(line.strip() for line in done.stdout.splitlines() if line.strip()) if done.returncode == 0 else ()


def usable_cores() -> int:
    """The cores that this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def has_amx(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the CPU multiplies tiles of bf16 matrices by instructions of its own (Intel's AMX)."""
    try:
        return "amx_tile" in cpuinfo.read_text()
    except OSError:
        return False


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
