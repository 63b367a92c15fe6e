"""A workload as people write it: one YAML file of few words, every field checked before anything is sent.

Facts only. What becomes of them is elsewhere: times in `arrivals`, names in `popularity`, lengths in `lengths`,
and all of it together, as requests, in `script`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import yaml
from msgspec import Meta

Count = Annotated[int, Meta(ge=1)]
Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]


class SpecInvalid(ValueError):
    """A workload file can't be used; the message names the file, the field, the value and what is expected."""


class _Spec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of a workload: what isn't a field is an error, since a misspelt field would be silently ignored."""


class _Kind(_Spec, frozen=True, tag_field="kind", tag=str.lower):
    """One of several ways; `kind` in the file says which."""


# --- when requests come ---


class Closed(_Kind, frozen=True):
    """A closed loop: each of `streams` sends its next request when its last is done."""

    streams: Count = 16


class Poisson(_Kind, frozen=True):
    """Open loop: independent arrivals, `rate` requests a second on average."""

    rate: Positive


class Gamma(_Kind, frozen=True):
    """Open loop: intervals Gamma-distributed with coefficient of variation `cv`; 1 is Poisson, more comes in bursts."""

    rate: Positive
    cv: Positive = 1.0


class Trace(_Kind, frozen=True):
    """Open loop: the times of a CSV file, `speed` times as fast; its lengths too where `lengths` says so.

    The file has a head with TIMESTAMP, ContextTokens, GeneratedTokens, as the public Azure traces have; `.gz` is read.
    """

    file: str
    speed: Positive = 1.0
    start_s: NotNegative = 0.0


Arrivals = Closed | Poisson | Gamma | Trace


# --- which adapter a request names ---


class Identical(_Kind, frozen=True):
    """All requests name the first adapter."""


class Uniform(_Kind, frozen=True):
    """Every adapter is as likely as any other."""


class Distinct(_Kind, frozen=True):
    """In turn, so that as many different adapters as there are run at once."""


class Zipf(_Kind, frozen=True):
    """The k-th adapter weighs 1 / k**exponent."""

    exponent: NotNegative = 1.0


class Power(_Kind, frozen=True):
    """S-LoRA's power law: adapter floor(N * u**(1/alpha)), u uniform: 1 is even, 0.1 gives one of 1,000 half of all.

    Source: S-LoRA's benchmarks (trace.py), where the index is N times a draw of numpy.random.power(alpha).
    """

    alpha: Positive = 1.0


class Drifting(_Kind, frozen=True):
    """`hot` adapters take `hot_share` of the requests evenly; every `every` requests the hot set moves on by one."""

    hot: Count = 4
    hot_share: Share = 0.9
    every: Count = 100


class Weights(_Kind, frozen=True):
    """By hand: adapter name -> weight; what isn't named gets none."""

    weights: Mapping[str, NotNegative]


Popularity = Identical | Uniform | Distinct | Zipf | Power | Drifting | Weights


# --- how long prompts and answers are, in tokens ---


class Fixed(_Kind, frozen=True):
    """Always `tokens`."""

    tokens: Count


class Between(_Kind, frozen=True, tag="uniform"):
    """Evenly from `low` to `high`, both included."""

    low: Count
    high: Count


class Lognormal(_Kind, frozen=True):
    """Lognormal with this median and sigma (of the logarithm), cut to `low`..`high`."""

    median: Positive
    sigma: NotNegative
    low: Count = 1
    high: Count = 4096


class Azure(_Kind, frozen=True):
    """The quantiles of the public Azure LLM inference traces of 2023, shipped with this package, scaled and cut.

    `trace` is `conv` or `code`; whether prompts or answers are meant depends on where this stands.
    """

    trace: str = "conv"
    scale: Positive = 1.0
    high: Count = 4096


class OfTrace(_Kind, frozen=True, tag="trace"):
    """The lengths of the requests in the trace that `arrivals` replays, scaled and cut."""

    scale: Positive = 1.0
    high: Count = 4096


Length = Fixed | Between | Lognormal | Azure | OfTrace


# --- what else traffic is made of ---


class SharedPrefix(_Spec, frozen=True):
    """`share` of the prompts begin with one of `groups` texts of `tokens` tokens, so that a cache can be of use."""

    tokens: Count
    share: Share = 1.0
    groups: Count = 1


class Tenant(_Spec, frozen=True):
    """One customer: its requests carry the key in the environment variable `key_env`; `weight` is its part of them."""

    name: str
    key_env: str
    weight: Positive = 1.0


class Conversations(_Spec, frozen=True):
    """Chats of several turns: each turn repeats what was said, waits `think_s` after the last answer, and goes on."""

    turns: Length
    think_s: NotNegative = 0.0


class ColdArrivals(_Spec, frozen=True):
    """`share` of the requests name an adapter not asked for before in this run, as long as there are any left.

    `reserved` adapters, the last of the list, are kept for this and take no other requests.
    """

    share: Share
    reserved: Count


