"""A stored version as an engine finds it: its manifest, proven to be the one that it was asked for. No torch."""

from __future__ import annotations

from pathlib import Path

from livery.engine.base import AdapterPart
from livery_adapters.base_model import BaseModel
from livery_adapters.manifest import AdapterManifest, Limits, check_against, read_manifest
from livery_adapters.refusal import AdapterRefused
from livery_adapters.tasks import placed

ANY_RANK = Limits(max_rank=1 << 20)  # how high a rank may be was decided when the adapter was taken in


def stored_manifest(part: AdapterPart, base: BaseModel) -> AdapterManifest:
    """What a stored version is, hashed again unless that was done when it came in. Raises AdapterRefused."""
    manifest = placed(read_manifest(Path(part.path), ANY_RANK, digest=part.digest if part.verified else None), base)
    if manifest.digest != part.digest:
        raise AdapterRefused(
            "activation_failed",
            f"the stored files of {part.digest[:12]} hash to {manifest.digest[:12]} by now: they were changed "
            "since they were added, or the disk is failing; add the adapter again",
        )
    check_against(manifest, base, ANY_RANK)
    return manifest
