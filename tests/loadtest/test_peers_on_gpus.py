"""What is built and started for a comparison on an NVIDIA GPU. Nothing of it runs on one here: commands alone."""

from __future__ import annotations

import json
import os
import stat
import tarfile
from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from livery_loadtest.machine import describe_machine, nvidia_gpus
from livery_loadtest.peers import launching, llama_cpp, vllm
from livery_loadtest.peers.device import Device
from livery_loadtest.peers.launching import (
    LIVERY,
    LLAMA_CPP,
    PEFT_MERGED,
    PEFT_MIXED,
    SERVERS,
    VLLM,
    VLLM_PLAIN,
    PeersSetup,
    SideBySide,
    launch_specs,
)
from livery_loadtest.peers.llama_cpp import LlamaCppEnvironment
from livery_loadtest.peers.vllm import VLLM_VERSION, VllmEnvironment, default_environment
from livery_loadtest.report.words import hardware
from livery_loadtest.servers import LaunchSpec

SILENT = Console(file=StringIO())
Program = Callable[[str, str], None]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Puts a shell script of this name on the path, and what else the path had behind it."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def put(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(stat.S_IRWXU)

    return put


def test_a_gpu_is_there_where_the_driver_lists_one(program: Program) -> None:
    program("nvidia-smi", 'test "$1" = --query-gpu=name && printf "NVIDIA L4\\nNVIDIA L4\\n"')
    assert nvidia_gpus() == ("NVIDIA L4", "NVIDIA L4")
    assert Device.AUTO.chosen() is Device.CUDA
    assert Device.CPU.chosen() is Device.CPU, "the processor is compared on where that is asked for"
    assert hardware(describe_machine()).endswith(", 2 × NVIDIA L4")
    program("nvidia-smi", "echo 'NVIDIA-SMI has failed because it could not communicate with the driver.'; exit 9")
    assert nvidia_gpus() == ()
    assert Device.AUTO.chosen() is Device.CPU
    assert Device.CUDA.chosen() is Device.CUDA, "a container may have a GPU without that command"
    program("nvidia-smi", "exit 0")
    assert Device.AUTO.chosen() is Device.CPU
    assert "NVIDIA" not in hardware(describe_machine())


def recorded(monkeypatch: pytest.MonkeyPatch, module: object) -> list[list[str]]:
    """The commands that a module would build with."""
    commands: list[list[str]] = []

    def note(command: Sequence[str], remedy: str = "") -> Sequence[str]:
        commands.append(list(command))
        return ()

    monkeypatch.setattr(module, "telling_lines", note)
    return commands


def test_vllm_is_installed_as_it_asks_for_beside_the_build_for_cpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIVERY_CACHE", str(tmp_path))
    assert default_environment(Device.CUDA) != default_environment(Device.CPU)
    commands = recorded(monkeypatch, vllm)
    environment = VllmEnvironment(default_environment(Device.CUDA), device=Device.CUDA)
    environment.ensure(SILENT)
    assert commands[-1][-1] == f"vllm=={VLLM_VERSION}"
    assert "--no-deps" not in commands[-1]
    assert environment.ready()
    assert not VllmEnvironment(environment.folder).ready(), "one folder holds one of the two"


def archive(folder: Path) -> None:
    """An archive of sources with nothing in them."""
    inner = folder / "sources"
    inner.mkdir(parents=True)
    with tarfile.open(folder / llama_cpp.ARCHIVE.format(version="1.2.3"), "w:gz") as packed:
        packed.add(inner, "llama")


@pytest.mark.parametrize("compiler", [True, False])
def test_llama_cpp_is_built_with_cuda_where_its_compiler_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: bool
) -> None:
    programs = {"cmake", *(["nvcc"] if compiler else [])}
    monkeypatch.setattr("shutil.which", lambda name: name if name in programs else None)
    commands = recorded(monkeypatch, llama_cpp)
    archive(tmp_path)
    environment = LlamaCppEnvironment(tmp_path, "1.2.3", Device.CUDA)
    environment.ensure(SILENT)
    (configured,) = [command for command in commands if "-S" in command]
    assert ("-DGGML_CUDA=ON" in configured) is compiler
    assert (tmp_path / ".complete").read_text() == ("1.2.3+cuda" if compiler else "1.2.3")
    assert LlamaCppEnvironment(device=Device.CUDA).folder.name == ("llama.cpp-cuda" if compiler else "llama.cpp")
    assert "-DGGML_CUDA=ON" not in LlamaCppEnvironment(tmp_path, "1.2.3").options


