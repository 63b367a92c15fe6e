"""The digest of a base model's files, for an engine that wasn't told it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec

from livery import models
from livery.engine.base import EngineConfig, ModelRefused


async def with_digest(config: EngineConfig, progress: Callable[[str], None]) -> EngineConfig:
    """Hash the files where nobody has. Raises ModelRefused, OSError."""
    if config.base_digest:
        return config
    progress("hashing the base model (once per file)")
    try:
        digest = await asyncio.to_thread(models.base_digest, Path(config.model_path))
    except models.ModelNotFound as missing:
        raise ModelRefused(str(missing)) from missing
    return msgspec.structs.replace(config, base_digest=digest)
