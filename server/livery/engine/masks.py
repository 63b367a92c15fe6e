"""Grammars' masks on their way into a step: waited for at the last moment, and laid over the logits in one go."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from livery.engine.plan import SampleSpec

GRACE_S = 0.02  # how long all masks of a step together may hold up what doesn't need them


@dataclass(frozen=True, slots=True)
class StepMasks:
    """What came of a step's masks: by row what is banned, bool [vocabulary], and the rows that have to do without.

    `specs` are the rows' own, but for those where to end is all that is left: there nothing forbids it.
    """

    specs: list[SampleSpec]
    banned: Mapping[int, NDArray[np.bool_]]
    late: frozenset[int]


def take_masks(specs: Sequence[SampleSpec]) -> StepMasks:
    """Wait for the masks of the rows that have one."""
    found, banned, late = list(specs), {}, set()
    deadline = time.monotonic() + GRACE_S
    for row, spec in enumerate(specs):
        if spec.mask is None:
            continue
        mask = spec.mask.mask(max(0.0, deadline - time.monotonic()))
        if mask is None:
            late.add(row)
            continue
        banned[row] = mask.banned
        if mask.ends_only and spec.forbidden:
            found[row] = replace(spec, forbidden=())
    return StepMasks(found, banned, frozenset(late))


def apply_masks(logits: Tensor, banned: Mapping[int, NDArray[np.bool_]]) -> Tensor:
    """Logits [rows, vocabulary] with minus infinity where a row's mask says so; `logits` stay as they are."""
    if not banned:
        return logits
    mask = torch.zeros(logits.shape, dtype=torch.bool, pin_memory=logits.is_cuda)
    rows = mask.numpy()
    for row, one in banned.items():
        rows[row] = one
    return logits.masked_fill(mask.to(logits.device, non_blocking=True), float("-inf"))
