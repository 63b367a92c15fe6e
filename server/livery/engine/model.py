"""The base model: loaded, taken apart where adapters and the paged cache come in, and proven right before use."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from livery.engine.attention import PAGED
from livery.engine.base import EngineConfig, ModelRefused
from livery.engine.lengths import scaled_length
from livery.engine.lora.experts import proven
from livery.engine.quantization import Chosen, choose_quantization
from livery.engine.quantized import loading_options, own_quantized_memory, wrap_quantized
from livery.engine.rope import freeze_rope
from livery.engine.structure import ModelStructure, discover
from livery.engine.weightless import weightless
from livery_adapters.base_model import BaseShapes

log = logging.getLogger(__name__)

CANARY_LENGTHS = (11, 6)
CANARY_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 6e-2}


@dataclass(frozen=True, slots=True)
class Canary:
    """Token ids of a few sequences and the logits a plain forward gives after each of them."""

    sequences: tuple[list[int], ...]
    logits: Tensor  # [sequences, vocabulary], fp32


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A causal LM as transformers builds it, with what was found out about it."""

    model: nn.Module
    structure: ModelStructure
    dtype: torch.dtype
    trained_len: int  # positions the model was made for, by training or by the scaling of its RoPE
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None = None

    @property
    def architecture(self) -> str:
        return type(self.model).__name__


def load_model(config: EngineConfig, device: torch.device, dtype: torch.dtype) -> LoadedModel:
    """Load the model of `config.model_path`. Raises ModelRefused with the reason, torch.OutOfMemoryError on a GPU."""
    quantized = choose_quantization(config, device.type)
    transformers_logging.disable_progress_bar()
    try:
        model: Any
        model, report = AutoModelForCausalLM.from_pretrained(
            config.model_path,
            dtype=dtype,
            attn_implementation="eager",
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **_quantized_loading(quantized, device, dtype),
        )
    except torch.OutOfMemoryError:
        raise
    except (ValueError, KeyError, OSError, RuntimeError, ImportError, SafetensorError) as error:
        raise ModelRefused(f"{config.model_path} can't be loaded by transformers: {error}") from error
    if missing := sorted(report["missing_keys"]):  # transformers would fill them with random numbers
        raise ModelRefused(f"{config.model_path} lacks {len(missing)} of the model's weights, such as {missing[0]}")
    model = (model if quantized else model.to(device)).eval().requires_grad_(False)
    if quantized:
        wrap_quantized(model, dtype, quantized.scheme.name)
        if not quantized.on_load:
            own_quantized_memory(model)
    _own_memory(model)
    text = model.config.get_text_config()
    return LoadedModel(
        model=model,
        structure=_proven(model, discover(model)),
        dtype=dtype,
        trained_len=scaled_length(int(getattr(text, "max_position_embeddings", 0) or 4096), text.to_dict()),
        vocab_size=int(text.vocab_size),
        eos_token_ids=_eos_ids(model),
        pad_token_id=getattr(text, "pad_token_id", None),
    )


def prepare(loaded: LoadedModel, max_model_len: int) -> tuple[Canary, str]:
    """Fix RoPE for the longest sequence admitted, note what a plain forward says, and switch to paged attention.

    Returns the canary and the name of the RoPE choice. Call once, before modules are replaced.
    """
    rope = freeze_rope(loaded.model, max_model_len)
    model: Any = loaded.model
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    sequences = tuple(torch.randint(0, loaded.vocab_size, (n,), generator=generator).tolist() for n in CANARY_LENGTHS)
    with torch.inference_mode():
        last = [model(torch.tensor([ids], device=device), use_cache=False).logits[0, -1] for ids in sequences]
    model.set_attn_implementation(PAGED)
    return Canary(sequences, torch.stack(last).float()), rope


def verify(loaded: LoadedModel, canary: Canary, paged: Tensor) -> None:
    """Compare the canary's logits through the paged, chunked path with the plain forward's.

    `paged` is [sequences, vocabulary]. Raises ModelRefused when they differ: the model does something between
    its layers that the engine doesn't see.
    """
    worst = float((paged.float() - canary.logits).abs().max() / canary.logits.abs().max())
    tolerance = CANARY_TOLERANCE[loaded.dtype]
    if not worst <= tolerance:
        raise ModelRefused(
            f"{loaded.architecture} can't be served: computed in chunks over the paged cache its logits differ from "
            f"its plain forward by {worst:.1e} (allowed: {tolerance:.0e}); it keeps state that this engine doesn't see"
        )


def base_shapes(model_path: str) -> BaseShapes:
    """What of a model adapters may change, from its configuration alone: no weight is read. Raises ModelRefused."""
    model = weightless(model_path)
    try:
        return _proven(model, discover(model)).shapes
    except ModelRefused:
        raise
    except Exception as error:  # whatever a model's own code stumbles over
        name = type(model).__name__
        raise ModelRefused(f"{name} can't be served: its forward fails without its weights: {error}") from error


def _quantized_loading(quantized: Chosen | None, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What transformers is told beside the usual; what to know of the form is logged."""
    if quantized is None:
        return {}
    notes = (quantized.scheme.on_cpu if device.type == "cpu" else "", quantized.scheme.untested)
    for note in filter(None, notes):
        log.warning("%s: %s", quantized.scheme.name, note)
    return loading_options(quantized, str(device), dtype)


def _proven(model: nn.Module, structure: ModelStructure) -> ModelStructure:
    """Without the experts that compute something else than experts of their description do."""
    experts = proven(model, structure.shapes.experts)
    return replace(structure, shapes=replace(structure.shapes, experts=experts))


def _own_memory(model: nn.Module) -> None:
    """Copy every weight out of the mapped files, which then may be replaced or deleted under a running server."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()


def _eos_ids(model: Any) -> tuple[int, ...]:  # noqa: ANN401
    for source in (model.generation_config, model.config):
        eos = getattr(source, "eos_token_id", None)
        if eos is not None:
            return tuple(eos) if isinstance(eos, list) else (int(eos),)
    return ()


Progress = Callable[[str], None]
