"""Proves the CUDA kernels' values on this device and measures the engine, in one command of at most nine minutes.

    python tests/gpu/run.py --out results

Needs torch, triton, transformers and their own needs; weights are random, of Llama-3.1-8B's and Qwen3-0.6B's shapes.
`--shapes tiny --device cpu` runs the same code anywhere: with plain torch, or with TRITON_INTERPRET=1 and
`--kernels triton` with the kernels for CUDA in Triton's interpreter. Exits with 1 when a value is wrong.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import shlex
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / folder) for folder in ("server", "adapters", "tests")]

from gpu.structs import stand_in_for_msgspec  # noqa: E402 (before the engine)

stand_in_for_msgspec()

import torch  # noqa: E402

from gpu import speed, values  # noqa: E402
from livery.engine.kernels import load  # noqa: E402

PACKAGES = ("torch", "triton", "transformers", "peft", "safetensors")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for results.json")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--kernels", default="auto", choices=["auto", "torch", "triton"])
    parser.add_argument("--shapes", default="llama-3.1-8b,qwen3-0.6b", help="models' shapes, or tiny")
    parser.add_argument("--seconds", type=float, default=520, help="no part is begun after so many")
    options = parser.parse_args()
    session = Session(options)
    session.values()
    for name in options.shapes.split(","):
        session.measure(name)
        gc.collect()  # a model is a thing of cycles
        torch.cuda.empty_cache()
    session.write()
    return 1 if session.wrong else 0


class Session:
    """What one run found; written after each part, so that a run cut short leaves what it has."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._began = time.monotonic()
        self._device = torch.device(options.device)
        self.wrong = 0
        self._found: dict[str, Any] = {
            "command": shlex.join(sys.argv),
            "hardware": self._hardware(),
            "versions": {"python": platform.python_version(), **versions()},
            "values": [],
            "models": {},
        }

    def values(self) -> None:
        cuda = self._device.type == "cuda"
        name = self._options.kernels if self._options.kernels != "auto" else "triton" if cuda else "torch"
        # The interpreter computes bf16 wrongly.
        interpreted = name == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
        dtypes = [torch.float32, torch.float16 if interpreted else torch.bfloat16]
        if interpreted:
            values.HALF = torch.float32
        shapes = values.LARGE if cuda else values.SMALL
        with torch.inference_mode():
            for check in values.checks(load(name), self._device, shapes, dtypes):
                self._found["values"].append(check._asdict())
                self.wrong += not check.passed
                if not check.passed:
                    self.tell(f"WRONG {check.name}: {check.error:.1e}")
        self.tell(f"{len(self._found['values'])} values checked on {name} kernels, {self.wrong} wrong")
        self.write()

    def measure(self, name: str) -> None:
        if self._spent():
            self.tell(f"{name} left out: the time is over")
            return
        cuda = self._device.type == "cuda"
        rate = speed.bandwidth(self._device, (4 << 30) if cuda else (16 << 20))
        bench = speed.Workbench(
            name, speed.GPU if cuda else speed.TINY, self._options.device, self._options.kernels, self.tell
        )
        rows: list[dict[str, object]] = []
        info = bench.runner.info
        self._found["models"][name] = {
            "bandwidth": rate,
            "start_seconds": bench.start_seconds,
            "dtype": info.dtype,
            "kernels": info.kernels,
            "rows": rows,
        }
        for part in (partial(speed.decode, rate=rate), speed.prefill, speed.cold, speed.loads, speed.profile):
            if self._spent():
                self.tell("the rest is left out: the time is over")
                break
            for row in part(bench):
                rows.append(row)
                self.tell(" ".join(f"{key}={_short(value)}" for key, value in row.items()))
            self.write()
        bench.core.stop()

    def tell(self, text: str) -> None:
        print(f"{time.monotonic() - self._began:6.1f} s  {text}", flush=True)

    def write(self) -> None:
        self._options.out.mkdir(parents=True, exist_ok=True)
        self._found["seconds"] = time.monotonic() - self._began
        (self._options.out / "results.json").write_text(json.dumps(self._found, indent=1))

    def _spent(self) -> bool:
        return time.monotonic() - self._began > self._options.seconds

    def _hardware(self) -> dict[str, object]:
        if self._device.type != "cuda":
            return {"device": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        found = torch.cuda.get_device_properties(self._device)
        return {"device": found.name, "memory": found.total_memory, "multiprocessors": found.multi_processor_count}


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "missing"
    return found


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
