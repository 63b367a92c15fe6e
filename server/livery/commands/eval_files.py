"""Adapters in folders of a user's own, as a server takes them in: their weights, and the profile that lies beside them.

    ref, profile = await in_directory(Path("adapters/pirate"), info, text)      # AdapterRefused says why not

What a server would refuse is refused here, too, and what it would do with a profile happens here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from livery.adapter_text import AdapterText
from livery.commands.backends import EVERYWHERE
from livery.engine.base import AdapterRef, EngineInfo
from livery_adapters.beside import BESIDE_NAMES
from livery_adapters.fetching import open_adapter_files
from livery_adapters.grown import added_rows
from livery_adapters.layout import AdapterManifest
from livery_adapters.manifest import read_manifest
from livery_adapters.profile import Profile
from livery_adapters.refusal import TAKEN_IN, AdapterRefused
from livery_adapters.text_side import profile_beside
from livery_adapters.weightless import NONE


async def in_directory(directory: Path, info: EngineInfo, text: AdapterText) -> tuple[AdapterRef | None, Profile]:
    """What the engine is asked for, None for a profile over the base; and the profile.

    Raises AdapterRefused, OSError.
    """
    manifest, beside = await asyncio.to_thread(_read, directory)
    check_invocation(manifest.invocation)
    profile = profile_beside(beside, None)
    asks = "adapter" in (profile.chat_template, profile.tokenizer)  # only then is a tokenizer worth reading
    found = await asyncio.to_thread(text.look, beside) if asks else {}
    if manifest.peft_type == NONE:
        return None, await text.settle(profile, found)
    added = added_rows(manifest, info.shapes)
    return AdapterRef.of(manifest.digest, str(directory), added), await text.settle(profile, found, added)


def check_invocation(invocation: tuple[int, ...]) -> None:
    """Raises AdapterRefused for an activated LoRA."""
    if invocation:
        raise AdapterRefused(
            "unsupported_task",
            "it is an activated LoRA, which acts from its invocation tokens on: only a server's prompts have them; "
            "evaluate it with --url",
        )


def _read(directory: Path) -> tuple[AdapterManifest, Mapping[str, bytes]]:
    """What the two files say, and what lies beside them by name. Raises AdapterRefused, OSError."""
    with open_adapter_files(directory, [EVERYWHERE]) as files:
        beside = {name: files[name].read() for name in BESIDE_NAMES if name in files}
        return read_manifest(directory, TAKEN_IN), beside
