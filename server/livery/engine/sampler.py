"""From a row of logits to a token, each row by its own parameters and never by its neighbours'."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from livery.engine.adjusting import adjusted, upload
from livery.engine.plan import SampleSpec
from livery.engine.rows import Widths

LIKELIEST = 256  # tokens that mostly settle a draw; sorting a whole vocabulary takes as long as a small model's step
LIKELY = 4096  # those that settle most of what is left, at a fraction of the sorting
COLDEST = 1e-5  # below this a temperature means greedy: the best token's probability is 1 in any precision
UNSETTLED, NOTHING = -2, -1  # in place of a token: it takes more than the likeliest; the row isn't finite


def sample(logits: Tensor, specs: Sequence[SampleSpec]) -> list[int | None]:
    """Choose one token per row of `logits` [rows, vocabulary]; None for a row that holds no finite maximum.

    Random rows are chosen by inverting the cumulative distribution at the row's own `draw`, so that the same seed gives
    the same token in any batch: in the order of the ids, or likeliest tokens first where top_k, then top_p, then min_p
    cut. `logits` stay as they are.
    """
    chosen = choose(logits, specs)
    return settle(chosen.tolist(), lambda row: logits[row : row + 1], specs)


def choose(logits: Tensor, specs: Sequence[SampleSpec]) -> Tensor:
    """`sample` without waiting for the device: int64 [rows] there, UNSETTLED or NOTHING in place of some tokens."""
    logits = adjusted(logits.float(), specs)
    best, tokens = logits.max(dim=-1)
    whole: list[int] = []
    cut: list[int] = []
    for row, spec in enumerate(specs):
        if spec.temperature >= COLDEST:
            (cut if _cuts(spec) else whole).append(row)
    if whole:
        rows = upload(whole, logits, torch.int64)
        tokens = tokens.index_put((rows,), _draw_whole(logits[rows], [specs[row] for row in whole]))
    if cut:
        rows = upload(cut, logits, torch.int64)
        likeliest = min(LIKELIEST, logits.shape[-1])
        tokens = tokens.index_put((rows,), _draw(logits[rows], [specs[row] for row in cut], likeliest))
    return tokens.masked_fill(~torch.isfinite(best), NOTHING)


def choose_by_width(logits: Tensor, specs: Sequence[SampleSpec], widths: Widths) -> Tensor:
    """`choose` for rows of which each has so many logits of its own."""
    chosen = torch.empty(len(specs), dtype=torch.int64, device=logits.device)
    for width, rows in widths.cut(0, len(specs)).groups():
        places = upload(rows, logits, torch.int64)
        chosen.index_copy_(0, places, choose(logits[places, :width], [specs[row] for row in rows]))
    return chosen


def settle(chosen: list[int], logits_of: Callable[[int], Tensor], specs: Sequence[SampleSpec]) -> list[int | None]:
    """What `choose` gave, with the draws that fall beyond the likeliest tokens made among all.

    `logits_of` gives a row's logits, [1, vocabulary].
    """
    for row in [row for row, token in enumerate(chosen) if token == UNSETTLED]:
        spec = [specs[row]]
        logits = adjusted(logits_of(row).float(), spec)
        for count in (min(LIKELY, logits.shape[-1]), logits.shape[-1]):
            if chosen[row] == UNSETTLED:
                chosen[row] = int(_draw(logits, spec, count)[0])
    return [None if token == NOTHING else token for token in chosen]


def _cuts(spec: SampleSpec) -> bool:
    return spec.top_k > 0 or spec.top_p < 1 or spec.min_p > 0


def _probabilities(logits: Tensor, specs: Sequence[SampleSpec]) -> Tensor:
    best = logits.max(dim=-1, keepdim=True).values  # at 0: dividing by a small temperature can't overflow upwards
    temperature = upload([spec.temperature for spec in specs], logits)[:, None]
    return torch.softmax((logits - best) / temperature.to(logits.dtype), dim=-1)


def _draw_whole(logits: Tensor, specs: Sequence[SampleSpec]) -> Tensor:
    """One token per row of logits [rows, vocabulary], of all there are; anything for a row that isn't finite."""
    cumulative = _probabilities(logits, specs).double().cumsum(dim=-1)
    total = cumulative[:, -1:]
    target = upload([spec.draw for spec in specs], cumulative)[:, None] * total
    # The last token with any probability bounds the search: rounding may put the target on the far edge.
    last = torch.searchsorted(cumulative, total.contiguous())
    return torch.searchsorted(cumulative, target, right=True).minimum(last)[:, 0]


def _draw(logits: Tensor, specs: Sequence[SampleSpec], count: int) -> Tensor:
    """One token per row of logits [rows, vocabulary], or UNSETTLED where it takes more than the `count` likeliest.

    A row that isn't finite gives anything.
    """
    probs = _probabilities(logits, specs)
    if count < logits.shape[-1]:
        ids = logits.topk(count, dim=-1).indices
    else:
        ids = logits.sort(dim=-1, descending=True, stable=True).indices
    chosen, settled = _choose(probs.gather(-1, ids), probs.shape[-1], specs)
    return ids.gather(-1, chosen)[:, 0].masked_fill(~settled, UNSETTLED)


def _choose(probs: Tensor, vocabulary: int, specs: Sequence[SampleSpec]) -> tuple[Tensor, Tensor]:
    """Where each row's draw falls among its likeliest tokens, probs [rows, tokens] in falling order.

    Returns columns [rows, 1] and whether they are the answer [rows]: not where it takes tokens beyond these.
    """
    probs = probs.double()
    tokens = probs.shape[-1]
    fields = [(min(spec.top_k or vocabulary, vocabulary), spec.top_p, spec.min_p, spec.draw) for spec in specs]
    top_k, top_p, min_p, draw = upload(fields, probs)[:, :, None].unbind(1)
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
    settled = counted | ((top_k == vocabulary) & (count < tokens))
    target = draw * cumulative[:, -1:]
    # The last token with any probability bounds the search: rounding may put the target on the far edge.
    chosen = torch.searchsorted(cumulative, target, right=True).minimum(count - 1).clamp(min=0)
    return chosen, settled[:, 0]
