"""What a process may use: of the machine, and within the limits that a container's control groups set."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from livery.host import cores, memory

GIB = 1 << 30


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine of 64 GiB, 32 of them free, and no limits, as Linux shows it."""
    write(tmp_path / "proc/meminfo", f"MemTotal: {64 << 20} kB\nMemFree: 1 kB\nMemAvailable: {32 << 20} kB\n")
    write(tmp_path / "proc/self/cgroup", "0::/\n")
    return tmp_path


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_without_limits_the_machine_counts(root: Path) -> None:
    assert memory(root) == (64 * GIB, 32 * GIB)
    assert cores(root) == cores(root / "nowhere") >= 1
    assert memory().total > 0 and 0 < memory().available <= memory().total


def test_a_containers_memory_is_what_is_left_of_its_limit(root: Path) -> None:
    group = root / "sys/fs/cgroup"
    write(group / "memory.max", f"{4 * GIB}\n")
    write(group / "memory.current", f"{3 * GIB}\n")
    write(group / "memory.stat", f"anon {GIB}\nfile {2 * GIB}\ninactive_file {GIB}\n")
    assert memory(root) == (4 * GIB, 2 * GIB)  # files of the past give way
    write(group / "memory.current", f"{6 * GIB}\n")
    assert memory(root) == (4 * GIB, 0)
    write(group / "memory.max", "max\n")
    assert memory(root) == (64 * GIB, 32 * GIB)


def test_a_limit_of_any_group_above_holds(root: Path) -> None:
    write(root / "proc/self/cgroup", "4:memory:/old\n0::/pods/one\n")
    top = root / "sys/fs/cgroup"
    for group, limit in ((top / "pods/one", 16), (top / "pods", 8)):
        write(group / "memory.max", f"{limit * GIB}")
        write(group / "memory.current", f"{GIB}")
    assert memory(root) == (8 * GIB, 7 * GIB)


def test_a_limit_of_time_counts_as_cores(root: Path) -> None:
    seen = cores(root)
    for quota, expected in (("max", seen), ("50000", 1), ("100000", 1), ("150000", min(2, seen)), ("6400000", seen)):
        write(root / "sys/fs/cgroup/cpu.max", f"{quota} 100000\n")
        assert cores(root) == expected, quota


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes aren't kept to cores here")
def test_text_is_encoded_on_the_cores_of_this_process_not_on_the_machines() -> None:
    code = (
        "import os; os.cpu_count = lambda: 64; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
        "from livery.beside import ENCODING; print(ENCODING.count)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "2\n"