class Churn(_Spec, frozen=True):
    """Every `every_s` seconds one of the last `adapters` adapters is unloaded and loaded again, in turn.

    Needs a server that knows vLLM's /v1/load_lora_adapter and /v1/unload_lora_adapter, and `source`: the directory
    in which the server finds each adapter under its name.
    """

    every_s: Positive
    adapters: Count
    source: str


class Structured(_Spec, frozen=True):
    """`share` of the requests ask for an answer that follows `json_schema` (response_format)."""

    share: Share
    json_schema: Mapping[str, Any] = msgspec.field(
        default_factory=lambda: {
            "type": "object",
            "properties": {"name": {"type": "string", "maxLength": 24}, "count": {"type": "integer"}},
            "required": ["name", "count"],
            "additionalProperties": False,
        }
    )


class Disconnects(_Spec, frozen=True):
    """`share` of the clients leave after `after_events` events of their answer, or before the first at 0."""

    share: Share
    after_events: Annotated[int, Meta(ge=0)] = 4


class Slo(_Spec, frozen=True):
    """A good answer: first token within `ttft_ms`, a further one each `tpot_ms` on average, all in `e2e_ms`. 0: any."""

    ttft_ms: NotNegative = 0.0
    tpot_ms: NotNegative = 0.0
    e2e_ms: NotNegative = 0.0


class Workload(_Spec, frozen=True):
    """Everything about one load. Two runs of one workload with one seed send the same requests.

    A run ends when `requests` are sent or, in an open loop, when `duration_s` is over, whichever comes first; one of
    them is needed. `base_share` of the requests name the base model, the rest adapters by `popularity`; `adapters`
    bounds how many of those that a server lists are used (0: all). `endpoint` is `completions` or `chat`.
    `warm_up` requests go before, unmeasured. `ignore_eos` makes answers exactly as long as asked for.
    """

    name: str
    seed: Annotated[int, Meta(ge=0)] = 0
    endpoint: str = "completions"
    arrivals: Arrivals = msgspec.field(default_factory=Closed)
    requests: Annotated[int, Meta(ge=0)] = 0
    duration_s: NotNegative = 0.0
    warm_up: Annotated[int, Meta(ge=0)] = 8
    adapters: Annotated[int, Meta(ge=0)] = 0
    base_share: Share = 0.0
    popularity: Popularity = msgspec.field(default_factory=Uniform)
    prompt: Length = msgspec.field(default_factory=lambda: Fixed(tokens=64))
    output: Length = msgspec.field(default_factory=lambda: Fixed(tokens=32))
    shared_prefix: SharedPrefix | None = None
    tenants: tuple[Tenant, ...] = ()
    conversations: Conversations | None = None
    cold: ColdArrivals | None = None
    churn: Churn | None = None
    structured: Structured | None = None
    disconnects: Disconnects | None = None
    slo: Slo = msgspec.field(default_factory=Slo)
    ignore_eos: bool = True
    temperature: NotNegative = 0.0
    timeout_s: Positive = 300.0


def parse_workload(text: str, where: str = "the workload") -> Workload:
    """A workload from YAML. Raises SpecInvalid, with the path of the field that is wrong."""
    try:
        loaded = yaml.safe_load(text)
        workload = msgspec.convert(loaded, Workload)
    except (yaml.YAMLError, msgspec.ValidationError) as error:
        raise SpecInvalid(f"{where}: {error}") from error
    _check(workload, where)
    return workload


def read_workload(path: Path) -> Workload:
    """A workload from a file. Raises SpecInvalid."""
    try:
        return parse_workload(path.read_text(), str(path))
    except OSError as error:
        raise SpecInvalid(f"{path}: {error.strerror}; give the path of a workload, or a suite's name") from error


def _check(workload: Workload, where: str) -> None:
    """What one field alone can't say. Raises SpecInvalid."""
    closed = isinstance(workload.arrivals, Closed)
    wrong = [
        (
            workload.endpoint not in ("completions", "chat"),
            f"endpoint {workload.endpoint!r}: expected completions or chat",
        ),
        (closed and not workload.requests, "arrivals of kind closed need `requests`: nothing else ends a closed loop"),
        (not (workload.requests or workload.duration_s), "give `requests` or `duration_s`: nothing else ends the run"),
        (
            workload.conversations is not None and workload.endpoint != "chat",
            "conversations need `endpoint: chat`",
        ),
        (
            any(isinstance(one, OfTrace) for one in (workload.prompt, workload.output))
            and not isinstance(workload.arrivals, Trace),
            "lengths of kind trace need `arrivals` of kind trace: they are that file's lengths",
        ),
        (
            any(
                isinstance(one, Azure) and one.trace not in ("conv", "code")
                for one in (workload.prompt, workload.output)
            ),
            "lengths of kind azure: `trace` is conv or code",
        ),
    ]
    for is_wrong, message in wrong:
        if is_wrong:
            raise SpecInvalid(f"{where}: {message}")
