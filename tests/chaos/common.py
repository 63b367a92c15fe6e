"""What the scripts share: a real server to hurt, a timeline that is printed, and a verdict."""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from foreign_parts import not_run

PROC = Path("/proc")


class Run:
    """One run of one script: prints as it goes, and ends with 0 if every check held."""

    def __init__(self, what: str, seed: int | None = None) -> None:
        self.seed = random.SystemRandom().randrange(1 << 32) if seed is None else seed
        self.dice = random.Random(self.seed)
        self._begun = time.monotonic()
        self._failed: list[str] = []
        self._checks = 0
        print(f"== {what} (seed {self.seed})", flush=True)

    @property
    def now(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._begun

    def say(self, text: str) -> None:
        print(f"{self.now:8.2f} s  {text}", flush=True)

    def check(self, text: str, held: bool) -> None:
        self._checks += 1
        if not held:
            self._failed.append(text)
        print(f"{self.now:8.2f} s  {'ok    ' if held else 'FAILED'}  {text}", flush=True)

    def finish(self) -> int:
        verdict = f"{len(self._failed)} of {self._checks} checks FAILED" if self._failed else "all checks held"
        print(f"== {verdict} ({self._checks} checks, {self.now:.0f} s, seed {self.seed})", flush=True)
        return 1 if self._failed else 0


def arguments(text: str, **defaults: int | float | str) -> argparse.Namespace:
    """The options of a script: `--seed`, and one for each of the defaults."""
    parser = argparse.ArgumentParser(description=text.splitlines()[0])
    parser.add_argument("--seed", type=int, default=None, help="another run with the same dice")
    for name, value in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    return parser.parse_args()


def skip_unless_linux(what: str) -> None:
    """What reads /proc is passed over elsewhere, and fails in CI."""
    if not PROC.is_dir():
        sys.exit(not_run(what, "it reads /proc, which this system lacks; run it on Linux"))


@contextmanager
def served(
    model: str | Path,
    folder: Path,
    *flags: str,
    adapters: Path | None = None,
    environ: Mapping[str, str] | None = None,
    ends_with: int = 0,
) -> Iterator[Any]:
    """A `livery serve` of one's own; see `server.running`."""
    from server.running import livery_serve

    root = adapters or folder / "none"
    root.mkdir(parents=True, exist_ok=True)
    (folder / "server").mkdir(exist_ok=True)
    with livery_serve(model, root, folder / "server", *flags, environ=environ, ends_with=ends_with) as server:
        yield server


def engine_of(server: int) -> int:
    """The process that computes for a server."""
    (found,) = [pid for pid in children(server) if b"livery.engine.process" in command(pid)]
    return found


def children(parent: int) -> list[int]:
    """Processes that a process has started and that live."""
    return [pid for pid in _processes() if _status(pid).get("PPid") == str(parent) and not is_zombie(pid)]


def is_zombie(pid: int) -> bool:
    return _status(pid).get("State", "Z").startswith("Z")


def descriptors(pid: int) -> int:
    return len(list((PROC / str(pid) / "fd").iterdir()))


def resident_mb(pid: int) -> float:
    return int(_status(pid).get("VmRSS", "0 kB").split()[0]) / 1024


def cpu_s(pid: int) -> float:
    """Processor time so far."""
    fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def gauges(url: str) -> dict[str, float]:
    """Every series without labels of its own, by name, and vLLM's under theirs."""
    found = {}
    for line in httpx.get(f"{url}/metrics", timeout=30).text.splitlines():
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            found[name.partition("{")[0]] = float(value)
    return found


def until(condition: Callable[[], bool], seconds: float, every: float = 0.05) -> float | None:
    """Seconds until it held; None where it didn't within so many."""
    begun = time.monotonic()
    while time.monotonic() - begun < seconds:
        if condition():
            return time.monotonic() - begun
        time.sleep(every)
    return None


def quantile(values: list[float], share: float) -> float:
    """0 where there is none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def _processes() -> list[int]:
    return [int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit()]


def command(pid: int) -> bytes:
    """How a process was started; empty once it is gone."""
    try:
        return (PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return b""


def _status(pid: int) -> dict[str, str]:
    try:
        lines = (PROC / str(pid) / "status").read_text().splitlines()
    except OSError:
        return {}
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
