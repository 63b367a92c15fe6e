"""The base model as adapters see it: which modules exist and their shapes. No weights, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class ModuleShape:
    """One module that adapters may target. For an embedding `in_features` is the number of rows."""

    kind: Literal["linear", "embedding"]
    in_features: int
    out_features: int


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A base model's public name, content digest (SHA-256 hex) and targetable modules by dotted path."""

    name: str
    digest: str
    modules: Mapping[str, ModuleShape]
