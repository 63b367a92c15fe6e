"""Quantised models as transformers loads them, and checkpoints as the libraries themselves write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme, apply_quantization_config
from compressed_tensors.quantization.quant_args import QuantizationArgs, QuantizationStrategy
from peft.utils.integrations import dequantize_module_weight
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from livery.engine.quantized import loading_config


def quantized_base(base: Path, scheme: str) -> Any:
    """As transformers alone loads it."""
    config = loading_config(scheme, torch.float32)
    return in_fp32(
        AutoModelForCausalLM.from_pretrained(
            base, dtype=torch.float32, attn_implementation="eager", quantization_config=config, device_map={"": "cpu"}
        )
    )


def reference(checkpoint: Path) -> Any:
    """A checkpoint as transformers alone loads it."""
    return in_fp32(
        AutoModelForCausalLM.from_pretrained(
            checkpoint, dtype=torch.float32, attn_implementation="eager", device_map={"": "cpu"}
        )
    )


def in_fp32(model: Any) -> Any:
    """bitsandbytes' 4 bits multiplied in fp32, not by its product in bf16 for some CPUs."""
    for module in model.modules():
        if hasattr(module, "compute_dtype"):
            module.compute_dtype, module.compute_type_is_set = torch.float32, True
            module.support_avx512bf16_for_cpu = False
    return model.eval()


def written_out(base: Path, scheme: str) -> Any:
    """The plain model with the quantised one's numbers, as PEFT reads them."""
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager").eval()
    for path, module in quantized_base(base, scheme).named_modules():
        if isinstance(module, nn.Linear):
            plain.get_submodule(path).weight.data = dequantize_module_weight(module).detach().float()
    return plain


def nf4_with_plain_keys(base: Path, target: Path) -> Path:
    """bitsandbytes' own checkpoint, made for products in bf16, whose k_proj stayed as they were."""
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_use_double_quant=True,
        llm_int8_skip_modules=["k_proj", "lm_head"],
    )
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, quantization_config=config, device_map={"": "cpu"}
    )
    model.save_pretrained(target)
    return target


def torchao_int8(base: Path, target: Path) -> Path:
    quantized_base(base, "torchao-int8").save_pretrained(target)
    return target


def compressed(base: Path, target: Path) -> Path:
    """4 bits in groups of 32, as llm-compressor packs them."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    weights = QuantizationArgs(num_bits=4, symmetric=True, strategy=QuantizationStrategy.GROUP, group_size=32)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    apply_quantization_config(model, QuantizationConfig(config_groups={"all": scheme}, ignore=["lm_head"]))
    for module in model.modules():
        if hasattr(module, "weight_scale"):
            grouped = module.weight.detach().unflatten(1, (-1, 32))
            module.weight_scale.data = grouped.abs().amax(dim=2) / 7
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(target)
    compressor.update_config(str(target))
    return target
