"""Which device, number format and kernels an engine computes with, and why. Decided here and nowhere else."""

from __future__ import annotations

import importlib.util
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from livery.engine.base import EngineConfig, ModelRefused
from livery.engine.kernels import KernelMode, Kernels, describe, load

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BFLOAT16_SINCE = (8, 0)  # compute capability (Ampere); older GPUs emulate it, slower than float32


@dataclass(frozen=True, slots=True)
class Compute:
    """What was chosen, each with its reason. `kernels` is what `livery.engine.kernels.load` is to be asked for."""

    device: torch.device
    dtype: torch.dtype
    kernels: KernelMode
    why_device: str
    why_dtype: str
    why_kernels: str
    weights: Literal["exact", "fp32", "bf16", "int8", "int4"]  # how the weights of linear modules are held
    why_weights: str

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")


def choose(config: EngineConfig) -> Compute:
    """What a configuration comes to on this machine. Raises ModelRefused for what isn't there or contradicts itself."""
    device, why_device = _device(config.device)
    dtype, why_dtype = _dtype(config.dtype, device)
    kernels, why_kernels = _kernels(config.kernels, device, dtype)
    if config.deterministic:
        _check_deterministic(config, device, dtype)
    weights, why_weights = _weights(config.weights, device, dtype)
    return Compute(device, dtype, kernels, why_device, why_dtype, why_kernels, weights, why_weights)


def load_chosen(config: EngineConfig, compute: Compute) -> Kernels:
    """The kernels to compute with, compiled if need be. Raises ModelRefused where --deterministic needs others."""
    kernels = load(compute.kernels)
    if config.deterministic and kernels.name != "native":
        raise ModelRefused(f"--deterministic needs the native kernels, which can't be had: {describe()['reason']}")
    return kernels


def out_of_memory(config: EngineConfig, device: torch.device, error: torch.OutOfMemoryError) -> ModelRefused:
    """Why a model can't be held or tried on a device, with what would help."""
    smaller = [option for option, size in _sizes(config) if size]
    lower = f"lower {' and '.join(smaller)}, " if smaller else ""
    return ModelRefused(
        f"{Path(config.model_path).name} doesn't fit into the memory of {device} beside what is held there now: "
        f"{lower}end what else computes there (nvidia-smi names it), name a device with more by --device, or hold the "
        f"base in fewer bytes by --quantization bnb-nf4. torch says: {str(error).splitlines()[0]}"
    )


def _sizes(config: EngineConfig) -> tuple[tuple[str, int], ...]:
    return ("--kv-memory", config.kv_memory_bytes), ("--adapter-memory", config.adapter_memory_bytes)


def answers(device: torch.device) -> bool:
    """Whether the device still computes: after some errors nothing of this process ever runs there again."""
    try:
        return bool(torch.ones(1, device=device).add(1).item() == 2)
    except RuntimeError:
        return False


def _check_deterministic(config: EngineConfig, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse what can't give the same bits in any company, as far as it shows before a model is loaded."""
    need = None
    if device.type != "cpu":
        need = f"a CPU, and the device is {device}: use --device cpu"
    elif dtype != torch.float32:
        need = f"float32: leave --dtype {config.dtype} out"
    elif config.kernels != "auto":
        need = f"the native kernels: leave --kernels {config.kernels} out"
    elif config.decoder != "auto":
        need = f"the fused decoder: leave --decoder {config.decoder} out"
    if need:
        raise ModelRefused(f"--deterministic needs {need}")


def _device(wanted: str) -> tuple[torch.device, str]:
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda"), "a CUDA device is there; --device cpu overrides"
        built = torch.version.cuda is not None
        return torch.device("cpu"), "torch finds no CUDA device" if built else "this torch is built without CUDA"
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise ModelRefused(f"device {wanted!r} is unknown to torch; use auto, cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelRefused(f"device {wanted!r} was asked for, but torch finds no CUDA device; use cpu or auto")
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        there = "cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        raise ModelRefused(f"device {wanted!r} was asked for, but torch finds {there} only; use one of these or auto")
    return device, f"asked for with --device {wanted}"


def _dtype(wanted: str, device: torch.device) -> tuple[torch.dtype, str]:
    if wanted != "auto":
        if wanted not in DTYPES:
            raise ModelRefused(f"dtype {wanted!r} is not supported; use auto, {' or '.join(DTYPES)}, or --engine vllm")
        return DTYPES[wanted], f"asked for with --dtype {wanted}"
    if device.type == "cpu":
        return torch.float32, "the default on CPU: exact; --dtype bfloat16 halves the memory"
    if (found := torch.cuda.get_device_capability(device)) < BFLOAT16_SINCE:
        return torch.float32, "this GPU's compute capability is {}.{}; those before {}.{} have no bfloat16".format(
            *found, *BFLOAT16_SINCE
        )
    return torch.bfloat16, "the default on CUDA; --dtype float32 overrides"


def _kernels(wanted: KernelMode, device: torch.device, dtype: torch.dtype) -> tuple[KernelMode, str]:
    """The native kernels compute float32 on a CPU and nothing else; Triton's are for CUDA."""
    if wanted != "auto":
        return wanted, f"asked for with --kernels {wanted}"
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            return "torch", "Triton is missing, which torch's CUDA builds bring along: pip install triton"
        if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
            return "torch", "slower than Triton's, which need a C compiler: apt-get install gcc, or set CC"
        return "triton", "Triton's, compiled for this device on first use"
    if device.type != "cpu":
        return "torch", f"the native kernels are for CPUs, not for {device.type}"
    if dtype != torch.float32:
        return "torch", "the native kernels compute in float32; --dtype float32 uses them"
    return "auto", "native where a C++ compiler is found"


def _weights(
    wanted: Literal["auto", "fp32", "bf16", "int8", "int4"], device: torch.device, dtype: torch.dtype
) -> tuple[Literal["exact", "fp32", "bf16", "int8", "int4"], str]:
    """The layouts of few bits are widened to float32 by the CPU's kernels and by nothing else."""
    if wanted == "auto":
        if device.type == "cpu" and dtype == torch.float32:
            return "exact", "each in the fewest bits that hold its very numbers; --weights int8 or int4 rounds"
        return "exact", f"in {str(dtype).removeprefix('torch.')}, as computed"
    if device.type != "cpu" or dtype != torch.float32:
        raise ModelRefused(
            f"--weights {wanted} is for CPUs computing in float32, not for {device.type} in "
            f"{str(dtype).removeprefix('torch.')}; leave it at auto"
        )
    if wanted == "fp32":
        return wanted, "asked for with --weights fp32"
    return wanted, f"asked for with --weights {wanted}: rounded where {wanted} can't hold the numbers"
