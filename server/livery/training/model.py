"""The base and what is trained of it: how it is loaded, which modules get an adapter, and casts between them."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import ModulesToSaveWrapper, load_peft_weights
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from livery.engine.base import EngineConfig
from livery.engine.lengths import scaled_length
from livery.engine.quantization import choose_quantization
from livery.engine.quantized import loading_options
from livery.models import ResolvedModel
from livery.training.run_file import AnyRun


class TrainingStopped(Exception):
    """A run can't go on; the message says at which step, why, and the remedy."""


def chosen_device(run: AnyRun) -> str:
    """Raises TrainingStopped."""
    if run.device != "cpu":
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # with several, a Trainer would part its batches over all
    if run.device == "cuda" and not torch.cuda.is_available():
        raise TrainingStopped("device is cuda, and torch finds no GPU; leave it out, or say cpu")
    return "cuda" if run.device != "cpu" and torch.cuda.is_available() else "cpu"


def chosen_dtype(run: AnyRun, device: str) -> torch.dtype:
    """Of the base's weights."""
    name = run.dtype if run.dtype != "auto" else "bfloat16" if device == "cuda" else "float32"
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def load_base(run: AnyRun, base: ResolvedModel, device: str) -> Any:  # noqa: ANN401  (transformers has no types)
    """The base, quantised where the run says so. Raises ModelRefused, TrainingStopped."""
    dtype = chosen_dtype(run, device)
    quantized = choose_quantization(EngineConfig(str(base.path), quantization=run.quantization), device)
    model: Any = AutoModelForCausalLM.from_pretrained(
        base.path,
        dtype=dtype,
        attn_implementation="sdpa",
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        **(loading_options(quantized, device, dtype) if quantized else {}),
    )
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):  # bitsandbytes' 4 bits, multiplied as the engine has them
            module.compute_dtype, module.compute_type_is_set = dtype, True
            # That product rounds a base's scales to bf16 for good, and once it was used passes no gradient on.
            module.support_avx512bf16_for_cpu = False
    text = model.config.get_text_config()
    most = scaled_length(int(getattr(text, "max_position_embeddings", 0) or 0), text.to_dict())
    if most and run.max_length > most:
        raise TrainingStopped(
            f"max_length is {run.max_length}, and the base reads {most} tokens; give no more than that"
        )
    return model


def lora_config(run: AnyRun, model: Any) -> LoraConfig:  # noqa: ANN401
    wanted = run.adapter
    targets: str | list[str] = list(wanted.target_modules)
    if targets == ["all-linear"]:  # which PEFT takes for every layer, whatever layers are named
        targets = _linear(model) if wanted.layers else "all-linear"
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=wanted.r,
        lora_alpha=wanted.lora_alpha,
        lora_dropout=wanted.lora_dropout,
        target_modules=targets,
        layers_to_transform=list(wanted.layers) or None,
        use_rslora=wanted.use_rslora,
        use_dora=wanted.use_dora,
        modules_to_save=list(wanted.modules_to_save) or None,
    )


def _linear(model: Any) -> list[str]:  # noqa: ANN401
    """The last parts of linear modules' names, but for the head."""
    head = model.get_output_embeddings()
    found = (
        name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D) and module is not head
    )
    return sorted({name.rpartition(".")[2] for name in found})


def begin_with(model: Any, start: Path) -> None:  # noqa: ANN401
    """Give each of a model's adapters the weights of the one at `start`, in fp32.

    TRL has rounded the adapter over a quantised base, and for DPO made a second one, which is to be the same: of that
    it fills only parameters in the midst of whose names an adapter's stands, so that pairs of embeddings and rows of
    tokens are new. Raises TrainingStopped.
    """
    weights = load_peft_weights(str(start), device="cpu")
    for name, parameter in model.named_parameters():
        if not model.peft_config.keys().isdisjoint(name.split(".")):
            parameter.data = parameter.data.float()
    held = []
    for name in model.peft_config:
        set_peft_model_state_dict(model, weights, adapter_name=name)
        held.append(get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False))
    for other in held[1:]:
        if other.keys() != held[0].keys() or any(not torch.equal(held[0][key], other[key]) for key in other):
            raise TrainingStopped(
                f"PEFT holds two copies of {start} that differ, so that DPO has no reference; kind: sft goes on with it"
            )


def drop_only_for(model: nn.Module, adapter: str) -> None:
    """Without dropout but for that of an adapter's inputs: what DPO compares with is to be the same each time."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and not name.endswith(f"lora_dropout.{adapter}"):
            module.p = 0.0


def cast_around_whole_modules(model: Any, dtype: torch.dtype) -> None:  # noqa: ANN401
    """Modules that are trained whole are fp32 in a base that may not be (`dtype`), and PEFT casts for LoRA's alone.

    What goes into one is cast, and what comes out is cast back, but for logits.
    """
    head = model.get_output_embeddings()
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            for whole in module.modules_to_save.values():
                whole.register_forward_pre_hook(_to_its_own)
                if module is not head:
                    whole.register_forward_hook(lambda _, given, found: found.to(dtype))


def _to_its_own(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    dtype = next(module.parameters()).dtype
    return tuple(one.to(dtype) if isinstance(one, Tensor) and one.is_floating_point() else one for one in given)


def free_memory() -> None:
    """Of models that nothing refers to any more; others see what torch keeps of a GPU's as taken."""
    gc.collect()  # modules may refer to each other in circles
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
