"""`livery doctor`: what an engine started here would compute with, and why."""

from __future__ import annotations

import json
import platform
import re
import shlex
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from pydantic import ByteSize
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from livery import __version__, host
from livery.engine.base import ModelRefused
from livery.engine.compiler import BuildFailed, find_compiler
from livery.engine.quantization import REMEDY as QUANTISATION
from livery.engine.vllm_found import REMEDY, find_vllm
from livery.gguf_forms import widened
from livery.models import ModelNotFound, cache_dir, resolve_model
from livery.running.engine_knobs import engine_config
from livery.settings import Settings, SettingsError

if TYPE_CHECKING:
    from livery.engine.base import EngineConfig
    from livery.engine.devices import Compute

QUANTISING = ("bitsandbytes", "torchao", "compressed-tensors")
PACKAGES = ("torch", "transformers", "tokenizers", "triton", "fastapi", "uvicorn", *QUANTISING)
OPTIONAL = {
    "triton": "optional: computes on CUDA devices only",
    **dict.fromkeys(QUANTISING, f"optional, for bases in its form: {QUANTISATION}"),
}
# Packages of extras: their oldest version, what they are for, the remedy.
EXTRAS = {
    "psycopg": ((3, 1), "registries in PostgreSQL", "pip install 'livery[postgres]'"),
    "ray": ((2, 60), "replicas on Ray Serve", "pip install 'livery[ray]', on every machine that has some"),
}
UNUSABLE = "unusable"


class Finding(NamedTuple):
    """One line of the report."""

    what: str
    found: str
    why: str


def doctor(
    settings: Settings,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    model: Annotated[
        str | None, typer.Option(help="A base model, to say what its weights would take; it isn't loaded")
    ] = None,
) -> None:
    """Say what `serve` would compute with here under the same settings of the engine, and why; loads no model."""
    computed = _vllm(settings, model) if settings.engine == "vllm" else _engine(settings, model)
    findings = [*_software(), *_machine(), *computed]
    if as_json:
        typer.echo(json.dumps([finding._asdict() for finding in findings], indent=2))
    else:
        _show(findings)
    if any(finding.found == UNUSABLE for finding in findings):
        raise typer.Exit(1)  # `serve` with the same settings would refuse


def _show(findings: list[Finding]) -> None:
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
            findings.append(Finding(name, "not installed", OPTIONAL.get(name, f"needed: pip install {name}")))
    return [*findings, *map(extra_package, EXTRAS), _found_vllm()]


def extra_package(name: str) -> Finding:
    """What is installed of a package of EXTRAS, and whether that is recent enough."""
    oldest, what, remedy = EXTRAS[name]
    try:
        found = version(name)
    except PackageNotFoundError:
        return Finding(name, "not installed", f"optional, for {what}: {remedy}")
    if tuple(map(int, re.findall(r"\d+", found)[:2])) < oldest:
        return Finding(name, found, f"too old for {what}, {'.'.join(map(str, oldest))} or later: {remedy}")
    return Finding(name, found, f"for {what}")


def _found_vllm() -> Finding:
    found = find_vllm()
    if found is None:
        return Finding("vllm", "not installed", f"optional, for --engine vllm: {REMEDY}")
    why = "for --engine vllm" if found.recent else f"too old for --engine vllm: {REMEDY}"
    return Finding(found.distribution, found.version, why)


def _machine() -> list[Finding]:
    memory = host.memory()
    return [
        Finding("cores", str(host.cores()), "the cores this process may use"),
        _compiler(),
        Finding("cache", str(cache_dir()), "converted models and compiled kernels; set LIVERY_CACHE to move it"),
        Finding(
            "memory",
            f"{_size(memory.available)} of {_size(memory.total)} free",
            "weights, KV and adapters share it",
        ),
    ]


