"""From a row of logits to a token, each row by its own parameters and never by its neighbours'."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from livery.engine.plan import SampleSpec

COLDEST = 1e-5  # below this a temperature means greedy: the best token's probability is 1 in any precision
NOT_FINITE = "the model's output is not a number for this request; its adapter's weights may overflow"


def sample(logits: Tensor, specs: Sequence[SampleSpec]) -> list[int | None]:
    """Choose one token per row of `logits` [rows, vocabulary]; None for a row that holds no finite maximum.

    Random rows are cut by top_k, then top_p, then min_p, and chosen by inverting the cumulative distribution
    at the row's own `draw`, so that the same seed gives the same token in any batch. `logits` stay as they are.
    """
    logits = logits.float()
    if any(spec.forbidden for spec in specs):
        logits = logits.clone()
    for row, spec in enumerate(specs):
        if spec.forbidden:
            logits[row, list(spec.forbidden)] = float("-inf")
    best, greedy = logits.max(dim=-1)
    finite = torch.isfinite(best).tolist()
    tokens: list[int | None] = [token if ok else None for token, ok in zip(greedy.tolist(), finite, strict=True)]
    drawn = [row for row, spec in enumerate(specs) if spec.temperature >= COLDEST and finite[row]]
    if drawn:
        for row, token in zip(drawn, _draw(logits[drawn], [specs[row] for row in drawn]), strict=True):
            tokens[row] = token
    return tokens


def _draw(logits: Tensor, specs: Sequence[SampleSpec]) -> list[int]:
    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=logits.device)[:, None]

    ordered, ids = logits.double().sort(dim=-1, descending=True, stable=True)
    ordered = ordered - ordered[:, :1]  # the best at 0: dividing by a small temperature then can't overflow upwards
    probs = torch.softmax(ordered / column([spec.temperature for spec in specs]), dim=-1)
    rank = torch.arange(probs.shape[-1], device=logits.device)[None]
    probs = probs.masked_fill(rank >= column([spec.top_k or probs.shape[-1] for spec in specs]), 0.0)
    probs = probs / probs.sum(dim=-1, keepdim=True)
    # A token stays while the mass before it is below top_p, so the one that crosses the border is kept.
    before = probs.cumsum(dim=-1) - probs
    probs = probs.masked_fill((before >= column([spec.top_p for spec in specs])) & (rank > 0), 0.0)
    probs = probs.masked_fill(probs < probs[:, :1] * column([spec.min_p for spec in specs]), 0.0)
    cumulative = probs.cumsum(dim=-1)
    target = column([spec.draw for spec in specs]) * cumulative[:, -1:]
    # The last token with any probability bounds the search: rounding may put the target on the far edge.
    last = (probs > 0).sum(dim=-1, keepdim=True) - 1
    chosen = torch.searchsorted(cumulative, target, right=True).minimum(last)
    return [int(token) for token in ids.gather(-1, chosen)[:, 0]]
