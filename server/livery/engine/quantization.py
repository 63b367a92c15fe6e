"""In which quantised forms a base can be loaded, what each needs and where it computes. Asked before a byte is loaded.

Weights on their way in are quantised, and multiplied, by the library whose form it is, as transformers loads it: here
stands only what `--quantization` may say, what a checkpoint's config.json says, and what is refused. Imports no torch.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from livery.engine.base import EngineConfig, ModelRefused

REMEDY = "pip install 'livery[quantization]'"
_FP8_ON_CPU = "transformers would widen its weights to bfloat16, and hold them so"
_NO_CPU_KERNEL = "transformers has no product for it on a CPU"


@dataclass(frozen=True, slots=True)
class Scheme:
    """A form of quantised weights. `modules` are what must be importable, `remedy` is how to get them.

    `no_cpu` says why a CPU can't compute it, `on_cpu` what to know where one does; both may be empty. `tried`: whether
    this project's tests compute a base in it. Of what `--quantization` makes it is known what it takes: `bits` a
    weight, and `scale_bits` for each `block` of weights, or each row where that is 0.
    """

    name: str
    modules: tuple[str, ...]
    no_cpu: str = ""
    on_cpu: str = ""
    bits: int = 0
    scale_bits: float = 0.0
    block: int = 0
    remedy: str = REMEDY
    tried: bool = True

    @property
    def untested(self) -> str:
        """What to know of a form that no test of this project has computed; empty for the others."""
        return "" if self.tried else "untested: no test of Livery has computed a base in it"

    def nbytes(self, in_features: int, out_features: int) -> int:
        """Of a linear module's weight, scales included."""
        weights = in_features * out_features
        scales = weights / self.block if self.block else out_features
        return int(weights * self.bits / 8 + scales * self.scale_bits / 8)


_BITSANDBYTES, _TORCHAO = ("bitsandbytes", "accelerate"), ("torchao",)
_SLOWER = "slower than in full precision on a CPU: it saves memory, not time; --weights int8 and int4 save both"
_ROUNDS_ROWS = (
    "it rounds what goes into a product to 8 bits too, in columns picked from all rows of a step, so that a request's "
    "logits change by a hundredth with what runs beside it. torchao-int8 takes as many bytes and leaves rows alone"
)

# What --quantization may ask for: linear modules but the head, quantised as they are loaded.
SCHEMES: Mapping[str, Scheme] = {
    "bnb-nf4": Scheme("bitsandbytes nf4", _BITSANDBYTES, "", _SLOWER, 4, 32, 64),
    "bnb-nf4-double": Scheme("bitsandbytes nf4, scales quantised", _BITSANDBYTES, "", _SLOWER, 4, 8.125, 64),
    "bnb-int8": Scheme("bitsandbytes int8", _BITSANDBYTES, _ROUNDS_ROWS, "", 8, 32, tried=False),
    "torchao-int8": Scheme("torchao int8", _TORCHAO, "", _SLOWER, 8, 32),
    "torchao-int4": Scheme("torchao int4", _TORCHAO, "torchao multiplies it on GPUs only", "", 4, 32, 128, tried=False),
    "torchao-fp8": Scheme("torchao fp8", _TORCHAO, "", _SLOWER, 8, 32),
}

