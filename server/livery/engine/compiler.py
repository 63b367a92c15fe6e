"""Which C++ compiler kernels are built with here, and asking it. Imports no torch: `livery doctor` says it too."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from dataclasses import dataclass

SECONDS = 300  # for one call


class BuildFailed(Exception):
    """The kernels could not be compiled here; the message says what was tried and the remedy."""


@dataclass(frozen=True, slots=True)
class Compiler:
    """A compiler that runs here: `command` with the arguments that $CXX carries, first line of its --version."""

    command: tuple[str, ...]
    version: str


def find_compiler() -> Compiler:
    """$CXX (which may carry arguments), or the first usual compiler on the PATH. Raises BuildFailed."""
    command = _command()
    return Compiler(command, run([*command, "--version"]).splitlines()[0])


def _command() -> tuple[str, ...]:
    try:
        if configured := shlex.split(os.environ.get("CXX", "")):
            return tuple(configured)
    except ValueError as error:
        raise BuildFailed(f"CXX is {os.environ['CXX']!r}: {error}; set it to a compiler's command") from None
    for name in ("c++", "g++", "clang++"):
        if found := shutil.which(name):
            return (found,)
    raise BuildFailed("no C++ compiler found (tried $CXX, c++, g++, clang++); install g++ for faster kernels")


def run(command: list[str]) -> str:
    """What a call of a compiler prints. Raises BuildFailed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildFailed(f"{command[0]} could not be run: {error}; set CXX to a working compiler") from error
    if done.returncode != 0:
        said = next((line for line in done.stderr.splitlines() if "error" in line.lower()), done.stderr[:200])
        raise BuildFailed(f"{command[0]} failed with exit code {done.returncode}: {said.strip()}")
    if not done.stdout.strip() and command[-1] == "--version":
        raise BuildFailed(f"{command[0]} --version says nothing; set CXX to a working compiler")
    return done.stdout
