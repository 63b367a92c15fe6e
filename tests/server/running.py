"""A real `livery serve` in its own process, on a free port, over a tiny model with the demo base's tokenizer."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import IO

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from livery.models import resolve_model

SMALL = ("--kv-memory", "128MiB")  # zeroing the usual gigabyte takes longer than most tests
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def tiny_model(folder: Path) -> Path:
    """A random Llama of two layers with the demo base's vocabulary and chat template."""
    demo = resolve_model("smollm2-135m-instruct").path
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = AutoModelForCausalLM.from_config(config)
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(folder)
    for name in TOKENIZER_FILES:
        shutil.copy(demo / name, folder / name)
    return folder


@dataclass(frozen=True)
class RunningServer:
    url: str
    log: Path
    pid: int
    process: subprocess.Popen[str]


@contextmanager
def livery_serve(
    model: str | Path,
    adapters: Path,
    folder: Path,
    *flags: str,
    environ: Mapping[str, str] | None = None,
    ends_with: int = 0,
    program: Sequence[str] = ("-m", "livery"),
    interpreter: str = sys.executable,
) -> Iterator[RunningServer]:
    """Start the command as a user would, wait for the line that says it serves, and end it with SIGTERM.

    `environ` comes on top of this process's, `program` is what the interpreter runs. `ends_with`: the exit status,
    where the block has ended it otherwise.
    """
    log = folder / "server.log"
    command = [interpreter, *program, "serve", "--port", "0", "--data", str(folder / "data")]
    command += ["--model", str(model), "--adapters", str(adapters), *flags]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **(environ or {})}
    )
    announced: Queue[bool] = Queue()
    # The pipe must stay drained, or a talkative server would block on it.
    reader = Thread(target=_copy, args=(process.stdout, log, announced))
    reader.start()
    try:
        assert announced.get(timeout=240), f"the server ended before it served:\n{log.read_text()}"
        found = re.search(r"serves .* on (http://\S+)", log.read_text())
        assert found is not None
        yield RunningServer(found.group(1), log, process.pid, process)
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(timeout=60)
        reader.join(timeout=10)
    assert status == ends_with, f"the server ended with {status}:\n{log.read_text()[-3000:]}"


def _copy(output: IO[str], log: Path, announced: Queue[bool]) -> None:
    """Write what a server prints to its log; say once whether its announcement came to its end."""
    with log.open("w") as out:
        for line in output:
            out.write(line)
            out.flush()
            if line.startswith("Ctrl-C stops"):
                announced.put(True)
    announced.put(False)
