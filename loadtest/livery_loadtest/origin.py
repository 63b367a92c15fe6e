"""Where and how a measurement was made, and its document: what every benchmark writes has the same head."""

from __future__ import annotations

import importlib.metadata
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from livery_loadtest.machine import Machine, describe_machine


@dataclass(frozen=True, slots=True)
class Origin:
    """Where and how a report was made. `date`: ISO 8601 with offset; `commit`: of the clone it ran from, if any."""

    command: str
    date: str
    tool_version: str
    machine: Machine
    commit: str | None = None

    @classmethod
    def here(cls, tool_version: str, machine: Machine | None = None) -> Origin:
        """Of this process, as it was called, now; `machine` where it was described before its load changed."""
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        date = datetime.now().astimezone().isoformat(timespec="seconds")
        return cls(command, date, tool_version, machine or describe_machine(), own_commit())


def own_commit() -> str | None:
    """The commit of the clone that this code lies in, with `+changes` where files aren't as committed; else None."""
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(here.parent), *arguments], capture_output=True, text=True, check=False
            )
        except OSError:  # there is no git
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", here.name) is None:  # installed, maybe into a folder of another's clone
        return None
    return git("describe", "--always", "--dirty=+changes", "--abbrev=40", "--exclude=*")


def installed(packages: Sequence[str]) -> dict[str, str]:
    """The versions of installed packages."""
    return {name: importlib.metadata.version(name) for name in packages}


def document(schema: str, origin: Origin, packages: Sequence[str], measured: Mapping[str, Any]) -> dict[str, Any]:
    """What was measured, under the head that all reports have."""
    return {"schema": schema, "origin": origin, "versions": installed(packages), **measured}


def as_json(report: object) -> bytes:
    """Indented JSON of a dataclass or mapping, with an end of line."""
    return msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n"


def write_json(report: object, path: Path) -> None:
    """Write a report as indented JSON, creating the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(as_json(report))
