"""Servers whose clocks are wrong, and what they must agree on all the same."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from api.peft_files import make_adapter
from livery_adapters.manifest import read_manifest

DAY_S = 86_400
PATIENCE_S = 60.0


def moved_clock(folder: Path, seconds: float) -> str:
    """A PYTHONPATH under which a process's clock is ahead by so many seconds; behind, where they are below 0."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(f"import time\nreal = time.time\ntime.time = lambda: real() + {seconds}\n")
    return os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))


def until(condition: Callable[[], bool], what: str) -> None:
    """Ask again and again; a server looks at the registry twice a second."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, f"still not: {what}"


def served_by(url: str, model: str) -> str | None:
    """NAME@DIGEST, or None while the model isn't served there."""
    answer = httpx.post(f"{url}/v1/completions", json={"model": model, "prompt": [5], "max_tokens": 1}, timeout=30)
    assert answer.status_code in (200, 404, 503), answer.text  # 503: just being loaded
    return answer.headers.get("x-livery-adapter")


def pool(root: Path) -> dict[int, str]:
    """Two adapters that a server may take from `.pool/SEED`; the beginnings of their digests by seed."""
    for seed in (1, 2):
        make_adapter(root / ".pool" / str(seed), seed=seed)
    return {seed: read_manifest(root / ".pool" / str(seed)).digest[:12] for seed in (1, 2)}


def check_they_agree_on_names(behind: str, ahead: str, digests: dict[int, str]) -> None:
    """What either is told the other follows, though the clock of the second is far ahead of the first's."""

    def put(url: str, seed: int, **fields: int) -> int:
        body = {"source": f".pool/{seed}", **fields}
        return httpx.put(f"{url}/v1/adapters/pirate", json=body, timeout=30).status_code

    def started(url: str) -> int:
        return int(httpx.get(f"{url}/v1/models").json()["data"][0]["created"])

    assert started(ahead) - started(behind) > DAY_S / 2
    for one, other in ((behind, ahead), (ahead, behind)):
        for seed in (1, 2):
            assert put(one, seed) == 200
            until(lambda other=other, seed=seed: served_by(other, "pirate") == f"pirate@{digests[seed]}", "it follows")
        assert httpx.post(f"{other}/v1/adapters/pirate/rollback").status_code == 200
        until(lambda one=one: served_by(one, "pirate") == f"pirate@{digests[1]}", "it follows back")
    generation = httpx.get(f"{behind}/v1/adapters/pirate").json()["generation"]
    assert put(ahead, 2, expected_generation=generation) == 200
    assert put(behind, 1, expected_generation=generation) == 409