def _compiler() -> Finding:
    """What the engine would build its CPU kernels with."""
    try:
        compiler = find_compiler()
    except BuildFailed as failed:
        return Finding("compiler", "none", f"{failed}; until then the torch kernels are used")
    return Finding("compiler", shlex.join(compiler.command), f"{compiler.version}: builds the CPU kernels on first use")


def _engine(settings: Settings, model: str | None) -> list[Finding]:
    """Asks torch and the engine's own modules; imported here because they take seconds."""
    try:
        import torch
    except ImportError as error:
        return [Finding("engine", UNUSABLE, f"torch can't be imported: {error}")]
    from livery.engine.devices import choose, load_chosen

    try:
        wanted = engine_config(settings, resolve_model(model).path if model is not None else Path())
        compute = choose(wanted)
        base = _base(wanted, compute, model)
        if wanted.deterministic:
            load_chosen(wanted, compute)
    except (ModelRefused, ModelNotFound) as refused:
        return [Finding("engine", UNUSABLE, str(refused))]
    findings = [_device(compute), Finding("dtype", compute.dtype_name, compute.why_dtype)]
    if compute.device.type == "cpu":
        findings.append(Finding("instructions", torch.backends.cpu.get_cpu_capability(), "what torch uses of this CPU"))
    else:
        free, total = torch.cuda.mem_get_info(compute.device)
        findings.append(Finding("GPU memory", f"{_size(free)} of {_size(total)} free", ""))
    findings += [*_kernels(compute), Finding("weights", compute.weights, compute.why_weights), *base]
    return [*findings, *_ways(wanted, compute), *_budget(wanted, compute)]


def _base(wanted: EngineConfig, compute: Compute, model: str | None) -> list[Finding]:
    """How the base would be quantised, and what it would take. Raises ModelRefused where it can't be."""
    from livery.engine.base_bytes import expected_bytes
    from livery.engine.quantization import choose_quantization

    chosen = choose_quantization(wanted, compute.device.type)
    if chosen is None:
        quantized = Finding("quantization", "none", "by a library; --quantization names one, or the checkpoint does")
    else:
        source = f"asked for with --quantization {chosen.on_load}" if chosen.on_load else "as the checkpoint says"
        note = chosen.scheme.on_cpu if compute.device.type == "cpu" else ""
        quantized = Finding(
            "quantization", chosen.scheme.name, "; ".join(filter(None, (source, note, chosen.scheme.untested)))
        )
    if model is None:
        return [quantized]
    from livery.engine.model import base_shapes
    from livery.engine.packed_bytes import packed_bytes

    file = [Finding("gguf", "widened", note)] if (note := widened(model)) else []
    in_panels = compute.device.type == "cpu" and compute.dtype_name == "float32" and compute.kernels != "torch"
    expected = expected_bytes(
        Path(wanted.model_path),
        base_shapes(wanted.model_path),
        chosen,
        compute.dtype.itemsize,
        packed_bytes if chosen is not None and in_panels else None,
    )
    full = f"{_size(expected.full)} in {compute.dtype_name}"
    if chosen is None:
        why = f"{full}; less where weights fit into fewer bits, as those of GGUF and bf16 files do on a CPU"
        return [quantized, *file, Finding("base", f"at most {_size(expected.held)}", why)]
    why = f"{full}; the head, which isn't quantised, as its numbers fit" if in_panels else full
    return [quantized, *file, Finding("base", f"at most {_size(expected.held)}", why)]


def _vllm(settings: Settings, model: str | None) -> list[Finding]:
    """What vLLM would be started with, as far as it is known without the model; and whether that is there."""
    return [*_vllm_knobs(settings), *([_found_model(model)] if model is not None else [])]


def _found_model(model: str) -> Finding:
    try:
        return Finding("model", model, f"in {resolve_model(model).path}")
    except ModelNotFound as missing:
        return Finding("model", UNUSABLE, str(missing))


