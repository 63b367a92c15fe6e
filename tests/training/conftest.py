"""The command line, called in this process; and what real training needs is in an environment of its own."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli.conftest import livery
from server.running import tiny_model

__all__ = ["livery"]

LIBRARIES = ("bitsandbytes", "datasets", "torchao", "trl")
REAL = ("demo", "forms", "from", "quantised", "runs", "versions")
OF_LIBRARIES = [f"test_trained_{what}.py" for what in REAL]
collect_ignore = [] if all(importlib.util.find_spec(name) for name in LIBRARIES) else OF_LIBRARIES

CHATS = [
    {"messages": [{"role": "user", "content": f"Count to {n}."}, {"role": "assistant", "content": f"Aye, {n} lamps."}]}
    for n in range(24)
]
PAIRS = [{"prompt": f"Count to {n}.", "chosen": f"Aye, {n} lamps.", "rejected": f"{n}!"} for n in range(24)]
Written = Callable[..., Path]
RUN = "base: {base}\nsteps: 6\nbatch_size: 4\nmax_length: 96\nlearning_rate: 5e-3\nheld_out: 0.2\n"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def written(base: Path, tmp_path: Path) -> Written:
    """Writes a run and its data."""

    def write(kind: str = "sft", **more: Any) -> Path:
        rows: list[Any] = PAIRS if kind == "dpo" else CHATS
        (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        fields = "".join(f"{name}: {json.dumps(value)}\n" for name, value in more.items())
        text = "".join(line for line in RUN.format(base=base).splitlines(True) if line.partition(":")[0] not in more)
        file = tmp_path / "run.yaml"
        file.write_text(f"kind: {kind}\ndata: data.jsonl\n{text}{fields}")
        return file

    return write
