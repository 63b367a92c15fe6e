"""The peer on 4-bit weights: llama.cpp's server, built from the source package of llama-cpp-python.

It chooses adapters by a field of the request, not by `model`, and puts requests under different adapters into
different batches.
"""

from __future__ import annotations

import os
import shutil
import sys
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from livery_loadtest.machine import has_amx, usable_cores
from livery_loadtest.peers import MARKER, EnvironmentFailed, peers_folder, telling_lines
from livery_loadtest.peers.device import Device

LLAMA_CPP_VERSION = "0.3.36"
DISTRIBUTION = "llama-cpp-python"
ARCHIVE = "llama_cpp_python-{version}.tar.gz"
# A plain native build: no tests, no web page, no TLS, nothing fetched while building.
OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DGGML_NATIVE=ON",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
)
ON_CUDA = ("-DGGML_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=native")
ALL_LAYERS = "999"
TOOLS_REMEDY = "install cmake and a C++ compiler, as with: apt install cmake g++"
NO_CONVERSION = "llama.cpp has only plain LoRA on the modules of models it knows."
SLOT_TOKENS = 2048  # context of one stream, as vLLM gets it


class LlamaCppEnvironment:
    """A built llama.cpp server with its adapter converter, made on first use.

    `device` is CUDA only where that was asked for and CUDA's compiler is there; else it is built for the CPU.
    """

    def __init__(
        self, folder: Path | None = None, version: str = LLAMA_CPP_VERSION, device: Device = Device.CPU
    ) -> None:
        self.device = Device.CUDA if device is Device.CUDA and shutil.which("nvcc") else Device.CPU
        self.folder = folder or peers_folder() / ("llama.cpp-cuda" if self.device is Device.CUDA else "llama.cpp")
        self.version = version

    @property
    def options(self) -> tuple[str, ...]:
        """What cmake is told."""
        return (*OPTIONS, *ON_CUDA) if self.device is Device.CUDA else OPTIONS

    @property
    def _mark(self) -> str:
        return self.version if self.device is Device.CPU else f"{self.version}+{self.device}"

    @property
    def server(self) -> Path:
        """The server's program."""
        return self.folder / "build" / "bin" / "llama-server"

    @property
    def converter(self) -> Path:
        """The script that turns PEFT directories into GGUF files; needs torch and transformers."""
        return self._source / "convert_lora_to_gguf.py"

    @property
    def _source(self) -> Path:
        return self.folder / "source" / "vendor" / "llama.cpp"

    def ready(self) -> bool:
        """Whether a finished build of this very version is there."""
        marker = self.folder / MARKER
        return marker.is_file() and marker.read_text() == self._mark and self.server.is_file()

    def ensure(self, console: Console) -> None:
        """Build it unless it is there: a download of 77 MB, some ten minutes of one core, 0.3 GB on disk.

        Raises EnvironmentFailed.
        """
        if self.ready():
            return
        with console.status(f"building llama.cpp's server in {self.folder}") as status:
            for line in self._build():
                status.update(f"llama.cpp: [dim]{line[:100]}[/]")
        (self.folder / MARKER).write_text(self._mark)
        console.print(f"llama.cpp's server of {DISTRIBUTION} {self.version} is built in {self.folder}")

    def _build(self) -> Iterator[str]:
        missing = [tool for tool in ("cmake",) if shutil.which(tool) is None]
        if missing:
            raise EnvironmentFailed(f"{', '.join(missing)} is not installed; {TOOLS_REMEDY}")
        self.folder.mkdir(parents=True, exist_ok=True)
        archive = self.folder / ARCHIVE.format(version=self.version)
        if not archive.is_file():
            pip = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps"]
            wanted = f"{DISTRIBUTION}=={self.version}"
            yield from telling_lines([*pip, "--no-binary", DISTRIBUTION, "--dest", str(self.folder), wanted])
        shutil.rmtree(self.folder / "source", ignore_errors=True)
        unpack(archive, self.folder / "source")
        build = self.folder / "build"
        yield from telling_lines(["cmake", "-S", str(self._source), "-B", str(build), *self.options], TOOLS_REMEDY)
        cores = str(os.cpu_count() or 1)
        yield from telling_lines(
            ["cmake", "--build", str(build), "--target", self.server.name, "--parallel", cores], TOOLS_REMEDY
        )

    def converted(self, base: Path, adapters: Mapping[str, Path], folder: Path, console: Console) -> dict[str, Path]:
        """The adapters as GGUF files below `folder`, by name; those there are kept. Raises EnvironmentFailed."""
        files = {name: folder / f"{name}.gguf" for name in adapters}
        for name, file in files.items():
            weights = adapters[name] / "adapter_model.safetensors"
            if file.is_file() and file.stat().st_mtime >= weights.stat().st_mtime:
                continue
            folder.mkdir(parents=True, exist_ok=True)
            unfinished = file.with_suffix(".part")
            with console.status(f"converting {name} to GGUF"):
                command = [sys.executable, str(self.converter), "--base", str(base), "--outtype", "f16"]
                for _ in telling_lines([*command, "--outfile", str(unfinished), str(adapters[name])], NO_CONVERSION):
                    pass
            unfinished.rename(file)
        return files


def unpack(archive: Path, target: Path) -> None:
    """Unpack a source archive without its one outermost folder. Raises EnvironmentFailed."""
    staging = target.with_name(f".{target.name}")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        with tarfile.open(archive) as packed:
            packed.extractall(staging, filter="data")
        (inner,) = staging.iterdir()
    except (EOFError, OSError, ValueError, tarfile.TarError, zlib.error) as error:
        raise EnvironmentFailed(f"{archive} can't be unpacked ({error}); delete it and try again") from error
    inner.rename(target)
    staging.rmdir()


def llama_cpp_command(
    server: Path,
    model: Path,
    name: str,
    port: int,
    adapters: Sequence[Path],
    streams: int,
    device: Device = Device.CPU,
) -> list[str]:
    """The command line of a llama.cpp server on 127.0.0.1, with a slot for every stream.

    Both cores compute; adapters are loaded and wait for the requests that name them; answers to earlier prompts are
    not kept in memory, as no prompt comes twice. On a CPU with AMX weights aren't rearranged for it: with Q4_1 ones
    that ends the server in a segmentation fault, and for other CPUs llama.cpp rearranges none of that type. On a GPU
    all layers are there, with the keys and values.
    """
    command = [str(server), "--model", str(model), "--alias", name, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--parallel", str(streams), "--ctx-size", str(SLOT_TOKENS * streams)]
    command += ["--threads", str(usable_cores()), "--cache-ram", "0", "--no-ui"]
    if device is Device.CUDA:
        command += ["--n-gpu-layers", ALL_LAYERS]
    elif has_amx():
        command += ["--no-repack"]
    if adapters:
        command += ["--lora", ",".join(map(str, adapters)), "--lora-init-without-apply"]
    return command


def lora_fields(base: str, names: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """What to put into the body of a request for the base and each adapter, in the order the server was given them.

    A request that names none, or an empty list, runs under all of them at once, `--lora-init-without-apply` or not.
    """
    if not names:
        return {}
    adapters = {name: {"lora": [{"id": index, "scale": 1.0}]} for index, name in enumerate(names)}
    return {base: {"lora": [{"id": 0, "scale": 0.0}]}, **adapters}
