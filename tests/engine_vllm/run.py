"""The tests of `--engine vllm`, run in an environment that has vLLM and what Livery's server needs.

    python tests/engine_vllm/run.py            # all of tests/engine_vllm
    python tests/engine_vllm/run.py -k unload  # what follows goes to pytest

vLLM pins its own torch, so it has an environment of its own, the one that `make bench-peers` has too. Beside it lies a
small one that borrows from it and holds the rest of Livery's requirements; this checkout's code runs in it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

sys.path.insert(0, str(Path(__file__).parent.parent))

from foreign_parts import not_run
from livery.models import DEMO_MODEL, ModelNotFound, resolve_model
from livery_loadtest.peers import MARKER, EnvironmentFailed, peers_folder, telling_lines
from livery_loadtest.peers.vllm import LEFT_OUT, VllmEnvironment, default_environment

ROOT = Path(__file__).parent.parent.parent
FOR_TESTS = ("pytest", "pytest-asyncio", "pytest-timeout", "hypothesis", "peft", "openai", "jsonschema")
BROUGHT = ("torch", "transformers")  # vLLM's own pins decide
MODEL_VARIABLE = "LIVERY_TEST_MODEL"


class ServerEnvironment:
    """A virtual environment in which `livery serve --engine vllm` runs, built on first use."""

    def __init__(self, vllm: VllmEnvironment) -> None:
        self.vllm = vllm
        self.folder = peers_folder().parent / f"vllm-server-{vllm.version}"

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def ensure(self, console: Console) -> None:
        """Build both environments unless they are there. Raises EnvironmentFailed."""
        self.vllm.ensure(console)
        wanted = "\n".join(requirements())
        marker = self.folder / MARKER
        if marker.is_file() and marker.read_text() == wanted:
            return
        with console.status(f"building {self.folder}") as status:
            for line in self._build():
                status.update(f"livery beside vLLM: [dim]{escape(line[:100])}[/]")
        marker.write_text(wanted)

    def variables(self) -> dict[str, str]:
        """Environment variables with which its interpreter finds this checkout."""
        paths = [str(ROOT / part) for part in ("server", "adapters", "loadtest")]
        return {"PYTHONPATH": os.pathsep.join(paths)}

    def _build(self) -> Iterator[str]:
        yield from telling_lines([sys.executable, "-m", "venv", "--clear", str(self.folder)])
        (borrowed,) = self.vllm.folder.glob("lib/python3*/site-packages")
        for packages in self.folder.glob("lib/python3*/site-packages"):
            (packages / "borrowed.pth").write_text(str(borrowed))
        # What is borrowed counts as installed: only what vLLM lacks is.
        pip = [str(self.python), "-m", "pip", "install", "--disable-pip-version-check"]
        yield from telling_lines([*pip, *requirements()])


def requirements() -> list[str]:
    """What Livery needs beside vLLM, and the tests beside that."""
    declared: Sequence[str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    kept = [line for line in declared if not line.startswith((*BROUGHT, *LEFT_OUT))]
    return [*kept, *FOR_TESTS]


def main(arguments: Sequence[str]) -> int:
    console = Console(stderr=True, highlight=False)
    environment = ServerEnvironment(VllmEnvironment(default_environment()))
    try:
        model = resolve_model(DEMO_MODEL).path
        environment.ensure(console)
    except (EnvironmentFailed, ModelNotFound) as error:
        return not_run("--engine vllm", error)
    command = [str(environment.python), "-m", "pytest", "-m", "vllm", "tests/engine_vllm", *arguments]
    variables = {**os.environ, **environment.variables(), MODEL_VARIABLE: str(model)}
    return subprocess.run(command, cwd=ROOT, env=variables, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
