"""What an adapter amounts to, measured in weights: how far each module moves, and how exactly that is applied."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModuleEffect:
    """One module's share. `relative` is ‖W_adapted - W‖/‖W‖ (Frobenius); `error` is that of an approximation.

    Where the base's own weight isn't known, as of quantised files, `relative` is 0 for no change and else None.
    """

    rank: int
    relative: float | None
    error: float = 0.0


@dataclass(frozen=True, slots=True)
class AdapterEffect:
    """Per module path, as an engine found it when it converted the adapter. Crosses the process border."""

    modules: Mapping[str, ModuleEffect]
    nbytes: int  # of the canonical form

    @property
    def exact(self) -> bool:
        return all(module.error == 0 for module in self.modules.values())

    @property
    def error(self) -> float:
        """The largest relative error of any module; zero when exact."""
        return max((module.error for module in self.modules.values()), default=0.0)

    @property
    def changes_nothing(self) -> bool:
        return all(module.relative == 0 for module in self.modules.values())
