"""Logits as a request wants them changed before a token is chosen: each row by its own adjustments alone.

Every operation is element by element, so a row's numbers depend on no other row. The order is that of transformers'
processors and of vLLM: bias, repetition, frequency and presence, and what is forbidden last.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from livery.engine.plan import Penalties, SampleSpec

NEVER = float("-inf")


def adjusted(logits: Tensor, specs: Sequence[SampleSpec]) -> Tensor:
    """The logits [rows, vocabulary] with each row's adjustments; the same tensor where no row has any."""
    rows = [(row, spec.adjustments) for row, spec in enumerate(specs) if spec.adjustments is not None]
    if rows:
        logits = _biased(logits, [(row, token, bias) for row, wish in rows for token, bias in wish.bias])
        logits = _penalised(logits, [(row, wish.penalties) for row, wish in rows if wish.penalties is not None])
        logits = _allowed(logits, [(row, wish.allowed) for row, wish in rows if wish.allowed])
    return _without(logits, [(row, token) for row, spec in enumerate(specs) for token in spec.forbidden])


def upload(values: Sequence[object], like: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """A small table beside `like`, without waiting for what the device is busy with."""
    return torch.tensor(values, dtype=dtype, pin_memory=like.is_cuda).to(like.device, non_blocking=True)


def moved(host: Tensor, like: Tensor) -> Tensor:
    """A tensor of the host beside `like`, without waiting either; itself where that is on the host as well."""
    return host.pin_memory().to(like.device, non_blocking=True) if like.is_cuda else host


def _biased(logits: Tensor, biases: Sequence[tuple[int, int, float]]) -> Tensor:
    if not biases:
        return logits
    rows, tokens = upload([(row, token) for row, token, _ in biases], logits, torch.int64).unbind(1)
    added = upload([bias for _, _, bias in biases], logits, logits.dtype)
    return logits.index_put((rows, tokens), logits[rows, tokens] + added)


def _penalised(logits: Tensor, penalties: Sequence[tuple[int, Penalties]]) -> Tensor:
    """Each row's penalties on the tokens that came; a token stands once per row, so no two writes meet."""
    penalties = [(row, penalty) for row, penalty in penalties if penalty.tokens]
    if not penalties:
        return logits
    lengths = upload([len(penalty.tokens) for _, penalty in penalties], logits, torch.int64)
    total = sum(len(penalty.tokens) for _, penalty in penalties)
    tokens = _joined([penalty.tokens for _, penalty in penalties], logits)
    counts = _joined([penalty.counts for _, penalty in penalties], logits)
    rows = upload([row for row, _ in penalties], logits, torch.int64)
    factors = upload([(p.presence, p.frequency, p.repetition) for _, p in penalties], logits, logits.dtype)
    rows = rows.repeat_interleave(lengths, output_size=total)
    factors = factors.repeat_interleave(lengths, dim=0, output_size=total)
    presence, frequency, repetition = factors.unbind(1)
    values = logits[rows, tokens]
    values = torch.where(values > 0, values / repetition, values * repetition)
    values = values - counts * frequency - (counts > 0) * presence
    return logits.index_put((rows, tokens), values)


def _allowed(logits: Tensor, allowed: Sequence[tuple[int, tuple[int, ...]]]) -> Tensor:
    if not allowed:
        return logits
    places = upload([(row, token) for row, tokens in allowed for token in tokens], logits, torch.int64).unbind(1)
    cleared = logits.index_fill(0, upload([row for row, _ in allowed], logits, torch.int64), NEVER)
    return cleared.index_put(places, logits[places])


def _without(logits: Tensor, places: Sequence[tuple[int, int]]) -> Tensor:
    """The logits with those of forbidden tokens at minus infinity."""
    if not places:
        return logits
    rows, tokens = upload(places, logits, torch.int64).unbind(1)
    return logits.index_put((rows, tokens), logits.new_tensor(NEVER))


def _joined(parts: Sequence[array[int]], like: Tensor) -> Tensor:
    """Arrays of int64 one after another, beside `like`."""
    whole = array("q")
    for part in parts:
        whole.extend(part)
    return moved(torch.frombuffer(whole, dtype=torch.int64), like)
