"""LoRA and rsLoRA: the pairs of the file as they are, the scale kept apart."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from livery_adapters.canonical import BaseWeights, CanonicalAdapter, EmbeddingChange, LinearChange, LowRank
from livery_adapters.layout import AdapterManifest, BaseCopy
from livery_adapters.refusal import AdapterRefused
from livery_adapters.tensor_file import WEIGHTS_NAME


def convert_lora(directory: Path, manifest: AdapterManifest, base_weights: BaseWeights) -> CanonicalAdapter:
    """Read every pair once. Full weights beside them must repeat the base's. Raises AdapterRefused."""
    try:
        return _convert(directory, manifest, base_weights)
    except SafetensorError as error:  # the library is stricter than tensor_file in a few spellings, such as -0
        raise AdapterRefused(
            "bad_header", f"{WEIGHTS_NAME} can't be opened by safetensors ({error}); save the adapter again"
        ) from error


def _convert(directory: Path, manifest: AdapterManifest, base_weights: BaseWeights) -> CanonicalAdapter:
    linears: dict[str, LinearChange] = {}
    embeddings: dict[str, EmbeddingChange] = {}
    with safe_open(str(directory / WEIGHTS_NAME), framework="pt") as file:
        for copy in manifest.base_copies:
            _check_copy(copy, file.get_tensor(copy.tensor), base_weights)
        for target in manifest.targets:
            pair = LowRank(
                a=_finite(target.a, file.get_tensor(target.a)),
                b=_finite(target.b, file.get_tensor(target.b)),
                scale=target.scale,
            )
            if target.kind == "linear":
                linears[target.module] = LinearChange(deltas=(pair,))
            else:
                embeddings[target.module] = EmbeddingChange(delta=pair)
    return CanonicalAdapter(digest=manifest.digest, linears=linears, embeddings=embeddings)


def _finite(name: str, tensor: Tensor) -> Tensor:
    if not bool(torch.isfinite(tensor).all()):
        raise AdapterRefused(
            "nonfinite_weights",
            f"tensor {name} holds NaN or infinity; training diverged: use an earlier checkpoint",
        )
    return tensor


def _check_copy(copy: BaseCopy, saved: Tensor, base_weights: BaseWeights) -> None:
    """Equal once rounded to the coarser of the two dtypes: a bf16 copy of an fp32 base, or the reverse."""
    base = base_weights.weight(copy.module).to(saved.device)
    if torch.equal(base.to(saved.dtype), saved) or torch.equal(saved.to(base.dtype), base):
        return
    raise AdapterRefused(
        "replaced_weight",
        f"{copy.tensor} differs from the base's weight of {copy.module}: replaced weights are not supported yet; train "
        "it as LoRA only, or on the base this server runs",
    )
