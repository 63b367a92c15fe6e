"""A workload as requests: a pure function of the workload, the names of the models and the number of the repeat.

Every property of the requests is drawn by a generator of its own, seeded by the workload's seed and the property, so
that changing one of them in a workload leaves the others as they were. Repeats differ in their prompts, and in which
adapters are cold. Knows no HTTP and no clock.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum, auto
from typing import Any

import msgspec
import numpy as np

from livery_loadtest.arrivals import open_times, replayed
from livery_loadtest.kinds import MOST_REQUESTS
from livery_loadtest.lengths import Side, lengths
from livery_loadtest.popularity import choose
from livery_loadtest.prompts import distinct_texts
from livery_loadtest.script import Change, Planned, Script
from livery_loadtest.spec import Closed, Disconnects, SpecInvalid, Structured, Trace, Workload
from livery_loadtest.traces import Floats, Ints, TraceRows

MOST_CHANGES = 100_000
REPEATS_APART = 1 << 17  # between the prompts of a repeat's attempts: those of every repeat lie between

Bools = np.ndarray[Any, np.dtype[np.bool_]]


class _Draw(IntEnum):
    """What is drawn by a generator of its own."""

    ARRIVALS = auto()
    TURNS = auto()
    BASE = auto()
    POPULARITY = auto()
    COLD = auto()
    PROMPT = auto()
    OUTPUT = auto()
    TENANTS = auto()
    PREFIXES = auto()
    STRUCTURED = auto()
    LEAVING = auto()
    TEXTS = auto()
    PREFIX_TEXTS = auto()


def build_script(workload: Workload, base: str, adapters: Sequence[str], repeat: int = 0, attempt: int = 0) -> Script:
    """The requests of one run of a workload on a server with these models, and what changes meanwhile.

    Another `attempt` at the same repeat differs in its prompts alone.

    Raises SpecInvalid where the workload doesn't fit these models, or its trace can't be read.
    """
    taking, reserved = _split(workload, adapters)
    traffic = _traffic(workload)
    names, cold = _models(workload, traffic.chats, base, taking, reserved, repeat)
    requests = list(_planned(workload, traffic, names, cold, 2 * repeat + REPEATS_APART * attempt))
    return Script(requests, _changes(workload, taking, traffic), workload.hooks)


def build_warm_up(workload: Workload, base: str, adapters: Sequence[str], repeat: int = 0) -> Script:
    """The unmeasured requests before a run: as its first ones, with other prompts, one after the other.

    None of them names an adapter that is reserved to be cold. Raises SpecInvalid.
    """
    if not workload.warm_up:
        return Script(())
    taking, _ = _split(workload, adapters)
    shortened = msgspec.structs.replace(
        workload, requests=workload.warm_up, duration_s=0, conversations=None, churn=None, hooks=()
    )
    traffic = replace(_traffic(shortened), times=None)
    names, cold = _models(shortened, traffic.chats, base, taking, (), repeat)
    return Script(list(_planned(shortened, traffic, names, cold, 2 * repeat + 1)))


@dataclass(frozen=True, slots=True)
class _Traffic:
    """Chats, of one turn each where there are no conversations: how many turns, when they begin, rows of a trace."""

    turns: Ints
    times: Floats | None
    rows: TraceRows | None

    @property
    def chats(self) -> int:
        return len(self.turns)

    @property
    def requests(self) -> int:
        return int(self.turns.sum())


def _generator(workload: Workload, what: _Draw) -> np.random.Generator:
    return np.random.default_rng([workload.seed, what])


def _split(workload: Workload, adapters: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """The adapters that take requests all along, and those that are kept to be cold. Raises SpecInvalid."""
    if workload.adapters > len(adapters):
        raise SpecInvalid(
            f"adapters is {workload.adapters}, but the server lists {len(adapters)}; load more, lower it, or set 0 for "
            "all there are"
        )
    used = adapters[: workload.adapters or None]
    kept = workload.cold.reserved if workload.cold else 0
    if kept and kept >= len(used):
        raise SpecInvalid(
            f"cold.reserved is {kept}, but {len(used)} adapters are used and at least one must take the other "
            "requests; lower it or load more"
        )
    if not used and workload.base_share < 1:
        raise SpecInvalid(
            f"base_share is {workload.base_share:g}, but the server lists no adapter for the other requests; load "
            "some, or set base_share to 1"
        )
    return used[: len(used) - kept], used[len(used) - kept :]


def _traffic(workload: Workload) -> _Traffic:
    """When chats begin and how many turns each has. Raises SpecInvalid."""
    rows = None
    match workload.arrivals:
        case Closed():
            times, chats = None, workload.requests
        case Trace() as trace:
            rows = replayed(trace, workload.requests, workload.duration_s)
            times, chats = rows.times, len(rows.times)
        case arrivals:
            draws = _generator(workload, _Draw.ARRIVALS)
            times = open_times(arrivals, workload.requests, workload.duration_s, draws)
            chats = len(times)
    turns = np.ones(chats, dtype=np.int64)
    if workload.conversations is not None:
        turns = lengths(workload.conversations.turns, Side.PROMPT, chats, None, _generator(workload, _Draw.TURNS))
    before = np.cumsum(turns) - turns
    most = workload.requests or MOST_REQUESTS
    if not workload.requests and turns.sum() > most:
        raise SpecInvalid(f"conversations: {turns.sum():,} turns in one run, over {most:,}; lower `duration_s`")
    turns = np.minimum(turns, most - before)[before < most]
    return _Traffic(turns, None if times is None else times[: len(turns)], rows)


def _models(
    workload: Workload, chats: int, base: str, taking: Sequence[str], reserved: Sequence[str], repeat: int
) -> tuple[list[str], Bools]:
    """The model of each chat, and whether it is the first for a reserved adapter. Raises SpecInvalid."""
    to_base = _generator(workload, _Draw.BASE).random(chats) < workload.base_share
    names = [base] * chats
    (to_adapters,) = np.nonzero(~to_base)
    if len(to_adapters):
        chosen = choose(workload.popularity, taking, len(to_adapters), _generator(workload, _Draw.POPULARITY))
        for place, index in zip(to_adapters.tolist(), chosen.tolist(), strict=True):
            names[place] = taking[index]
    cold = np.zeros(chats, dtype=np.bool_)
    if workload.cold is not None and reserved:
        (drawn,) = np.nonzero(_generator(workload, _Draw.COLD).random(chats) < workload.cold.share)
        drawn = drawn[: len(reserved)]
        left = reserved[repeat * len(drawn) :]  # those that no repeat before has named
        for place, name in zip(drawn.tolist(), left, strict=False):
            names[place], cold[place] = name, True
    return names, cold


def _planned(workload: Workload, traffic: _Traffic, names: Sequence[str], cold: Bools, run: int) -> Iterator[Planned]:
    """The requests, the turns of a chat next to each other. Raises SpecInvalid."""
    of_output = lengths(
        workload.output, Side.OUTPUT, traffic.requests, traffic.rows, _generator(workload, _Draw.OUTPUT)
    ).tolist()
    texts = _texts(workload, traffic, run)
    tenants = _tenants(workload, traffic.chats)
    schema = workload.structured.json_schema if workload.structured else None
    is_structured = _some(workload, _Draw.STRUCTURED, workload.structured, traffic.chats)
    is_leaving = _some(workload, _Draw.LEAVING, workload.disconnects, traffic.chats)
    think_s = workload.conversations.think_s if workload.conversations else 0.0
    times: Sequence[float | None] = [None] * traffic.chats if traffic.times is None else traffic.times.tolist()
    index = 0
    for chat, turns in enumerate(traffic.turns.tolist()):
        for turn in range(turns):
            leaving = workload.disconnects if is_leaving[chat] and turn == turns - 1 else None
            yield Planned(
                index=index,
                at=None if turn else times[chat],
                model=names[chat],
                text=texts[index],
                max_tokens=of_output[index],
                tenant=tenants[chat],
                follows=index - 1 if turn else None,
                pause_s=think_s if turn else 0.0,
                leave_after=leaving.after_events if leaving else None,
                json_schema=schema if is_structured[chat] else None,
                cold=bool(cold[chat]) and not turn,
            )
            index += 1


def _texts(workload: Workload, traffic: _Traffic, run: int) -> list[str]:
    """What the user says in each request. Raises SpecInvalid."""
    words = lengths(workload.prompt, Side.PROMPT, traffic.requests, traffic.rows, _generator(workload, _Draw.PROMPT))
    # Workloads of one suite with one seed come at the same times, but mustn't find each other's prompts in a cache.
    name = zlib.crc32(workload.name.encode())
    texts = distinct_texts(words, run, [workload.seed, _Draw.TEXTS, name], "prompt")
    prefix = workload.shared_prefix
    if prefix is not None:
        of_groups = np.full(prefix.groups, prefix.tokens)
        prefixes = distinct_texts(of_groups, 0, [workload.seed, _Draw.PREFIX_TEXTS, name], "shared_prefix")
        rng = _generator(workload, _Draw.PREFIXES)
        shared = rng.random(traffic.chats) < prefix.share
        groups = rng.integers(prefix.groups, size=traffic.chats)
        firsts = np.cumsum(traffic.turns) - traffic.turns
        for first, group in zip(firsts[shared].tolist(), groups[shared].tolist(), strict=True):
            texts[first] = f"{prefixes[group]} {texts[first]}"
    return texts


def _tenants(workload: Workload, chats: int) -> list[str | None]:
    if not workload.tenants:
        return [None] * chats
    weights = np.array([tenant.weight for tenant in workload.tenants])
    chosen = _generator(workload, _Draw.TENANTS).choice(len(weights), size=chats, p=weights / weights.sum())
    return [workload.tenants[index].name for index in chosen.tolist()]


def _some(workload: Workload, what: _Draw, part: Structured | Disconnects | None, chats: int) -> list[bool]:
    """Which chats belong to the share of a part of the workload: none where it has no such part."""
    share = part.share if part else 0.0
    return (_generator(workload, what).random(chats) < share).tolist()  # type: ignore[no-any-return]


def _changes(workload: Workload, taking: Sequence[str], traffic: _Traffic) -> list[Change]:
    """The adapters that are unloaded and loaded again, as long as requests come. Raises SpecInvalid."""
    churn = workload.churn
    if churn is None:
        return []
    if churn.adapters > len(taking):
        raise SpecInvalid(
            f"churn.adapters is {churn.adapters}, but {len(taking)} adapters take requests; lower it or load more"
        )
    until_s = workload.duration_s or (float(traffic.times[-1]) if traffic.times is not None else 0.0)
    count = int(until_s / churn.every_s)
    if count > MOST_CHANGES:
        raise SpecInvalid(
            f"churn.every_s is {churn.every_s:g}: {count:,} changes in {until_s:g} s, over {MOST_CHANGES:,}; raise it"
        )
    churned = taking[len(taking) - churn.adapters :]
    folder = churn.source.rstrip("/")
    return [
        Change((number + 1) * churn.every_s, name, f"{folder}/{name}")
        for number, name in zip(range(count), itertools.cycle(churned), strict=False)
    ]
