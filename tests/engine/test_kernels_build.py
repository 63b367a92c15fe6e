"""Building the kernels: once for all processes, with one OpenMP runtime, and never in the way of starting."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine.kernels_under_test import IS_NATIVE, KERNELS, only_native
from livery.engine.compiler import BuildFailed
from livery.engine.kernels import describe, load
from livery.engine.kernels.build import build


@only_native
def test_one_openmp_runtime_serves_torch_and_the_kernels() -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("reads /proc")
    KERNELS[0].linear(torch.ones((2, 300)), KERNELS[0].pack(torch.ones((300, 300))))
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/" in line}
    runtimes = [path for path in mapped if Path(path).name.startswith(("libgomp", "libomp", "libiomp"))]
    assert len(runtimes) == 1


@only_native
def test_processes_that_build_at_once_agree_on_one_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that copies what was compiled before is as good; it waits until both are at it."""
    code = "from pathlib import Path; import sys; from livery.engine.kernels.build import build;"
    code += "print(build(Path(sys.argv[1])).path)"
    folder, compiled, at_it = tmp_path / "kernels", describe()["library"], tmp_path / "at it"
    at_it.mkdir()
    says = (
        'if [ "$1" = --version ]; then echo copier 1.0; exit; fi\n'
        f'touch "{at_it}/$PPID"\n'
        f'while [ "$(ls "{at_it}" | wc -l)" -lt 2 ]; do sleep 0.05; done\n'
        f'for last; do :; done; cp "{compiled}" "$last"'
    )
    environment = {**os.environ, "CXX": script(tmp_path, says)}
    racing = [
        subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    paths = {process.communicate(timeout=240)[0].strip() for process in racing}
    assert [process.returncode for process in racing] == [0, 0]
    assert len(paths) == 1
    assert [str(path) for path in folder.iterdir()] == list(paths)
    written = Path(paths.pop()).stat().st_mtime_ns
    monkeypatch.setenv("CXX", environment["CXX"])
    again = build(folder)  # found, not compiled
    assert again.path.stat().st_mtime_ns == written


def describe_elsewhere(tmp_path: Path, compiler: str, path: str = "") -> str:
    """What a fresh process with an empty cache says about its kernels, and a result of theirs."""
    code = (
        "import torch; from livery.engine.kernels import describe, load;"
        "print(describe()); kernels = load();"
        "print(kernels.linear(torch.ones((1, 3)), kernels.pack(torch.ones((1, 3)))).item())"
    )
    environment = {"CXX": compiler, "LIVERY_CACHE": str(tmp_path), "PATH": path}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def script(folder: Path, body: str, shell: str = "sh") -> str:
    path = folder / "a-compiler"
    path.write_text(f"#!/bin/{shell}\n{body}\n")
    path.chmod(0o755)
    return str(path)


def in_a_hurry(folder: Path, compiler: str) -> str:
    """The same compiler without the optimisation that takes most of its time."""
    return script(folder, f'exec {compiler} "${{@/#-O3/-O0}}"', "bash")


def test_a_compiler_that_fails_means_torch_and_the_reason_is_told(tmp_path: Path) -> None:
    says = 'if [ "$1" = --version ]; then echo broken 1.0; else echo "fatal error: no vectors" >&2; exit 3; fi'
    said = describe_elsewhere(tmp_path, script(tmp_path, says))
    assert "'kernels': 'torch'" in said
    assert "exit code 3: fatal error: no vectors" in said
    assert said.endswith("3.0\n")


def test_no_compiler_means_torch_with_the_remedy(tmp_path: Path) -> None:
    said = describe_elsewhere(tmp_path, "")
    assert "'kernels': 'torch'" in said
    assert "install g++" in said


def test_a_compiler_that_makes_nothing_loadable_means_torch(tmp_path: Path) -> None:
    says = 'if [ "$1" = --version ]; then echo odd 1.0; else for last; do :; done; echo text > "$last"; fi'
    said = describe_elsewhere(tmp_path, script(tmp_path, says))
    assert "'kernels': 'torch'" in said
    assert "delete that file" in said


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    if not IS_NATIVE:
        pytest.skip("needs a compiler to get that far")
    with pytest.raises(BuildFailed, match="LIVERY_CACHE"):
        build(blocked / "kernels")


def test_description_names_what_is_used() -> None:
    description = describe()
    assert description["kernels"] == KERNELS[0].name
    assert all(description.values())
    assert load("torch").name == "torch"


@pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc; apt install gcc")
def test_a_c_compiler_will_do(tmp_path: Path) -> None:
    """What is named in $CXX need not be the C++ driver; PEFT itself sets it to gcc at times."""
    gcc = shutil.which("gcc")
    assert gcc is not None
    assert "'kernels': 'native'" in describe_elsewhere(tmp_path, in_a_hurry(tmp_path, gcc), os.environ["PATH"])
