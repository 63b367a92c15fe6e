"""Texts of a given number of tokens, more or less, no two of them alike.

They are lists of short common words, of which most tokenisers make one token each. A text begins with a few words that
no other text of the same seed begins with, in this run or another, so that a prefix cache finds nothing to share; what
follows is cut from one long random text, since drawing every word for itself would take minutes for a large run.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from livery_loadtest.kinds import MOST_REQUESTS
from livery_loadtest.spec import SpecInvalid
from livery_loadtest.traces import Ints

COMMON = """
time year people way day man thing woman life child world school state family student group country
problem hand part place case week company system program question work number night point home water room
mother area money story fact month lot right study book eye job word business issue side kind head house
service friend father power hour game line end member law car city name president team minute idea body
back parent face level office door health person art war history party result change morning reason
research girl guy moment air teacher force education good new first last long great little own other old
big high small large next early young few public bad same able make know take see come think look want
give use find tell ask seem feel try leave call
"""
WORDS = tuple(COMMON.split())
_LENGTHS = np.array([len(word) for word in WORDS])

OWN_WORDS = 6  # at the beginning of a text: 6 * 10**12 of them, enough for millions of runs of millions of texts
SHARED_WORDS = 1 << 16  # in the long text
MOST_WORDS = 500_000_000  # in all texts of a run: some 3 GB


def distinct_texts(words: Ints, run: int, seed: Sequence[int], what: str) -> list[str]:
    """One text of each of these numbers of words, all different; those of another `run` of a seed differ too.

    Where there aren't that many different ones of few words, some get a word more; texts under six words may come again
    in another run. Raises SpecInvalid, which says `what` they are for, where they are too much to hold.
    """
    total = int(words.sum())
    if total > MOST_WORDS:
        raise SpecInvalid(f"{what}: {total:,} tokens in all, over {MOST_WORDS:,}; ask for fewer or shorter ones")
    openings = _openings(_own_words(words), run, seed)
    rng = np.random.default_rng([*seed, run])
    left = np.maximum(words - OWN_WORDS, 0)
    longest = int(left.max(initial=0))
    picked = rng.integers(len(WORDS), size=SHARED_WORDS + longest).tolist()
    shared = "".join([f" {WORDS[index]}" for index in picked])
    ends = np.concatenate(([0], np.cumsum(_LENGTHS[picked] + 1)))
    first = rng.integers(SHARED_WORDS, size=len(words))
    return [
        opening + shared[begin:end]
        for opening, begin, end in zip(openings, ends[first].tolist(), ends[first + left].tolist(), strict=True)
    ]


def _openings(words: Ints, run: int, seed: Sequence[int]) -> list[str]:
    """The first words of each text: its number among those of that many words, written in words as digits."""
    found = [""] * len(words)
    rng = np.random.default_rng(list(seed))
    for count in range(1, OWN_WORDS + 1):
        possible = len(WORDS) ** count
        # Multiplying by a number without common divisor visits every number once, in no visible order.
        factor, offset = _coprime(int(rng.integers(possible)), possible), int(rng.integers(possible))
        (places,) = np.nonzero(words == count)
        for rank, place in enumerate(places.tolist(), start=run * MOST_REQUESTS):
            number = (rank * factor + offset) % possible
            digits = []
            for _ in range(count):
                number, digit = divmod(number, len(WORDS))
                digits.append(WORDS[digit])
            found[place] = " ".join(digits)
    return found


def _own_words(words: Ints) -> Ints:
    """How many words at the beginning of each text are its own: a word more than asked for where all are taken."""
    own = np.minimum(words, OWN_WORDS)
    for count in range(1, OWN_WORDS):
        (places,) = np.nonzero(own == count)
        own[places[len(WORDS) ** count :]] += 1
    return own


def _coprime(number: int, modulus: int) -> int:
    """The next number from `number` on that shares no divisor with `modulus`."""
    while np.gcd(number, modulus) != 1:
        number += 1
    return number
