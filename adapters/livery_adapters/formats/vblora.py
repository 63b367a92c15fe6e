"""VB-LoRA (arXiv 2405.15179): A and B made of pieces, each a mixture of a few vectors of one bank. In fp32."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from livery_adapters.canonical import BaseWeights, LinearChange, LowRank
from livery_adapters.formats.base import Conversion, Tensors
from livery_adapters.layout import AdapterManifest, TargetTensors
from livery_adapters.refusal import AdapterRefused
from livery_adapters.types.vblora import VbLoraSettings


def check_bank(manifest: AdapterManifest, tensors: Tensors, base: BaseWeights) -> Tensors:
    """The bank in fp32; it must be there and as the configuration says. Raises AdapterRefused."""
    settings = manifest.settings
    assert isinstance(settings, VbLoraSettings)
    bank = tensors.get("vblora_vector_bank")
    if bank is None:
        raise AdapterRefused("missing_half", "base_model.vblora_vector_bank is missing; save the adapter again")
    if bank.shape != (settings.count, settings.length):
        raise AdapterRefused(
            "wrong_shape",
            f"the vector bank is {list(bank.shape)} and adapter_config.json says {settings.count} vectors of "
            f"{settings.length}; the two files don't belong together",
        )
    return {"vblora_vector_bank": bank.float()}


def convert_module(
    target: TargetTensors, tensors: Tensors, settings: VbLoraSettings, base: BaseWeights
) -> LinearChange:
    """A [rank, in] from [rank, pieces, ...], B [out, rank] from [pieces, rank, ...]."""
    a = _pieces(target.module, "vblora_logits_A", tensors, settings).flatten(1)
    b = _pieces(target.module, "vblora_logits_B", tensors, settings).transpose(1, 2).flatten(0, 1)
    return LinearChange(deltas=(LowRank(a=a, b=b, scale=1.0),))


def _pieces(module: str, name: str, tensors: Tensors, settings: VbLoraSettings) -> Tensor:
    """[x, y, length]: the mixtures of one half, summed up without laying the chosen vectors side by side."""
    bank = tensors["vblora_vector_bank"]
    if settings.mixed:
        indices, weights = tensors[f"{name}_topk_indices"].long(), tensors[f"{name}_topk_weights"].float()
        if not bool(((indices >= 0) & (indices < settings.count)).all()):
            raise AdapterRefused(
                "bad_field",
                f"{module}: {name}_topk_indices points outside the bank of {settings.count} vectors; save the "
                "adapter again",
            )
        weights = torch.cat([weights, 1 - weights.sum(-1, keepdim=True)], dim=-1)
    else:
        likeliest = tensors[name].float().topk(settings.top, dim=-1)
        indices, weights = likeliest.indices, likeliest.values.softmax(dim=-1)
    mixed = functional.embedding_bag(indices.flatten(0, 1), bank, per_sample_weights=weights.flatten(0, 1), mode="sum")
    return mixed.view(*indices.shape[:2], -1)


CONVERSION = Conversion(convert_module, shared=check_bank)
