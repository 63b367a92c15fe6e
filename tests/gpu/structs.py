"""The one thing of msgspec that the engine's compute side needs, for machines that have torch and little else."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import sys
from types import ModuleType
from typing import Any, dataclass_transform


@dataclass_transform(frozen_default=True)
class Struct:
    """A frozen dataclass. Messages' tags matter only to the process border, which isn't used here."""

    def __init_subclass__(
        cls, frozen: bool = False, tag: bool = False, array_like: bool = False, **options: Any
    ) -> None:
        for name in inspect.get_annotations(cls):
            default = cls.__dict__.get(name)
            if isinstance(default, dict | list):  # of which msgspec gives each instance its own
                setattr(cls, name, dataclasses.field(default_factory=default.copy))
        dataclasses.dataclass(frozen=frozen, **options)(cls)


def stand_in_for_msgspec() -> None:
    """Let `import msgspec` find `Struct` where msgspec isn't installed. Call it before importing the engine."""
    try:
        importlib.import_module("msgspec")
    except ModuleNotFoundError:
        module = ModuleType("msgspec")
        module.Struct = Struct  # type: ignore[attr-defined]
        sys.modules["msgspec"] = module
