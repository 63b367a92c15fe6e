"""From a row of logits to a token, each row by its own parameters and never by its neighbours'."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from livery.engine.plan import SampleSpec

LIKELIEST = 256  # tokens that mostly settle a draw; sorting a whole vocabulary takes as long as a small model's step
COLDEST = 1e-5  # below this a temperature means greedy: the best token's probability is 1 in any precision
NOT_FINITE = "the model's output is not a number for this request; its adapter's weights may overflow"


def sample(logits: Tensor, specs: Sequence[SampleSpec]) -> list[int | None]:
    """Choose one token per row of `logits` [rows, vocabulary]; None for a row that holds no finite maximum.

    Random rows are cut by top_k, then top_p, then min_p, and chosen by inverting the cumulative distribution, likeliest
    tokens first, at the row's own `draw`, so that the same seed gives the same token in any batch. `logits` stay as
    they are.
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
    """One token per row of finite logits [rows, vocabulary]: from the likeliest ones where these settle it."""
    best = logits.max(dim=-1, keepdim=True).values  # at 0: dividing by a small temperature can't overflow upwards
    scaled = (logits - best) / _column([spec.temperature for spec in specs], logits).to(logits.dtype)
    probs = torch.softmax(scaled, dim=-1)
    ids = logits.topk(min(LIKELIEST, logits.shape[-1]), dim=-1).indices
    chosen, settled = _choose(probs.gather(-1, ids), probs.shape[-1], specs)
    tokens = [int(token) for token in ids.gather(-1, chosen)[:, 0]]
    left = [row for row, done in enumerate(settled.tolist()) if not done]
    if left:
        ids = logits[left].sort(dim=-1, descending=True, stable=True).indices
        chosen, _ = _choose(probs[left].gather(-1, ids), probs.shape[-1], [specs[row] for row in left])
        for row, token in zip(left, ids.gather(-1, chosen)[:, 0].tolist(), strict=True):
            tokens[row] = token
    return tokens


def _choose(probs: Tensor, vocabulary: int, specs: Sequence[SampleSpec]) -> tuple[Tensor, Tensor]:
    """Where each row's draw falls among its likeliest tokens, probs [rows, tokens] in falling order.

    Returns columns [rows, 1] and whether they are the answer [rows]: not where it takes tokens beyond these.
    """
    probs = probs.double()
    tokens = probs.shape[-1]
    top_k = _column([min(spec.top_k or vocabulary, vocabulary) for spec in specs], probs)
    top_p = _column([spec.top_p for spec in specs], probs)
    min_p = _column([spec.min_p for spec in specs], probs)
    rank = torch.arange(tokens, device=probs.device)[None]
    probs = probs.masked_fill(rank >= top_k, 0.0)
    # All of what top_k leaves; the whole vocabulary's probabilities add up to 1 already.
    counted = (top_k <= tokens) | (tokens == vocabulary)
    probs = torch.where(counted, probs / probs.sum(dim=-1, keepdim=True), probs)
    # A token stays while the mass before it is below top_p, so the one that crosses the border is kept.
    before = probs.cumsum(dim=-1) - probs
    kept = (rank < top_k) & ((before < top_p) | (rank == 0)) & (probs >= probs[:, :1] * min_p) & (probs > 0)
    probs = probs.masked_fill(~kept, 0.0)
    cumulative = probs.cumsum(dim=-1)
    count = kept.sum(dim=-1, keepdim=True)
    # Each rule keeps a beginning of the falling order, so where one has cut, nothing beyond is kept.
    complete = counted | ((top_k == vocabulary) & (count < tokens))
    target = _column([spec.draw for spec in specs], probs) * torch.where(complete, cumulative[:, -1:], 1.0)
    whole = (top_k == vocabulary) & (top_p >= 1) & (min_p <= 0)  # the mass is 1, whatever lies beyond
    settled = complete | (whole & (target < cumulative[:, -1:]))
    # The last token with any probability bounds the search: rounding may put the target on the far edge.
    chosen = torch.searchsorted(cumulative, target, right=True).minimum(count - 1)
    return chosen, settled[:, 0]


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=like.device)[:, None]
