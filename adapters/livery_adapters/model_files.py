"""Which safetensors files of a model directory hold the model: those that transformers loads, in its order.

Some directories hold the weights twice, as Mistral's do: `consolidated.safetensors` beside shards. Needs no torch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CONFIG_NAME = "config.json"
WHOLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"


class FilesUnusable(Exception):
    """A directory's weights aren't all there, or its index is none; the message names the file and the remedy."""


def weight_files(directory: Path) -> tuple[Path, ...]:
    """By name: `model.safetensors` where there is one, else those that the index names, else every *.safetensors.

    The order of transformers' `_get_resolved_checkpoint_files`; before all of them goes what `transformers_weights` of
    config.json names. Raises FilesUnusable, where none are or one is missing.
    """
    names = named_files(directory)
    if not names:
        found = tuple(sorted(directory.glob("*.safetensors")))
        if not found:
            raise FilesUnusable(f"{directory} has no *.safetensors; save the model with safetensors")
        return found
    for name in names:
        if not (directory / name).is_file():
            leading = _leading(directory)
            named_by = CONFIG_NAME if leading == name else leading
            raise FilesUnusable(f"{directory} lacks {name}, which {named_by} names; copy it there")
    return tuple(directory / name for name in names)


def named_files(directory: Path) -> tuple[str, ...]:
    """The names of those files, there or not; none where nothing names any. Raises FilesUnusable."""
    leading = _leading(directory)
    if leading is None:
        return ()
    return tuple(sorted(set(_index(directory / leading).values()))) if leading.endswith(".json") else (leading,)


def indexed(directory: Path) -> dict[str, str]:
    """Which file holds each tensor; empty where it is no index by which they are loaded. Raises FilesUnusable."""
    leading = _leading(directory)
    return _index(directory / leading) if leading is not None and leading.endswith(".json") else {}


def _leading(directory: Path) -> str | None:
    """The name of the weights, or of their index, that transformers goes by; None: there is neither."""
    told = json_object(directory / CONFIG_NAME).get("transformers_weights")
    if isinstance(told, str) and Path(told).name == told:
        return told
    return next((name for name in (WHOLE_NAME, INDEX_NAME) if (directory / name).is_file()), None)


def _index(file: Path) -> dict[str, str]:
    names = json_object(file).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise FilesUnusable(f"{file} is no index of safetensors files; save the model again")
    if any(Path(name).name != name for name in names.values()):
        raise FilesUnusable(f"{file} names a file outside of its folder; save the model again")
    return names


def json_object(file: Path) -> dict[str, Any]:
    """Empty where it isn't there or isn't one."""
    try:
        value = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
