"""Row-wise modules such as norms, whose parameters adapters may replace for their own rows."""

from __future__ import annotations

import copy
from collections.abc import Iterable

from torch import Tensor, nn
from torch.func import functional_call

from livery.engine.lora.bank import AdapterBank


class AdapterPlain:
    """The forward of one module: the base's, and each adapter's own for the rows that run under it."""

    def __init__(self, base: nn.Module, path: str, bank: AdapterBank) -> None:
        self._base_forward = base.forward
        self._path = path
        self._bank = bank
        # The same module without our forward, and with a table of parameters of its own to put others into: the
        # loader's thread may be reading the base's meanwhile.
        self._shadow = copy.copy(base)
        self._shadow._parameters = dict(base._parameters)

    def forward(self, x: Tensor) -> Tensor:
        """x [1, rows, ...] -> the same shape."""
        y: Tensor = self._base_forward(x)
        if self._bank.has_plain:
            for segment, parameters in self._bank.plain(self._path):
                rows = slice(segment.start, segment.end)
                y[:, rows] = functional_call(self._shadow, dict(parameters), (x[:, rows],))
        return y


def attach_plain(model: nn.Module, paths: Iterable[str], bank: AdapterBank) -> None:
    """Let the modules at `paths` apply adapters. They stay the modules that they are."""
    for path in paths:
        module = model.get_submodule(path)
        module.forward = AdapterPlain(module, path, bank).forward
