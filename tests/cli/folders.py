"""A data folder as the fake server of these tests leaves it, and adapters that fit."""

from __future__ import annotations

from pathlib import Path

from api.live_server import MODULES
from api.peft_files import make_adapter
from livery.data_folder import DataFolder, KnownBase
from livery_adapters.base_model import BaseShapes

BASE = KnownBase("smollm2-135m-instruct", "fa" * 32, "smollm2-135m-instruct", BaseShapes(MODULES))


def data_folder(root: Path, base: KnownBase = BASE) -> Path:
    """A folder that a server for `base` has run on, with nothing in it."""
    folder = DataFolder(root)
    folder.make()
    folder.write_base(base)
    return root


def two_adapters(root: Path) -> tuple[Path, Path]:
    return make_adapter(root / "one", seed=1), make_adapter(root / "two", seed=2, rank=3)
