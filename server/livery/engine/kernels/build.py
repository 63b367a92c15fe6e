"""Compiles the C++ kernels on first use and keeps the result for the next start.

Owns the compiler call and the cache of shared libraries, keyed by everything that could change the code: sources,
flags, compiler version, CPU features. Knows nothing of what the kernels compute.
"""

from __future__ import annotations

import functools
import hashlib
import platform
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from livery.engine.compiler import BuildFailed, find_compiler, run
from livery.host import cores
from livery.models import cache_dir

SOURCES = ("lora.cpp", "attention.cpp", "linear.cpp", "rows.cpp", "decoder.cpp", "measure.cpp")
HEADERS = ("vec.hpp", "tiles.hpp", "panels.hpp", "team.hpp", "rows.hpp", "linear.hpp", "lora.hpp", "attention.hpp")
_BASE_FLAGS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-fopenmp", "-shared", "-fPIC", "-Wno-psabi")
# A $CXX that is a C compiler (`gcc`) links no C++ library of its own accord, and the result can't be loaded.
_LIBRARIES = ("-lstdc++",) if platform.system() == "Linux" else ()


@dataclass(frozen=True, slots=True)
class Library:
    """A compiled kernel library and what made it."""

    path: Path
    compiler: str  # first line of `compiler --version`
    flags: str


def build(folder: Path | None = None) -> Library:
    """Compile the kernels, or find them compiled already. Takes seconds the first time.

    Several processes may build at once: each compiles to a file of its own and renames it into place. `folder`
    is where libraries are kept (default: the user's cache). Raises BuildFailed.
    """
    compiler = find_compiler()
    command = list(compiler.command)
    flags = (*_BASE_FLAGS, _native_flag())
    target = (folder or cache_dir() / "kernels") / f"{_key(compiler.version, flags)}.so"
    library = Library(target, compiler.version, " ".join(flags))
    if target.is_file():
        return library
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".building-") as scratch:
            built = Path(scratch) / "kernels.so"
            compiled = functools.partial(_compile, [*command, *flags], Path(scratch))
            with ThreadPoolExecutor(max_workers=cores()) as pool:
                objects = list(pool.map(compiled, SOURCES))
            run([*command, *flags, *objects, *_LIBRARIES, "-o", str(built)])
            built.replace(target)
    except OSError as error:
        raise BuildFailed(f"kernels can't be written to {target.parent}: {error}; set LIVERY_CACHE") from error
    return library


def _compile(command: list[str], folder: Path, source: str) -> str:
    """Compile one source; the path of its object file. Raises BuildFailed."""
    result = str(folder / f"{source}.o")
    run([*command, "-c", str(Path(__file__).with_name(source)), "-o", result])
    return result


def _native_flag() -> str:
    on_arm = platform.machine().lower() in ("aarch64", "arm64")
    return "-mcpu=native" if on_arm else "-march=native"


def _key(compiler: str, flags: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for part in (compiler, *flags, *_LIBRARIES, platform.machine(), _cpu_features()):
        digest.update(part.encode() + b"\0")
    for name in (*SOURCES, *HEADERS):
        digest.update(Path(__file__).with_name(name).read_bytes() + b"\0")
    return digest.hexdigest()


def _cpu_features() -> str:
    """What `native` depends on: a home folder may be shared by machines with different processors."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
