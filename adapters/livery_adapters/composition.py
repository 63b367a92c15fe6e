"""Several adapters added up in one request: how that is written, and the digest of what is meant.

    parse_composition("a+0.5*b")             # [("a", 1.0), ("b", 0.5)]
    parse_composition("a")                   # None: one adapter, whatever its name
    composition_digest([(digest_a, 1.0), (digest_b, 0.5)])

Needs no torch; livery_adapters.compose adds the weights up.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from decimal import Decimal

from livery_adapters.refusal import AdapterRefused

MAX_PARTS = 8
MAX_WEIGHT = 100.0

_MAX_DECIMAL = 32
_MAX_TERM = 256  # a weight, a name and a digest are shorter
# Both are run on bounded text, and neither has two ways to match the same thing.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}(?:@[0-9a-f]{1,64})?")
_DECIMAL = re.compile(r"-?(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)")


def parse_composition(model: str) -> list[tuple[str, float]] | None:
    """The parts of `a+0.5*b@3f2a9c11` as (name with its pin, weight); None where neither `+` nor `*` occurs.

    Raises AdapterRefused (bad_composition) naming the position and the remedy. Whether the adapters exist is not
    known here. The same adapter may occur more than once.
    """
    if "+" not in model and "*" not in model:
        return None
    count = model.count("+") + 1
    if count > MAX_PARTS:
        raise _bad(
            f"it adds up {count} adapters and at most {MAX_PARTS} are possible; merge some of them ahead "
            "(livery adapters merge)"
        )
    terms = model.split("+")
    if max(map(len, terms)) > _MAX_TERM:
        raise _bad(f"a part of it is over {_MAX_TERM} characters long; write NAME or WEIGHT*NAME between the +")
    parts = []
    position = 1
    for term in terms:
        parts.append(_part(term, position))
        position += len(term) + 1
    return parts


def format_composition(parts: Sequence[tuple[str, float]]) -> str:
    """What `parse_composition` reads back as `parts`."""
    if len(parts) == 1:
        return f"{_decimal(parts[0][1])}*{parts[0][0]}"
    return "+".join(name if weight == 1 else f"{_decimal(weight)}*{name}" for name, weight in parts)


def unweighted(names: Iterable[str]) -> str:
    """One name for all sums of the same adapters: these sorted, each once, with a + between them."""
    return "+".join(sorted(set(names)))


def added_up(parts: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
    """One (digest, weight) per adapter, sorted, without those whose weights come to zero: what a sum amounts to."""
    weights = defaultdict(list)
    for digest, weight in parts:
        weights[digest].append(weight)
    sums = ((digest, math.fsum(weights[digest])) for digest in sorted(weights))
    return [(digest, weight) for digest, weight in sums if weight]


def composition_digest(parts: Iterable[tuple[str, float]]) -> str:
    """SHA-256 hex naming a weighted sum of adapters, given by the digests of what is applied and their weights.

    The order of the parts doesn't matter, nor how a weight is divided among parts of the same digest. One adapter
    at weight 1 is that adapter: its own digest.
    """
    terms = added_up(parts)
    if len(terms) == 1 and terms[0][1] == 1:
        return terms[0][0]
    digest = hashlib.sha256(b"livery composition 1\n")
    for field in (text for name, weight in terms for text in (name, _decimal(weight))):
        data = field.encode()
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()


def _part(term: str, position: int) -> tuple[str, float]:
    left, star, right = term.partition("*")
    name = (right if star else left).strip(" ")
    weight = _weight(left.strip(" "), position) if star else 1.0
    if not name:
        raise _bad(f"there is no adapter at character {position}; write NAME or WEIGHT*NAME on both sides of a +")
    if not _NAME.fullmatch(name):
        remedy = "a weight comes first, as in 0.5*NAME" if "*" in name else "names have letters, digits and . _ : / -"
        raise _bad(f"{name[:80]!r} in the part at character {position} is not an adapter's name; {remedy}")
    return name, weight


def _weight(text: str, position: int) -> float:
    if len(text) > _MAX_DECIMAL or not _DECIMAL.fullmatch(text):
        raise _bad(
            f"{text[:80]!r} before the * of the part at character {position} is not a weight; write a plain decimal "
            "such as 0.5*NAME, and -0.5*NAME after a + to subtract"
        )
    weight = float(text)
    if abs(weight) > MAX_WEIGHT:
        raise _bad(
            f"the weight {text} of the part at character {position} is out of range; use -{MAX_WEIGHT:.0f} to "
            f"{MAX_WEIGHT:.0f}"
        )
    return weight


def _decimal(weight: float) -> str:
    """The shortest plain decimal that reads back as this weight."""
    return format(Decimal(repr(float(weight) + 0.0)).normalize(), "f")


def _bad(reason: str) -> AdapterRefused:
    return AdapterRefused("bad_composition", f"the model can't be read as a sum of adapters: {reason}")
