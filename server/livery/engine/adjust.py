"""What a request's own tokens say about its next one: penalties for what came, words that mustn't be completed.

Decides, and touches no logits: each row to be sampled gets its own Adjustments, from the tokens before it alone.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from livery.engine.base import SamplingParams
from livery.engine.plan import Adjustments, Penalties


class Adjuster:
    """Adjustments for the rows of one sequence. Grows with it: constant work per token, and a copy per row."""

    def __init__(self, params: SamplingParams, prompt: Sequence[int]) -> None:
        self._params = params
        self._prompt_length = len(prompt)
        self._bias = tuple(params.logit_bias.items())
        self._penalises = bool(params.presence_penalty or params.frequency_penalty or params.repetition_penalty != 1)
        # The prompt counts for repetition alone.
        repeated = dict.fromkeys(prompt) if params.repetition_penalty != 1 else {}
        self._places = {token: place for place, token in enumerate(repeated)}
        self._tokens = array("q", repeated)
        self._counts = array("q", [0]) * len(repeated)
        self._counted = self._prompt_length  # tokens of the sequence that are counted
        self._fixed = Adjustments(self._bias, None, params.allowed_token_ids)

    @classmethod
    def of(cls, params: SamplingParams, prompt: Sequence[int]) -> Adjuster | None:
        """None for a request that asks for nothing of the kind."""
        adjuster = cls(params, prompt)
        asks = adjuster._penalises or params.logit_bias or params.allowed_token_ids or params.bad_words
        return adjuster if asks else None

    @property
    def depends_on_newest(self) -> bool:
        """Whether a row can't be said before the token before it is known."""
        return self._penalises or any(len(word) > 1 for word in self._params.bad_words)

    def adjustments(self, tokens: Sequence[int], drafts: Sequence[int]) -> Adjustments | None:
        """For the row after all `tokens` of the sequence and some `drafts`. None where nothing is changed."""
        if not self._penalises:
            return self._fixed if self._bias or self._params.allowed_token_ids else None
        params = self._params
        for position in range(self._counted, len(tokens)):
            _count(tokens[position], self._places, self._tokens, self._counts)
        self._counted = len(tokens)
        ids, counts = self._tokens[:], self._counts[:]
        if drafts:
            places = dict(self._places)
            for token in drafts:
                _count(token, places, ids, counts)
        penalties = Penalties(params.presence_penalty, params.frequency_penalty, params.repetition_penalty, ids, counts)
        return Adjustments(self._bias, penalties, params.allowed_token_ids)

    def forbidden(self, tokens: Sequence[int], drafts: Sequence[int]) -> tuple[int, ...]:
        """Tokens that would complete a bad word of the answer, after `tokens` and `drafts`."""
        words = self._params.bad_words
        if not words:
            return ()
        longest = max(map(len, words)) - 1
        start = max(self._prompt_length, len(tokens) - longest)
        answered = (*tokens[start:], *drafts)
        return tuple(word[-1] for word in words if _ends_with(answered, word[:-1]))


def _count(token: int, places: dict[int, int], tokens: array[int], counts: array[int]) -> None:
    place = places.setdefault(token, len(tokens))
    if place == len(tokens):
        tokens.append(token)
        counts.append(0)
    counts[place] += 1


def _ends_with(tokens: tuple[int, ...], end: tuple[int, ...]) -> bool:
    return not end or tokens[-len(end) :] == end
