"""`livery doctor`: what an engine started here would compute with, and why."""

from __future__ import annotations

import json
import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from livery import __version__
from livery.models import cache_dir
from livery.settings import PREFIX, Settings, flag, load_settings

if TYPE_CHECKING:
    from livery.engine.devices import Compute

PACKAGES = ("torch", "transformers", "tokenizers", "fastapi", "uvicorn", "uvloop", "httptools")
COMPILERS = ("c++", "g++", "clang++")


def _knob(name: str) -> Any:  # noqa: ANN401  (what typer.Option gives)
    return typer.Option(flag(name), metavar=name.upper(), help=Settings.model_fields[name].description)


class Finding(NamedTuple):
    """One line of the report."""

    what: str
    found: str
    why: str


def doctor(
    device: Annotated[str | None, _knob("device")] = None,
    dtype: Annotated[str | None, _knob("dtype")] = None,
    kernels: Annotated[str | None, _knob("kernels")] = None,
    weights: Annotated[str | None, _knob("weights")] = None,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", envvar=f"{PREFIX}CONFIG", help="As for serve")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what device, dtype, attention and kernels `serve` would use here with the same settings, and why."""
    knobs = {"model": "any", "device": device, "dtype": dtype, "kernels": kernels, "weights": weights}
    findings = [*_software(), *_machine(), *_engine(load_settings(knobs, os.environ, config))]
    if as_json:
        typer.echo(json.dumps([finding._asdict() for finding in findings], indent=2))
        return
    table = Table(title="livery doctor", title_justify="left")
    for column in ("what", "found", "why"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        table.add_row(*map(escape, finding))
    Console().print(table)


def _software() -> list[Finding]:
    findings = [Finding("livery", __version__, f"Python {platform.python_version()}, {platform.platform()}")]
    for name in PACKAGES:
        try:
            findings.append(Finding(name, version(name), "installed"))
        except PackageNotFoundError:
            optional = name in ("uvloop", "httptools")
            note = "optional: HTTP is a little slower without" if optional else f"needed: pip install {name}"
            findings.append(Finding(name, "not installed", note))
    return findings


def _machine() -> list[Finding]:
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", ""), *COMPILERS))), None)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    findings = [
        Finding("cores", str(cores), "the cores this process may use"),
        Finding(
            "compiler",
            compiler or "none",
            "builds the CPU kernels on first use" if compiler else "without a C++ compiler the torch kernels are used",
        ),
        Finding("cache", str(cache_dir()), "converted models and compiled kernels; set LIVERY_CACHE to move it"),
    ]
    if memory := _memory_bytes():
        total, available = memory
        findings.append(
            Finding(
                "memory",
                f"{available / 2**30:.1f} of {total / 2**30:.1f} GiB free",
                "weights, KV and adapters share it",
            )
        )
    return findings


def _engine(settings: Settings) -> list[Finding]:
    """Asks torch and the engine's own modules; imported here because they take seconds."""
    try:
        import torch
    except ImportError as error:
        return [Finding("engine", "unusable", f"torch can't be imported: {error}")]
    from livery.engine.base import EngineConfig, ModelRefused
    from livery.engine.devices import choose

    wanted = EngineConfig(
        "", device=settings.device, dtype=settings.dtype, kernels=settings.kernels, weights=settings.weights
    )
    try:
        compute = choose(wanted)
    except ModelRefused as refused:
        return [Finding("device", "unusable", str(refused))]
    findings = [_device(compute), Finding("dtype", compute.dtype_name, compute.why_dtype)]
    if compute.device.type == "cpu":
        findings.append(Finding("instructions", torch.backends.cpu.get_cpu_capability(), "what torch uses of this CPU"))
    else:
        free, total = torch.cuda.mem_get_info(compute.device)
        findings.append(Finding("GPU memory", f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free", ""))
    return [*findings, *_kernels(compute), Finding("weights", compute.weights, compute.why_weights)]


def _device(compute: Compute) -> Finding:
    import torch

    name = f" ({torch.cuda.get_device_name(compute.device)})" if compute.device.type == "cuda" else ""
    return Finding("device", f"{compute.device}{name}", compute.why_device)


def _kernels(compute: Compute) -> list[Finding]:
    from livery.engine import kernels

    name: str = compute.kernels
    if name != "auto":
        why = compute.why_kernels
    else:
        found = dict(kernels.describe())
        name = found.pop("kernels", "unknown")
        why = found.pop("reason", "") or ", ".join(f"{label}: {text}" for label, text in found.items() if text)
    return [
        Finding("attention", f"paged, {name}", "one call per layer for all rows of a step"),
        Finding("kernels", name, why),
    ]


def _memory_bytes() -> tuple[int, int] | None:
    """Total and available memory, where Linux says."""
    file = Path("/proc/meminfo")
    if not file.is_file():
        return None
    lines = dict(line.split(":", 1) for line in file.read_text().splitlines() if ":" in line)
    return tuple(int(lines[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))  # type: ignore[return-value]