def launched(folder: Path, monkeypatch: pytest.MonkeyPatch, device: Device) -> tuple[PeersSetup, dict[str, LaunchSpec]]:
    """What would be started on a device, of environments that count as built."""
    model = folder / "tiny"
    model.mkdir()
    header = {"model.layers.0.self_attn.q_proj.weight": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}
    text = json.dumps(header).encode()
    (model / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(16))
    monkeypatch.setattr("livery_loadtest.peers.launching.gguf_file", lambda model: Path("model.gguf"))
    monkeypatch.setattr(VllmEnvironment, "ready", lambda self: True)
    monkeypatch.setattr(LlamaCppEnvironment, "ready", lambda self: True)
    monkeypatch.setattr(LlamaCppEnvironment, "converted", lambda self, base, adapters, folder, console: adapters)
    monkeypatch.setattr("shutil.which", lambda name: name)
    setup = PeersSetup(
        str(model),
        folder / "run",
        VllmEnvironment(folder / "vllm", device=device),
        llama_cpp=LlamaCppEnvironment(folder / "llama", device=device),
        variants={"graphs": "--graphs off"},
        adapters=2,
        device=device,
    )
    return setup, {spec.name: spec for spec in launch_specs(setup, SILENT)}


def after(option: str, spec: LaunchSpec) -> str:
    return str(list(spec.command)[list(spec.command).index(option) + 1])


def test_on_a_gpu_all_compute_there_in_bf16_and_share_its_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup, specs = launched(tmp_path, monkeypatch, Device.CUDA)
    assert set(specs) == {*SERVERS, "livery-graphs"}
    for name in (LIVERY, "livery-graphs", PEFT_MIXED, PEFT_MERGED):
        assert after("--device", specs[name]) == "cuda", name
    for name in (LIVERY, "livery-graphs", VLLM, VLLM_PLAIN, PEFT_MIXED, PEFT_MERGED):
        assert after("--dtype", specs[name]) == "bfloat16", name
    for name in (VLLM, VLLM_PLAIN):
        assert float(after("--gpu-memory-utilization", specs[name])) * len(specs) <= 1
        assert int(after("--kv-cache-memory-bytes", specs[name])) == 4 << 30
    assert after("--kv-memory", specs[LIVERY]) == "4GiB"
    assert after("--n-gpu-layers", specs[LLAMA_CPP]) == "999"
    assert "--no-repack" not in specs[LLAMA_CPP].command
    for name, spec in specs.items():
        told = {key for key in spec.environment if "CPU" in key or key in ("OMP_WAIT_POLICY", "LD_PRELOAD")}
        assert not told, name
    why = SideBySide(setup, SILENT).why
    assert "bf16" in why(VLLM) and "AMX" not in why(VLLM)
    assert "on the GPU" in why(LLAMA_CPP)
    assert why(PEFT_MIXED) and why("livery-graphs") == ""


@pytest.mark.parametrize(("amx", "dtype", "bind"), [(True, "bfloat16", "0-"), (False, "float32", "auto")])
def test_on_a_cpu_nothing_is_as_on_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, amx: bool, dtype: str, bind: str
) -> None:
    for module in (launching, vllm, llama_cpp):
        monkeypatch.setattr(module, "has_amx", lambda: amx)
    setup, specs = launched(tmp_path, monkeypatch, Device.CPU)
    assert after("--dtype", specs[VLLM]) == dtype
    assert specs[VLLM].environment["VLLM_CPU_OMP_THREADS_BIND"].startswith(bind)
    assert specs[VLLM].environment["VLLM_CPU_KVCACHE_SPACE"] == "2"
    assert (after("--device", specs[PEFT_MIXED]), after("--dtype", specs[PEFT_MIXED])) == ("cpu", "float32")
    words = {word for spec in specs.values() for word in spec.command}
    assert not words & {"cuda", "--gpu-memory-utilization", "--kv-cache-memory-bytes", "--n-gpu-layers", "--kv-memory"}
    why = SideBySide(setup, SILENT).why(VLLM)
    assert why.count("{") == 0
    assert ("is AMX" in why, "no AMX" in why) == (amx, not amx)


def test_without_its_compiler_llama_cpp_computes_on_the_cpu_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup, _ = launched(tmp_path, monkeypatch, Device.CUDA)
    monkeypatch.setattr(setup.llama_cpp, "device", Device.CPU)
    assert SideBySide(setup, SILENT).why(LLAMA_CPP).startswith("Built for the CPU, since CUDA's compiler, nvcc, isn't")
