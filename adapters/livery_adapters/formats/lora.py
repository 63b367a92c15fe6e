"""LoRA and its variants, all exact: the pairs of the file as they are, the scale kept apart."""

from __future__ import annotations

import torch
from torch import Tensor

from livery_adapters.canonical import (
    BaseWeights,
    EmbeddingChange,
    ExpertsChange,
    LinearChange,
    LowRank,
)
from livery_adapters.formats.base import Conversion, ReplacedWeights, Tensors, rows_by_id, trained_rows
from livery_adapters.formats.norms import column_norms, row_norms
from livery_adapters.formats.work import check_work, factorising
from livery_adapters.layout import AdapterManifest, TargetTensors
from livery_adapters.types.lora import LoraSettings


def convert_module(
    target: TargetTensors, tensors: Tensors, settings: LoraSettings, base: ReplacedWeights
) -> LinearChange | EmbeddingChange | ExpertsChange:
    """One module's change."""
    if target.kind == "rows":
        rows = rows_by_id(settings.tokens_of(target.module), tensors["trainable_tokens"])
        return trained_rows(target.module, rows, base)
    if target.kind == "experts":
        return _experts(target, tensors)
    if target.kind == "embedding":
        return _embedding(target, tensors, base)
    pair = LowRank(tensors["lora_A"], tensors["lora_B"], target.scale)
    deltas = (pair, *_taken_out(target, settings, base))
    return LinearChange(
        deltas=deltas,
        gain=_gain(tensors, row_norms(base.weight(target.module), deltas)) if settings.dora else None,
        bias=_bias(target, tensors["lora_B_bias"], base) if settings.bias else None,
    )


def _embedding(target: TargetTensors, tensors: Tensors, base: BaseWeights) -> EmbeddingChange:
    """PiSSA and OLoRA leave embeddings alone, so the pair is all of ΔW."""
    pair = LowRank(tensors["lora_embedding_A"], tensors["lora_embedding_B"], target.scale)
    if "magnitude" not in tensors:
        return EmbeddingChange(pair)
    return EmbeddingChange(pair, gain=_gain(tensors, column_norms(base.weight(target.module), pair)))


def _gain(tensors: Tensors, norms: Tensor) -> Tensor:
    """DoRA's m/‖W + ΔW‖ [out_features]: the norm is a constant at inference (section 4.3 of arXiv:2402.09353)."""
    return tensors["magnitude"].to(norms) / norms


def _bias(target: TargetTensors, trained: Tensor, base: BaseWeights) -> Tensor:
    """`lora_bias` adds scale · b_B to the base's bias, or to none."""
    added = target.scale * trained.float()
    bias = base.bias(target.module)
    return added if bias is None else bias.float().to(added.device) + added


def _taken_out(target: TargetTensors, settings: LoraSettings, base: ReplacedWeights) -> tuple[LowRank, ...]:
    """What the initialisation takes out of the base's weight when PEFT loads the adapter.

    PiSSA (arXiv:2404.02948) takes the leading singular triples, OLoRA (arXiv:2406.01775) the leading part of the QR
    factorisation of the weight as it lies in memory. Both are products, so the signs that a factorisation is free
    to choose cancel. Nothing is taken out of a weight that comes with the adapter: PEFT saves what was left of it.
    """
    if settings.init == "plain" or f"{target.module}.weight" in base.brought:
        return ()
    weight = base.weight(target.module).float()
    if settings.init == "pissa":
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        rank = target.rank
        return (LowRank(a=right[:rank].clone(), b=left[:, :rank] * values[:rank], scale=-1.0),)
    transposed = base.shapes.modules[target.module].input_first
    q, r = torch.linalg.qr(weight.t() if transposed else weight)
    q, r = q[:, : target.rank].clone(), r[: target.rank].clone()
    return (LowRank(a=q.t(), b=r.t(), scale=-target.scale) if transposed else LowRank(r, q, -target.scale),)


def _experts(target: TargetTensors, tensors: Tensors) -> ExpertsChange:
    """PEFT stacks A by expert and then rank, B by rank and then expert."""
    a, b = tensors["lora_A"], tensors["lora_B"]
    return ExpertsChange(
        a=a.reshape(-1, target.rank, a.shape[1]),
        b=b.reshape(b.shape[0], target.rank, -1).permute(2, 0, 1),
        scale=target.scale,
    )


def check_init(manifest: AdapterManifest, tensors: Tensors, base: ReplacedWeights) -> Tensors:
    """Nothing is shared; only whether the weights can be factorised in bearable time. Raises AdapterRefused."""
    settings = manifest.settings
    assert isinstance(settings, LoraSettings)
    left = [target for target in manifest.targets if f"{target.module}.weight" not in base.brought]
    check_work(
        factorising(settings.init, left),
        "unconverted_init",
        f"init_lora_weights is {settings.init!r}, which factorises the base's weight of {len(left)} modules; save the "
        "adapter again with save_pretrained(DIR, path_initial_model_for_weight_conversion=INITIAL_ADAPTER_DIR)",
    )
    return tensors


CONVERSION = Conversion(convert_module, shared=check_init)
