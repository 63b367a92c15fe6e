"""A data folder as the fake server of these tests leaves it, and adapters that fit."""

from __future__ import annotations

from pathlib import Path

from api.live_server import MODULES
from api.peft_files import make_adapter
from livery.data_folder import DataFolder, KnownBase
from livery.tenancy import TenantStore, UsageStore
from livery.tenancy.meter import Counts, Flush, Row
from livery_adapters.base_model import BaseShapes

USED = {
    Row(480_000, "acme", "key1key1", "acme/pirate", "ab" * 32): Counts(3, 4_000, 2_000, 70),
    Row(480_001, "default", "", "base", "fa" * 32): Counts(1, 5, 0, 2),
}
BASE = KnownBase("smollm2-135m-instruct", "fa" * 32, "smollm2-135m-instruct", BaseShapes(MODULES))


def data_folder(root: Path, base: KnownBase = BASE) -> Path:
    """A folder that a server for `base` has run on, with nothing in it."""
    folder = DataFolder(root)
    folder.make()
    folder.write_base(base)
    return root


def two_adapters(root: Path) -> tuple[Path, Path]:
    return make_adapter(root / "one", seed=1), make_adapter(root / "two", seed=2, rank=3)


def use(database: str | Path) -> None:
    """Count something, as a server does."""
    store = TenantStore.open(database)
    UsageStore(store.database).add(Flush("server1", 1, USED))
    store.close()
