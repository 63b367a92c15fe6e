"""The command line in processes of its own: one command, or a server that runs until the test is over."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LIVERY = [sys.executable, "-m", "livery"]
# `livery serve` over the fake engine: everything but the model itself is real.
SERVE_FAKE = [
    sys.executable,
    "-c",
    "import asyncio, os\n"
    "from livery import cli\n"
    "from livery.commands import serve\n"
    "from livery.engine.fake import Behaviour, FakeEngine\n"
    "from livery_adapters.base_model import ModuleShape\n"
    "shapes = {f'model.layers.{n}.self_attn.{m}_proj': ModuleShape('linear', 16, 16) for n in (0, 1) for m in 'qkvo'}\n"
    "behaviour = Behaviour(die_after=1) if 'FAKE_DIES' in os.environ else Behaviour()\n"
    "behaviour.stepped = 'FAKE_STEPPED' in os.environ\n"
    "def make(config, progress):\n"
    "    engine = FakeEngine(behaviour, vocab_size=49152, modules=shapes)\n"
    "    def step(): engine.step(len(os.read(0, 100) or os._exit(1)))\n"
    "    if behaviour.stepped: asyncio.get_running_loop().add_reader(0, step)\n"
    "    return engine\n"
    "serve.engine_of = lambda settings: make\n"
    "cli.main()\n",
]
ENVIRON = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "200"}


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*LIVERY, *arguments], capture_output=True, text=True, env={**ENVIRON, **environ}, timeout=120, check=False
    )


@contextmanager
def serving(folder: Path, data: Path, *arguments: str, **environ: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server in its own process and everything it printed until it was ready.

    With FAKE_STEPPED its engine lets out one token for each letter that is written to the process.
    """
    command = [*SERVE_FAKE, "serve", "--model", "smollm2-135m-instruct", "--adapters", str(folder)]
    process = subprocess.Popen(
        [*command, *([] if "--uds" in arguments else ["--port", "0"]), "--data", str(data), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**ENVIRON, **environ},
    )
    assert process.stdout is not None
    printed = ""
    try:
        for line in process.stdout:
            printed += line
            if "Ctrl-C" in line:
                break
        yield process, printed
    finally:
        process.kill()
        process.communicate()


def url_in(printed: str) -> str:
    found = re.search(r"http://127\.0\.0\.1:\d+", printed)
    assert found, printed
    return found.group()
