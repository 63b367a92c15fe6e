"""Grammars' masks on their way into a step: waited for at the last moment, and laid over the logits in one go."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from livery.engine.adjusting import moved
from livery.engine.plan import SampleSpec, TokenMask

GRACE_S = 0.02  # how long all masks of a step together may hold up what doesn't need them


@dataclass(frozen=True, slots=True)
class StepMasks:
    """What came of a step's masks: those of the rows that have one, and the rows that have to do without theirs.

    `specs` are the rows' own, but for those where to end is all that is left: there nothing forbids it.
    """

    specs: list[SampleSpec]
    found: Mapping[int, TokenMask]
    late: frozenset[int]


def take_masks(specs: Sequence[SampleSpec]) -> StepMasks:
    """Wait for the masks of the rows that have one."""
    own, found, late = list(specs), {}, set()
    deadline = time.monotonic() + GRACE_S
    for row, spec in enumerate(specs):
        if spec.mask is None:
            continue
        mask = spec.mask.mask(max(0.0, deadline - time.monotonic()))
        if mask is None:
            late.add(row)
            continue
        found[row] = mask
        if mask.ends_only and spec.forbidden:
            own[row] = replace(spec, forbidden=())
    return StepMasks(own, found, frozenset(late))


def apply_masks(logits: Tensor, masks: Mapping[int, TokenMask], vocabulary: int) -> Tensor:
    """Logits [rows, vocabulary] with minus infinity where a row's mask says so; `logits` stay as they are.

    Grammars know the base's `vocabulary` alone and allow nothing behind it, where adapters have their own tokens.

    Written token by token: a grammar mostly allows a handful or nearly all, and a dense mask takes nine times as long.
    """
    if not masks:
        return logits
    held = logits.clone(memory_format=torch.contiguous_format)
    few = {row: mask for row, mask in masks.items() if mask.allows}
    if few:
        held.index_fill_(0, moved(torch.from_numpy(np.fromiter(few, np.int64)), logits), -math.inf)
        kept = _places(few, logits)
        held.view(-1).index_copy_(0, kept, logits.reshape(-1)[kept])
    many = {row: mask for row, mask in masks.items() if not mask.allows}
    if many:
        held.view(-1).index_fill_(0, _places(many, logits), -math.inf)
        if logits.shape[-1] > vocabulary:
            held[list(many), vocabulary:] = -math.inf
    return held


def _places(masks: Mapping[int, TokenMask], logits: Tensor) -> Tensor:
    """Where the masks' tokens stand in the flattened logits."""
    places = [row * logits.shape[-1] + mask.tokens for row, mask in masks.items()]
    return moved(torch.from_numpy(np.concatenate(places)), logits)