def _vllm_knobs(settings: Settings) -> list[Finding]:
    from livery.engine.vllm_args import room_for
    from livery.engine.vllm_found import require_vllm
    from livery.running.engines import check_knobs, registered_ranks

    try:
        check_knobs(settings)
        require_vllm()
        ranks = registered_ranks(settings)
        room = room_for(
            ranks,
            settings.max_running,
            loras=settings.max_loras,
            cpu_loras=settings.max_cpu_loras,
            rank=settings.max_lora_rank,
        )
    except (SettingsError, ModelRefused) as refused:
        return [Finding("engine", UNUSABLE, str(refused))]
    why = f"for {len(ranks)} adapters, the highest of rank {max(ranks, default=0)}"
    given = " ".join(settings.vllm_arg) or "none"
    return [
        Finding("engine", "vllm", "in processes of its own, started by the API's"),
        Finding("adapters in a batch", str(room.max_loras), f"{why}; --max-loras sets it"),
        Finding("adapters in host memory", str(room.max_cpu_loras), f"{why}; --max-cpu-loras sets it"),
        Finding("highest rank", str(room.max_rank), f"{why}; --max-lora-rank sets it"),
        Finding("vLLM's own", given, "--vllm-arg KEY=VALUE; which there are is known once it starts"),
    ]


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
        found |= {"library": f"{Path(found['library']).stem[:12]} in the cache"} if "library" in found else {}
        why = found.pop("reason", "") or ", ".join(f"{label}: {text}" for label, text in found.items() if text)
    return [
        Finding("attention", f"paged, {name}", "one call per layer for all rows of a step"),
        Finding("kernels", name, why),
    ]


def _ways(wanted: EngineConfig, compute: Compute) -> list[Finding]:
    """How steps are computed, as far as it is known before there is a model."""
    if wanted.decoder == "auto":
        decoder = Finding("decoder", "fused", "for Llama, Mistral, Qwen2 and Qwen3; transformers' own for others")
    else:
        decoder = Finding("decoder", wanted.decoder, f"asked for with --decoder {wanted.decoder}")
    if compute.device.type != "cpu":
        threads = Finding("threads", "of the device", "--threads is for CPUs")
    elif wanted.threads:
        threads = Finding("threads", str(wanted.threads), f"asked for with --threads {wanted.threads}")
    else:
        threads = Finding("threads", f"at most {host.cores()}", "measured at start; --threads sets them")
    recordable = compute.kernels == "triton"
    graphs = _on(recordable and wanted.graphs != "off")
    guessed = f"at most {wanted.speculate} tokens" if wanted.speculate else "off"
    cache = "equal beginnings are computed once; --no-prefix-cache turns it off"
    same = "--deterministic: the same bits for a request whatever runs beside it"
    return [
        decoder,
        threads,
        Finding(
            "CUDA graphs",
            graphs,
            "decoding steps; --graphs off turns them off" if recordable else "need Triton's kernels",
        ),
        Finding("speculation", guessed, "ahead per answer and step; --speculate sets how many"),
        Finding("prefix cache", _on(wanted.prefix_cache), cache if wanted.prefix_cache else "--no-prefix-cache"),
        Finding("deterministic", _on(wanted.deterministic), same),
    ]


def _budget(wanted: EngineConfig, compute: Compute) -> list[Finding]:
    from livery.engine.memory import budget_of

    budget = budget_of(wanted, compute.device)
    share = "a share of what is free, measured again once the weights are loaded"
    half = "half of the KV cache" if compute.device.type == "cpu" else share
    return [
        Finding(name, _size(size), f"asked for with {knob}" if asked else f"{why}; {knob} sets it")
        for name, size, asked, knob, why in (
            ("KV cache", budget.kv, wanted.kv_memory_bytes, "--kv-memory", share),
            ("adapters", budget.adapters, wanted.adapter_memory_bytes, "--adapter-memory", half),
            ("host adapters", budget.host_adapters, wanted.host_adapter_memory_bytes, "--host-adapter-memory", share),
        )
    ]


def _on(switch: bool) -> str:
    return "on" if switch else "off"


def _size(size: int) -> str:
    return ByteSize(size).human_readable()
