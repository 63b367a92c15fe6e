"""Which requests of two results are the same ones: paired repeat by repeat, or told why they can't be compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from livery_loadtest.columns import Columns, Ints
from livery_loadtest.figures import Measured
from livery_loadtest.report.result import Result


class NotComparable(ValueError):
    """Two results can't be compared; the message says which, why, and what to do."""


class Pair(NamedTuple):
    """One repeat of both, cut down to the requests that both have.

    `ran` are the two as they ran, whose requests and seconds belong together; None where they can't be set beside each
    other, as one was interrupted, or lost requests: how long what both have took is known of neither. `alike`: nothing
    was cut off.
    """

    a: Measured
    b: Measured
    ran: tuple[Measured, Measured] | None
    alike: bool

    @property
    def both(self) -> tuple[Measured, Measured]:
        return self.a, self.b


def check_same_workload(a: Result, b: Result) -> None:
    """Raises NotComparable where two workloads differ, naming the fields."""
    one, other = msgspec.to_builtins(a.workload), msgspec.to_builtins(b.workload)
    differ = [name for name in one if one[name] != other[name]]
    if differ:
        told = "; ".join(f"{name}: {one[name]} and {other[name]}" for name in differ)
        raise NotComparable(f"the workloads differ in {told}. Run both with the same workload file.")


def only_target(result: Result, target: str, which: str) -> str:
    """The target that is named, or the only one. Raises NotComparable."""
    names = [one.name for one in result.targets]
    if target:
        if target not in names:
            raise NotComparable(f"the {which} result has no target {target!r}; it has {', '.join(names) or 'none'}")
        return target
    if len(names) != 1:
        raise NotComparable(f"the {which} result has {len(names)} targets ({', '.join(names)}): name one of them")
    return names[0]


def paired(a: Sequence[Measured], b: Sequence[Measured], chats: bool) -> list[Pair]:
    """Repeats with one number, and what both have of them. Raises NotComparable where there is nothing.

    In `chats` that end by the clock a slower server is asked fewer turns, so that a whole run may have others.
    """
    of_b = {one.repeat: one for one in b}
    pairs = []
    for one in a:
        other = of_b.get(one.repeat)
        if other is None:
            continue
        common = np.intersect1d(one.columns.index, other.columns.index)
        if len(common):
            alike = len(common) == len(one.columns) == len(other.columns)
            whole = chats and not (one.interrupted or other.interrupted)
            ran = (one, other) if alike or whole else None
            pairs.append(Pair(_cut(one, common), _cut(other, common), ran, alike))
    if not pairs:
        raise NotComparable("no repeat of one result has requests in common with the other's; run both to their end")
    return pairs


def _cut(one: Measured, common: Ints) -> Measured:
    if len(common) == len(one.columns):
        return one
    kept = one.columns.only(np.isin(one.columns.index, common))
    return Measured(one.repeat, one.seconds, kept, one.samples, one.interrupted)


def interruptions(pairs: Sequence[Pair], a: str, b: str) -> list[str]:
    """Of each repeat that was interrupted, what to think of it."""
    return [
        f"{side}: {name}, repeat {one.repeat + 1}: interrupted: only requests that both finished are compared"
        for place, (side, name) in enumerate((("A", a), ("B", b)))
        for one in (pair.both[place] for pair in pairs)
        if one.interrupted
    ]


def other_names(pairs: Sequence[Pair], base_a: str, base_b: str) -> str:
    """What to think of where both call the same models by other names, one by one; empty where they don't.

    Raises NotComparable where a request's model at one is no counterpart of its model at the other: the servers had
    other adapters to share the requests out over. `base_a` and `base_b` are empty where that isn't known.
    """
    asked: dict[tuple[str, str], int] = {}
    for pair in pairs:
        for names, index in _models(pair.a.columns, pair.b.columns).items():
            asked.setdefault(names, index)
    at_b: dict[str, str] = {}
    at_a: dict[str, str] = {}
    for (one, other), index in asked.items():
        bases = not (base_a and base_b) or (one == base_a) == (other == base_b)
        if not bases or at_b.setdefault(one, other) != other or at_a.setdefault(other, one) != one:
            raise NotComparable(
                f"request {index} asked A for {one} and B for {other}: the servers had other models to share the "
                "requests out over. Run both with the same --adapters and --base."
            )
    renamed = [f"{one} is {other}" for one, other in at_b.items() if one != other]
    if not renamed:
        return ""
    more = f" and {len(renamed) - 3:,} more" if len(renamed) > 3 else ""
    return f"A's models have other names at B: {', '.join(renamed[:3])}{more}. Are they the same ones?"


def _models(a: Columns, b: Columns) -> dict[tuple[str, str], int]:
    """The names that the same requests ask for at both, and the first request that does."""
    codes = a.model * len(b.models) + b.model
    found, first = np.unique(codes, return_index=True)
    return {
        (a.models[code // len(b.models)], b.models[code % len(b.models)]): int(a.index[place])
        for code, place in zip(found.tolist(), first.tolist(), strict=True)
    }
