"""Linear modules that a quantising library put into a model, as the rest of the engine sees them.

transformers has the library take the place of `nn.Linear`: with another class, another kind of tensor, or another
forward. What the model's own definition has as a linear module, and is no plain one any more, is wrapped here: the
library multiplies, and its tensors are all that is kept. Dequantised weights are made one module at a time for whoever
asks (norms of DoRA, the measure of an adapter), and dropped.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig
from transformers.pytorch_utils import Conv1D

from livery.engine.base import ModelRefused
from livery.engine.kernels.library import LibraryLinear, LibraryWeight
from livery.engine.quantization import Chosen

_COLUMNS_AT_ONCE = 256  # of a weight that can only be read by multiplying with it


class QuantizedLinear(nn.Module):
    """Stands where the library's module stands, which is kept out of sight of whoever walks over modules."""

    def __init__(self, module: Any, in_features: int, out_features: int, input_first: bool) -> None:  # noqa: ANN401
        """`input_first` is how the model's own module would hold its weight: that of GPT-2's Conv1D is transposed."""
        super().__init__()
        self.in_features, self.out_features, self.input_first = in_features, out_features, input_first
        found: Tensor | None = getattr(module, "bias", None)
        self.bias = None if found is None else nn.Parameter(found.detach(), requires_grad=False)
        module.bias = None  # added here
        self.held = LibraryWeight((_library_linear(module, in_features, out_features),))

    @property
    def weight(self) -> Tensor:
        """[out_features, in_features]; a copy, dequantised."""
        return self.held.dense()

    def forward(self, x: Tensor) -> Tensor:
        return self.held.product(x.reshape(-1, x.shape[-1]), self.bias).view(*x.shape[:-1], -1)


def loading_options(quantized: Chosen, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """What transformers is told beside the usual: libraries quantise on the device itself, and don't move later."""
    options: dict[str, Any] = {"device_map": {"": device}}
    if quantized.on_load:
        options["quantization_config"] = loading_config(quantized.on_load, dtype)
    return options


def loading_config(name: str, dtype: torch.dtype) -> Any:  # noqa: ANN401 (their configurations share no class)
    """What transformers is told for `--quantization NAME`; the library must be there."""
    if name == "bnb-int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    if name.startswith("bnb-nf4"):
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_use_double_quant=name == "bnb-nf4-double",
        )
    from torchao import quantization

    kinds = {
        "torchao-int8": quantization.Int8WeightOnlyConfig,
        "torchao-int4": functools.partial(quantization.Int4WeightOnlyConfig, int4_packing_format="tile_packed_to_4d"),
        "torchao-fp8": quantization.Float8WeightOnlyConfig,
    }
    return TorchAoConfig(kinds[name]())


def plain_linear(weight: Tensor) -> LibraryLinear:
    """A weight in full precision, [out_features, in_features], beside quantised ones of the same input."""
    return LibraryLinear(
        layout=str(weight.dtype).removeprefix("torch."),
        in_features=weight.shape[1],
        out_features=weight.shape[0],
        multiply=functools.partial(functional.linear, weight=weight),
        dequantize=weight.detach,
        count_bytes=lambda: weight.nbytes,
    )


def wrap_quantized(model: nn.Module, dtype: torch.dtype, name: str) -> None:
    """Put a QuantizedLinear in place of every linear module that isn't a plain one any more.

    `name` is that of the form. Raises ModelRefused where there is none such: transformers has then widened all weights
    on its way, or its library passes this model's modules over, and either takes several times the memory.
    """
    loaded: Any = model
    if hasattr(loaded, "ct_decompress_hook"):  # compressed-tensors would widen the whole model on its first forward
        loaded.ct_decompress_hook.remove()
        del loaded.ct_decompress_hook
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(loaded.config, attn_implementation="eager", trust_remote_code=False)
    found = dict(model.named_modules())
    wrapped = 0
    for path, own in plain.named_modules():
        if type(own) not in (nn.Linear, Conv1D) or path not in found or _is_plain(found[path]):
            continue
        transposed = isinstance(own, Conv1D)
        ins, outs = own.weight.shape if transposed else (own.in_features, own.out_features)
        _compute_in(found[path], dtype)
        model.set_submodule(path, QuantizedLinear(found[path], int(ins), int(outs), transposed))
        wrapped += 1
    if not wrapped:
        raise ModelRefused(
            f"{type(model).__name__} came out of transformers in full precision instead of {name}: it has no linear "
            "module that was quantised. Choose another form, or the model in full precision with --weights int8 or int4"
        )


def own_quantized_memory(model: nn.Module) -> None:
    """Copy every tensor of wrapped modules out of the mapped files, which may be replaced under a running server."""
    for module in model.modules():
        if isinstance(module, QuantizedLinear):
            for part in module.held.parts:
                for tensor in kept_tensors(part.multiply):
                    tensor.data = tensor.data.clone()


