"""One file per PEFT type: files on disk to the canonical form an engine applies. Needs torch.

adapter = convert(path, manifest, base_weights)
adapter.linears["model.layers.0.self_attn.q_proj"].a    # [rank, in_features], in the file's dtype
"""

from __future__ import annotations

from pathlib import Path

from livery_adapters.canonical import BaseWeights, CanonicalAdapter
from livery_adapters.formats.lora import convert_lora
from livery_adapters.layout import AdapterManifest
from livery_adapters.refusal import AdapterRefused

_CONVERSIONS = {"LORA": convert_lora}


def convert(directory: Path, manifest: AdapterManifest, base_weights: BaseWeights) -> CanonicalAdapter:
    """Turn the verified files in `directory` into tensors. Raises AdapterRefused.

    `manifest` is what `read_manifest` returned for that directory and passed `check_against` for the base.
    """
    conversion = _CONVERSIONS.get(manifest.peft_type)
    if conversion is None:
        raise AdapterRefused("unsupported_peft_type", f"{manifest.peft_type} adapters are not supported yet")
    return conversion(directory, manifest, base_weights)
