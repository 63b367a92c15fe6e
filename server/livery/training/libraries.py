"""The libraries that train, asked for before anything is read. Imports none of them."""

from __future__ import annotations

import importlib.metadata
import importlib.util

NEEDED = ("accelerate", "datasets", "peft", "trl")
TOLD = (*NEEDED, "torch", "transformers")
REMEDY = "pip install 'livery[train]'"


class LibraryMissing(Exception):
    """What trains isn't installed; the message says what and the remedy."""


def check_installed() -> None:
    """Raises LibraryMissing."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise LibraryMissing(f"training needs {', '.join(missing)}, which isn't installed: {REMEDY}")


def versions() -> dict[str, str]:
    """Of all that decides about numbers."""
    return {name: importlib.metadata.version(name) for name in TOLD}