def kept_tensors(thing: object) -> Iterator[Tensor]:
    """Every tensor that an object keeps, however deep in its attributes; of tensors made of others only those."""
    seen: set[int] = set()
    waiting: list[object] = [thing]
    while waiting:
        found = waiting.pop()
        if id(found) in seen or found is None or isinstance(found, type):
            continue
        seen.add(id(found))
        if isinstance(found, Tensor):
            inner = getattr(found, "__tensor_flatten__", None)
            if inner is None:
                yield found
            else:
                waiting += [getattr(found, name) for name in inner()[0]]
                continue
        elif isinstance(found, functools.partial):
            waiting += [*found.args, *found.keywords.values()]
            continue
        if isinstance(found, dict):
            waiting += found.values()
        elif isinstance(found, list | tuple):
            waiting += found
        elif hasattr(found, "__self__"):  # a bound method
            waiting.append(found.__self__)
        elif hasattr(found, "__dict__"):
            waiting += vars(found).values()


def _is_plain(module: nn.Module) -> bool:
    """Whether a linear module is as torch makes it, its weight a tensor of numbers."""
    weight = getattr(module, "weight", None)
    plain_weight = type(weight) is nn.Parameter and weight.is_floating_point() and weight.dtype.itemsize > 1
    return type(module) in (nn.Linear, Conv1D) and plain_weight and "forward" not in vars(module)


def _compute_in(module: Any, dtype: torch.dtype) -> None:  # noqa: ANN401
    """Have bitsandbytes' 4 bits multiply in the engine's own numbers, whatever their checkpoint was made with."""
    if hasattr(module, "compute_dtype"):
        module.compute_dtype, module.compute_type_is_set = dtype, True
        # Where a CPU has AVX512-BF16 it would lay weights out anew in its first product, their scales rounded to bf16.
        module.support_avx512bf16_for_cpu = False


def _library_linear(module: Any, in_features: int, out_features: int) -> LibraryLinear:  # noqa: ANN401
    """How to multiply with and to read what a library made of a linear module, its bias taken away."""
    part = functools.partial
    weight: Any = getattr(module, "weight", None)
    kind, multiply = type(weight).__name__, part(_multiply, module)
    if kind == "Params4bit":
        layout, read = f"bitsandbytes {weight.quant_state.quant_type}", part(_read_4bit, module)
    elif kind == "Int8Params":
        layout, read = "bitsandbytes int8", part(_read_8bit, module)
    elif type(weight).__module__.startswith("torchao."):
        layout, read = f"torchao {kind}", part(_read_torchao, module)
    elif _is_compressed(module):
        layout = f"compressed-tensors {module.quantization_scheme.format.value}"
        read, multiply = part(_read_compressed, module), part(_multiply_compressed, module)
    else:
        layout, read = type(module).__name__, part(_read_by_multiplying, module, in_features)
    return LibraryLinear(layout, in_features, out_features, multiply, read, part(_bytes, module))


def _multiply(module: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = module(x)
    return y


def _bytes(module: nn.Module) -> int:
    """Each stretch of memory counted once."""
    held = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept_tensors(module)}
    return sum(held.values())


def _read_4bit(module: Any) -> Tensor:  # noqa: ANN401
    from bitsandbytes.functional import dequantize_4bit

    found: Tensor = dequantize_4bit(module.weight.data, module.weight.quant_state)
    return found.to(module.compute_dtype)


def _read_8bit(module: Any) -> Tensor:  # noqa: ANN401
    scales: Tensor = module.state.SCB if module.state.SCB is not None else module.weight.SCB
    codes: Tensor = module.weight.data
    return codes.float() * (scales.float() / 127)[:, None]


def _read_torchao(module: Any) -> Tensor:  # noqa: ANN401
    found: Tensor = module.weight.detach().dequantize()
    return found


def _is_compressed(module: Any) -> bool:  # noqa: ANN401
    status = getattr(getattr(module, "quantization_status", None), "value", "")
    return hasattr(module, "quantization_scheme") and status == "compressed"


def _read_compressed(module: Any) -> Tensor:  # noqa: ANN401
    from compressed_tensors.compressors import BaseCompressor

    scheme = module.quantization_scheme
    kept = {**module._parameters, **module._buffers}
    compressor = BaseCompressor.get_value_from_registry(scheme.format.value)
    found: Tensor = compressor.decompress({name: value for name, value in kept.items() if value is not None}, scheme)[
        "weight"
    ]
    return found.detach()


def _multiply_compressed(module: Any, x: Tensor) -> Tensor:  # noqa: ANN401
    """The library's own product is of weights that it has widened for good; here they live as long as the product."""
    if module.quantization_scheme.input_activations:
        from compressed_tensors.quantization.lifecycle.forward import forward_quantize

        x = forward_quantize(module, x, "input", module.quantization_scheme.input_activations)
    return functional.linear(x, _read_compressed(module).to(x.dtype))


def _read_by_multiplying(module: nn.Module, in_features: int) -> Tensor:
    """A weight that is known only by what it does: columns come out of unit rows."""
    like = next(kept_tensors(module))
    columns = []
    for first in range(0, in_features, _COLUMNS_AT_ONCE):
        count = min(_COLUMNS_AT_ONCE, in_features - first)
        rows = torch.zeros((count, in_features), device=like.device)
        rows[torch.arange(count), torch.arange(first, first + count)] = 1
        with torch.inference_mode():
            columns.append(_multiply(module, rows).t())
    return torch.cat(columns, dim=1)
