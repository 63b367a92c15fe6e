"""One file per PEFT type: files on disk to the canonical form an engine applies. Needs torch.

adapter = convert(path, manifest, base_weights)
adapter.linears["model.layers.0.self_attn.q_proj"].deltas[0].a    # [rank, in_features], in the file's dtype
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from livery_adapters.canonical import BaseWeights, CanonicalAdapter
from livery_adapters.formats import (
    adalora,
    beft,
    dense,
    glora,
    ia3,
    loha,
    lokr,
    lora,
    low_rank,
    oft,
    peanut,
    trainable_tokens,
    vblora,
    vera,
)
from livery_adapters.formats.assembly import Assembly
from livery_adapters.formats.base import Conversion
from livery_adapters.formats.magnitude import Norms
from livery_adapters.formats.mapped import mapped_tensors
from livery_adapters.layout import AdapterManifest
from livery_adapters.refusal import AdapterRefused
from livery_adapters.sums import Sums, TorchSums

CONVERSIONS: Mapping[str, Conversion[Any]] = {
    "ADALORA": adalora.CONVERSION,
    "BEFT": beft.CONVERSION,
    "BOFT": oft.BOFT,
    "C3A": dense.C3A,
    "DEFT": low_rank.DEFT,
    "DELORA": low_rank.DELORA,
    "FOURIERFT": dense.FOURIERFT,
    "GLORA": glora.CONVERSION,
    "GRALORA": low_rank.GRALORA,
    "HIRA": dense.HIRA,
    "HRA": low_rank.HRA,
    "IA3": ia3.CONVERSION,
    "LN_TUNING": Conversion(None),  # its copies of modules are put in as of any type
    "LOHA": loha.CONVERSION,
    "LOKR": lokr.CONVERSION,
    "LORA": lora.CONVERSION,
    "MISS": low_rank.MISS,
    "OFT": oft.OFT,
    "OSF": dense.OSF,
    "PEANUT": peanut.CONVERSION,
    "PVERA": vera.CONVERSION,
    "RANDLORA": dense.RANDLORA,
    "ROAD": dense.ROAD,
    "SHIRA": dense.SHIRA,
    "SUPERTUNING": dense.SUPERTUNING,
    "TRAINABLE_TOKENS": trainable_tokens.CONVERSION,
    "VBLORA": vblora.CONVERSION,
    "VERA": vera.CONVERSION,
}


def convert(
    directory: Path,
    manifest: AdapterManifest,
    base_weights: BaseWeights,
    approximate: int = 0,
    sums: Sums | None = None,
) -> CanonicalAdapter:
    """Turn the verified files in `directory` into tensors. Raises AdapterRefused, or OSError when they are gone.

    `manifest` is what `read_manifest` returned for that directory and passed `check_against` for the base.
    `approximate` is the rank to which a type without an exact form is factorised; 0 refuses such types. Numbers are
    looked at with `sums`.
    """
    conversion = CONVERSIONS.get(manifest.peft_type)
    if conversion is None:
        raise AdapterRefused("unsupported_peft_type", f"{manifest.peft_type} adapters are not supported yet")
    tensors = mapped_tensors(directory, manifest)
    norms = Norms(sums or TorchSums())
    norms.check_file(tensors)
    adapter = Assembly(manifest, conversion, tensors, base_weights, approximate).adapter()
    norms.check(adapter)
    return adapter
