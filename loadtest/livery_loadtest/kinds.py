"""When requests come, which adapter they name, how long they are: each in one of several kinds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta

MOST_REQUESTS = 2_000_000  # of one run: each is an object in memory
MOST_TOKENS = 1_000_000  # of one prompt or answer

Count = Annotated[int, Meta(ge=1, le=MOST_REQUESTS)]
CountOrNone = Annotated[int, Meta(ge=0, le=MOST_REQUESTS)]
Tokens = Annotated[int, Meta(ge=1, le=MOST_TOKENS)]
Positive = Annotated[float, Meta(gt=0, le=1e9)]
NotNegative = Annotated[float, Meta(ge=0, le=1e9)]
Share = Annotated[float, Meta(ge=0, le=1)]
Text = Annotated[str, Meta(min_length=1)]


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of a workload: what isn't a field is an error, since a misspelt field would be silently ignored."""


class Kind(Part, frozen=True, tag_field="kind", tag=str.lower):
    """One of several ways; `kind` in the file says which."""


# --- when requests come ---


class Closed(Kind, frozen=True):
    """A closed loop: each of `streams` sends its next request when its last is done."""

    streams: Count = 16


class Poisson(Kind, frozen=True):
    """Open loop: independent arrivals, `rate` requests a second on average."""

    rate: Positive


class Gamma(Kind, frozen=True):
    """Open loop, `rate` a second: gaps Gamma-distributed with coefficient of variation `cv`; 1 is Poisson, 4 bursts."""

    rate: Positive
    cv: Annotated[float, Meta(gt=0, le=100)] = 1.0


class Trace(Kind, frozen=True):
    """Open loop: the times of a CSV `file` from second `start_s` on, `speed` times as fast.

    Its lengths are used where those are of kind trace; the run ends with the file at the latest. That has a head with
    TIMESTAMP, ContextTokens and GeneratedTokens, as the public Azure traces have; times are ISO or seconds and never go
    back. One whose name ends in .gz is unpacked. The path counts from where the command runs.
    """

    file: Text
    speed: Positive = 1.0
    start_s: NotNegative = 0.0


class AzureGaps(Kind, frozen=True, tag="azure"):
    """Open loop: gaps as in the Azure `trace` (conv or code), stretched to `rate` requests a second; 0: its own rate.

    Drawn independently from its shipped quantiles: as uneven as the trace, but busy minutes aren't kept together.
    """

    trace: Literal["conv", "code"] = "conv"
    rate: NotNegative = 0.0


Arrivals = Closed | Poisson | Gamma | Trace | AzureGaps


# --- which adapter a request names ---


class Identical(Kind, frozen=True):
    """All requests name the first adapter."""


class Uniform(Kind, frozen=True):
    """Every adapter is as likely as any other."""


class Distinct(Kind, frozen=True):
    """In turn, so that as many different adapters as there are run at once."""


class Zipf(Kind, frozen=True):
    """The k-th adapter weighs 1 / k^`exponent`."""

    exponent: Annotated[float, Meta(ge=0, le=100)] = 1.0


class Power(Kind, frozen=True):
    """S-LoRA's power law: adapter floor(N · u^(1/`alpha`)), u uniform: 1 is even, 0.1 gives one of 1,000 half of all.

    Source: S-LoRA's benchmarks (trace.py), where the index is N times a draw of `numpy.random.power`.
    """

    alpha: Annotated[float, Meta(ge=0.01, le=100)] = 1.0


class Drifting(Kind, frozen=True):
    """`hot` adapters take `hot_share` of the requests evenly; every `every` requests the hot set moves on by one.

    The others share the rest evenly.
    """

    hot: Count = 4
    hot_share: Share = 0.9
    every: Count = 100


class Weights(Kind, frozen=True):
    """By hand: `weights` has adapter name -> weight; what isn't named gets none."""

    weights: Mapping[str, NotNegative]

    def __post_init__(self) -> None:
        if not any(self.weights.values()):
            raise ValueError("all weights are 0 or none is given; give at least one adapter a weight above 0")


Popularity = Identical | Uniform | Distinct | Zipf | Power | Drifting | Weights


# --- how long prompts and answers are, in tokens ---


class Fixed(Kind, frozen=True):
    """Always `tokens`."""

    tokens: Tokens


class Between(Kind, frozen=True, tag="uniform"):
    """Evenly from `low` to `high`, both included."""

    low: Tokens
    high: Tokens

    def __post_init__(self) -> None:
        _ordered(self.low, self.high)


class Lognormal(Kind, frozen=True):
    """Lognormal with this `median` and `sigma` (of the logarithm), cut to `low`..`high`."""

    median: Positive
    sigma: Annotated[float, Meta(ge=0, le=10)]
    low: Tokens = 1
    high: Tokens = 4096

    def __post_init__(self) -> None:
        _ordered(self.low, self.high)


class Azure(Kind, frozen=True):
    """By the quantiles of the public Azure LLM inference traces of 2023, shipped with this package.

    `trace` is conv or code; whether prompts or answers are meant depends on where this stands. Times `scale`, and at
    most `high`. Prompts and answers are drawn independently of each other.
    """

    trace: Literal["conv", "code"] = "conv"
    scale: Positive = 1.0
    high: Tokens = 4096


class OfTrace(Kind, frozen=True, tag="trace"):
    """The lengths of the requests in the trace that `arrivals` replays, times `scale` and at most `high`."""

    scale: Positive = 1.0
    high: Tokens = 4096


def _ordered(low: int, high: int) -> None:
    if low > high:
        raise ValueError(f"low is {low} and high {high}; give a high that is not below low")


Turns = Fixed | Between | Lognormal
Length = Fixed | Between | Lognormal | Azure | OfTrace

# the end of a field's path -> what may stand there
KINDS: dict[str, tuple[str, ...]] = {
    f"{field}.kind": tuple(str(kind.__struct_config__.tag) for kind in get_args(union))
    for field, union in (
        ("arrivals", Arrivals),
        ("popularity", Popularity),
        ("turns", Turns),
        ("prompt", Length),
        ("output", Length),
    )
} | {"trace": ("conv", "code"), "endpoint": ("completions", "chat")}