_GPTQMODEL = "install gptqmodel and optimum, in an environment with the torch that they ask for"
# What a checkpoint's config.json may say of itself; methods that aren't here are left to transformers.
METHODS: Mapping[str, Scheme] = {
    "bitsandbytes": Scheme("bitsandbytes", _BITSANDBYTES, on_cpu=_SLOWER),
    "bitsandbytes int8": Scheme("bitsandbytes int8", _BITSANDBYTES, no_cpu=_ROUNDS_ROWS, tried=False),
    "torchao": Scheme("torchao", _TORCHAO, on_cpu=_SLOWER),
    "compressed-tensors": Scheme("compressed-tensors", ("compressed_tensors",), on_cpu=_SLOWER),
    "gptq": Scheme("GPTQ", ("gptqmodel", "optimum"), remedy=_GPTQMODEL, tried=False),
    "awq": Scheme("AWQ", ("gptqmodel", "accelerate"), remedy=_GPTQMODEL, tried=False),
    "hqq": Scheme("HQQ", ("hqq",), remedy="pip install hqq", tried=False),
    "quanto": Scheme(
        "quanto", ("optimum.quanto", "accelerate"), remedy="pip install optimum-quanto accelerate", tried=False
    ),
    "fp8": Scheme("fp8", (), no_cpu=_FP8_ON_CPU, tried=False),
    "mxfp8": Scheme("mxfp8", (), no_cpu=_FP8_ON_CPU, tried=False),
    "mxfp4": Scheme("mxfp4", (), no_cpu=_FP8_ON_CPU, tried=False),
    "fbgemm_fp8": Scheme("fbgemm fp8", (), no_cpu=_NO_CPU_KERNEL, tried=False),
    "nvfp4": Scheme("nvfp4", (), no_cpu=_NO_CPU_KERNEL, tried=False),
}


@dataclass(frozen=True, slots=True)
class Chosen:
    """How a base is held: quantised on its way in (`on_load`), or by its checkpoint."""

    scheme: Scheme
    on_load: str  # a name of SCHEMES, empty for a checkpoint's own


def choose_quantization(config: EngineConfig, device: str) -> Chosen | None:
    """How the model of `config` is to be loaded on a kind of device; None in full precision.

    Raises ModelRefused for what isn't installed, doesn't compute there or contradicts itself.
    """
    method = checkpoint_method(Path(config.model_path))
    if config.quantization == "auto":
        if not method:
            return None
        chosen = Chosen(METHODS.get(method, Scheme(method, (), tried=False)), "")
        source = f"{Path(config.model_path).name} is a checkpoint in {chosen.scheme.name}"
    else:
        source = f"--quantization {config.quantization}"
        if method:
            raise ModelRefused(
                f"{source} is for models in full precision, and {Path(config.model_path).name} is quantised already "
                f"({_named(method)}): leave --quantization out to serve it as it is, or name the model that it was "
                "made of"
            )
        chosen = Chosen(SCHEMES[config.quantization], config.quantization)
    _check(chosen.scheme, source, device)
    if config.weights != "auto":
        raise ModelRefused(f"{source} and --weights {config.weights} are two ways to hold weights: leave one out")
    if config.deterministic:
        raise ModelRefused(f"{source}, whose library multiplies rows together, so --deterministic can't be kept")
    return chosen


def check_flag(name: str, device: str) -> None:
    """Raise ModelRefused for a `--quantization NAME` that isn't installed or doesn't compute on a kind of device.

    `device` may be "auto", as long as nobody knows which it will be.
    """
    if name != "auto":
        _check(SCHEMES[name], f"--quantization {name}", device)


def _check(scheme: Scheme, source: str, device: str) -> None:
    if device == "cpu" and scheme.no_cpu:
        raise ModelRefused(
            f"{source}, which isn't for CPUs: {scheme.no_cpu}. Serve it on a GPU, or the model in full precision with "
            "--weights int8 or int4"
        )
    missing = [module for module in scheme.modules if not _found(module)]
    if missing:
        raise ModelRefused(f"{source}, which needs {' and '.join(missing)}: {scheme.remedy}")


def checkpoint_method(model: Path) -> str:
    """The method that a checkpoint says it is quantised by; empty for one in full precision, or without a config."""
    try:
        told = json.loads((model / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    for part in (told, told.get("text_config") or {}):
        found = part.get("quantization_config")
        if found:
            if found.get("load_in_8bit"):
                return "bitsandbytes int8"
            return "bitsandbytes" if found.get("load_in_4bit") else str(found.get("quant_method", "an unnamed method"))
    return ""


def _named(method: str) -> str:
    return METHODS[method].name if method in METHODS else method


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of a submodule whose parent isn't there
        return False
