"""Suites that come with this package: several workloads each, sized for a small server and scaled to any other."""

from __future__ import annotations

from importlib.resources import files

from msgspec import structs

from livery_loadtest.checked import SpecInvalid, convert, load_yaml
from livery_loadtest.kinds import (
    KINDS,
    MOST_REQUESTS,
    MOST_TOKENS,
    Arrivals,
    Azure,
    AzureGaps,
    Between,
    Closed,
    Count,
    Fixed,
    Gamma,
    Length,
    Lognormal,
    OfTrace,
    Part,
    Poisson,
    Positive,
    Text,
    Trace,
)
from livery_loadtest.spec import Workload


class Suite(Part, frozen=True):
    """`workloads` to be run one after the other, in about `minutes` with one repeat on the server they are meant for.

    `name` is what it is called and `notes` say what for. `capacity` is how many requests a second that server completes
    when it is full; the rates of open loops are meant as shares of it. The workloads' lengths are multiplied by
    `lengths`. `adapters` is how many a server must have for all of it.
    """

    name: Text
    notes: Text
    minutes: Positive
    capacity: Positive
    adapters: Count
    workloads: tuple[Workload, ...]
    lengths: Positive = 1.0


def suite_names() -> list[str]:
    """The suites there are."""
    names = (file.name for file in files(__package__).iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def suite(name: str, capacity: float = 0.0, lengths: float = 0.0, time: float = 1.0) -> Suite:
    """The suite of that name, for a server that completes `capacity` requests a second when it is full.

    All rates, and the requests of closed loops, keep their share of the capacity; streams stay. Prompts and answers are
    `lengths` times as long as the file has them, and all takes `time` times as long. 0 is as the suite has it.
    Raises SpecInvalid where there is no such suite, or what comes out is no workload.
    """
    if name not in suite_names():
        known = ", ".join(suite_names())
        raise SpecInvalid(f"no suite is called {name!r}; there are {known}; `livery bench run FILE` runs a workload")
    text = (files(__package__) / f"{name}.yaml").read_text()
    read = convert(load_yaml(text, name), Suite, f"suite {name}", KINDS)
    faster = capacity / read.capacity if capacity else 1.0
    longer = lengths or read.lengths
    try:
        workloads = tuple(_scaled(workload, faster, longer, time) for workload in read.workloads)
    except ValueError as error:
        raise SpecInvalid(f"suite {name}: {error}; scale it less") from error
    return structs.replace(
        read, workloads=workloads, capacity=read.capacity * faster, lengths=longer, minutes=read.minutes * time
    )


def _scaled(workload: Workload, faster: float, longer: float, time: float) -> Workload:
    prefix = workload.shared_prefix
    return structs.replace(
        workload,
        arrivals=_arrivals(workload.arrivals, faster),
        requests=_whole(workload.requests * faster * time, MOST_REQUESTS) if workload.requests else 0,
        duration_s=workload.duration_s * time,
        prompt=_length(workload.prompt, longer),
        output=_length(workload.output, longer),
        shared_prefix=structs.replace(prefix, tokens=_whole(prefix.tokens * longer)) if prefix else None,
        hooks=tuple(structs.replace(hook, at_s=hook.at_s * time) for hook in workload.hooks),
        slopes=tuple(structs.replace(slope, after_s=slope.after_s * time) for slope in workload.slopes),
    )


def _arrivals(arrivals: Arrivals, faster: float) -> Arrivals:
    match arrivals:
        case Poisson() | Gamma() | AzureGaps():
            return structs.replace(arrivals, rate=arrivals.rate * faster)
        case Trace():
            return structs.replace(arrivals, speed=arrivals.speed * faster)
        case Closed():
            return arrivals


def _length(length: Length, longer: float) -> Length:
    match length:
        case Fixed():
            return Fixed(tokens=_whole(length.tokens * longer))
        case Between():
            return Between(low=_whole(length.low * longer), high=_whole(length.high * longer))
        case Lognormal():
            low, high = _whole(length.low * longer), _whole(length.high * longer)
            return structs.replace(length, median=length.median * longer, low=low, high=high)
        case Azure() | OfTrace():
            return structs.replace(length, scale=length.scale * longer, high=_whole(length.high * longer))


def _whole(value: float, most: int = MOST_TOKENS) -> int:
    """At least one. Raises ValueError."""
    if value > most:
        raise ValueError(f"{value:,.0f} is over {most:,}")
    return max(round(value), 1)
