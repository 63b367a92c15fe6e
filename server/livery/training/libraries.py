"""The libraries that train, asked for before anything is read. Imports none of them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
from collections.abc import Iterable

NEEDED = ("accelerate", "datasets", "peft", "trl")
TRL_FROM = (1, 16)  # whose trainers take examples as they are encoded here
TOLD = (*NEEDED, "torch", "transformers")
REMEDY = "pip install 'livery[train]'"


class LibraryMissing(Exception):
    """What trains isn't installed; the message says what and the remedy."""


def check_installed() -> None:
    """Raises LibraryMissing."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise LibraryMissing(f"training needs {', '.join(missing)}, which isn't installed: {REMEDY}")
    found = importlib.metadata.version("trl")
    if tuple(int(part) for part in found.split(".")[:2] if part.isdecimal()) < TRL_FROM:
        raise LibraryMissing(
            f"training needs trl {'.'.join(map(str, TRL_FROM))} or later, and {found} is here: {REMEDY}"
        )


def quieten() -> None:
    """What libraries say of themselves while they are imported, and can't be changed by whoever trains."""
    for name in ("bitsandbytes", "torchao"):
        logging.getLogger(name).setLevel(logging.ERROR)


def versions(more: Iterable[str]) -> dict[str, str]:
    """Of all that decides about numbers; `more` are modules that hold a quantised base."""
    return {name: importlib.metadata.version(name) for name in sorted({*TOLD, *more})}
