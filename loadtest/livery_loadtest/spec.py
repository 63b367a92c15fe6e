"""A workload as people write it: one YAML file of few words, every field checked before anything is sent.

Facts only. What becomes of them is elsewhere: times in `arrivals`, names in `popularity`, lengths in `lengths`,
and all of it together, as requests, in `build`. The docstrings are what loadtest/README.md says of each field.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from livery_loadtest.checked import SpecInvalid, convert, load_yaml
from livery_loadtest.kinds import (
    KINDS,
    Arrivals,
    Azure,
    AzureGaps,
    Between,
    Closed,
    Count,
    CountOrNone,
    Distinct,
    Drifting,
    Fixed,
    Gamma,
    Identical,
    Length,
    Lognormal,
    NotNegative,
    OfTrace,
    Part,
    Poisson,
    Popularity,
    Positive,
    Power,
    Share,
    Text,
    Tokens,
    Trace,
    Turns,
    Uniform,
    Weights,
    Zipf,
)

__all__ = [
    "Arrivals",
    "Azure",
    "AzureGaps",
    "Between",
    "Churn",
    "Closed",
    "ColdArrivals",
    "Conversations",
    "Disconnects",
    "Distinct",
    "Drifting",
    "Fixed",
    "Gamma",
    "Hook",
    "Identical",
    "Length",
    "Lognormal",
    "OfTrace",
    "Poisson",
    "Popularity",
    "Power",
    "SharedPrefix",
    "Slo",
    "Slope",
    "SpecInvalid",
    "Structured",
    "Tenant",
    "Trace",
    "Turns",
    "Uniform",
    "Weights",
    "Workload",
    "Zipf",
    "parse_workload",
    "read_workload",
]


class SharedPrefix(Part, frozen=True):
    """`share` of the prompts begin with one of `groups` texts of `tokens` tokens, so that a cache can be of use.

    These tokens come on top of the prompt's own. The texts are the same in every repeat, as a system prompt is; of a
    conversation the first turn begins so.
    """

    tokens: Tokens
    share: Share = 1.0
    groups: Count = 1


class Tenant(Part, frozen=True):
    """One customer, `name`: its requests carry the key in the environment variable `key_env`.

    `weight` is how much it asks for beside the others: its part of the traffic. `share` is how much it is entitled to
    beside them where there isn't enough for all, as its weight in the server says; fairness is judged by it.
    """

    name: Text
    key_env: Text
    weight: Positive = 1.0
    share: Positive = 1.0


class Conversations(Part, frozen=True):
    """Chats of several `turns`: each turn repeats what was said, waits `think_s` after the last answer, and goes on.

    `arrivals` and all shares then count conversations, which keep their adapter and tenant; `prompt` is what each
    turn adds; `requests` counts turns.
    """

    turns: Turns
    think_s: NotNegative = 0.0


class ColdArrivals(Part, frozen=True):
    """`share` of the requests name an adapter not asked for before in this run, as long as there are any left.

    `reserved` adapters, the last of the list, are kept for this and take no other requests. Each repeat goes on where
    the one before stopped in that list, since an adapter is cold once; where none is left, no further request is cold:
    reserve enough for all repeats.
    """

    share: Share
    reserved: Count


class Churn(Part, frozen=True):
    """Every `every_s` seconds one of the last `adapters` adapters is unloaded and loaded again, in turn.

    Needs a server that knows vLLM's /v1/load_lora_adapter and /v1/unload_lora_adapter, and `source`: the directory
    in which the server finds each adapter under its name. Those reserved for cold arrivals are left alone.
    """

    every_s: Positive
    adapters: Count
    source: Text


class Hook(Part, frozen=True):
    """The shell command `run`, `at_s` seconds after the start, to cause faults.

    Its status and the end of its output are noted. It finds TARGET_NAME and TARGET_URL in its environment and is killed
    after `timeout_s`; `name` is shown for it. Only run with --allow-hooks: a workload may come from somebody else.
    """

    at_s: NotNegative
    run: Text
    name: str = ""
    timeout_s: Positive = 60.0


class Slope(Part, frozen=True):
    """What mustn't creep over hours: from second `after_s` on, `of` may grow by `percent_per_hour` of its first level.

    `of` is ttft_ms, itl_ms or e2e_ms (medians by the minute), or a name of the server's own metrics, series added up.
    """

    of: Text
    percent_per_hour: NotNegative
    after_s: NotNegative = 600.0


class Structured(Part, frozen=True):
    """`share` of the requests ask for an answer that follows `json_schema` (response_format).

    Such an answer ends where the schema does: `ignore_eos` isn't sent with it, and `output` only bounds it.
    """

    share: Share
    json_schema: Mapping[str, Any] = msgspec.field(
        default_factory=lambda: {
            "type": "object",
            "properties": {"name": {"type": "string", "maxLength": 24}, "count": {"type": "integer"}},
            "required": ["name", "count"],
            "additionalProperties": False,
        }
    )


class Disconnects(Part, frozen=True):
    """`share` of the clients leave after `after_events` events of their answer, or before the first at 0.

    Of a conversation they leave in the last turn.
    """

    share: Share
    after_events: CountOrNone = 4


class Slo(Part, frozen=True):
    """A good answer: first token within `ttft_ms`, a further one each `tpot_ms` on average, all in `e2e_ms`. 0: any."""

    ttft_ms: NotNegative = 0.0
    tpot_ms: NotNegative = 0.0
    e2e_ms: NotNegative = 0.0


class Workload(Part, frozen=True):
    """Everything about one load, under a `name`. Two runs of one workload with one `seed` send the same requests.

    A run ends when `requests` are sent or, in an open loop, when `duration_s` is over, whichever comes first; one of
    them is needed (0: no bound). `base_share` of the requests name the base model, the rest adapters by `popularity`;
    the first `adapters` of those that a server lists are used (0: all). `endpoint` is completions or chat.
    `warm_up` requests go before, unmeasured. `prompt` and `output` are lengths in tokens; `ignore_eos` makes answers
    exactly as long as asked for. `temperature` 0 is greedy. An answer that isn't whole after `timeout_s` has failed.
    """

    name: Text
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    endpoint: Literal["completions", "chat"] = "completions"
    arrivals: Arrivals = msgspec.field(default_factory=Closed)
    requests: CountOrNone = 0
    duration_s: NotNegative = 0.0
    warm_up: CountOrNone = 8
    adapters: CountOrNone = 0
    base_share: Share = 0.0
    popularity: Popularity = msgspec.field(default_factory=Uniform)
    prompt: Length = msgspec.field(default_factory=lambda: Fixed(tokens=64))
    output: Length = msgspec.field(default_factory=lambda: Fixed(tokens=32))
    shared_prefix: SharedPrefix | None = None
    tenants: tuple[Tenant, ...] = ()
    conversations: Conversations | None = None
    cold: ColdArrivals | None = None
    churn: Churn | None = None
    hooks: tuple[Hook, ...] = ()
    structured: Structured | None = None
    disconnects: Disconnects | None = None
    slo: Slo = msgspec.field(default_factory=Slo)
    slopes: tuple[Slope, ...] = ()
    ignore_eos: bool = True
    temperature: NotNegative = 0.0
    timeout_s: Positive = 300.0

    def __post_init__(self) -> None:
        """What one field alone can't say. Raises ValueError."""
        closed = isinstance(self.arrivals, Closed)
        of_trace = any(isinstance(one, OfTrace) for one in (self.prompt, self.output))
        names = [tenant.name for tenant in self.tenants]
        late = max((hook.at_s for hook in self.hooks), default=0.0)
        wrong = {
            "arrivals of kind closed need `requests`: nothing else ends a closed loop": closed and not self.requests,
            "give `requests` or `duration_s`: nothing else ends the run": not (self.requests or self.duration_s),
            "`conversations` need `endpoint: chat`": self.conversations is not None and self.endpoint != "chat",
            "`structured` needs `endpoint: chat`": self.structured is not None and self.endpoint != "chat",
            "`churn` in a closed loop needs `duration_s`, until which it goes on": closed
            and self.churn is not None
            and not self.duration_s,
            "lengths of kind trace need `arrivals` of kind trace: they are that file's lengths": of_trace
            and not isinstance(self.arrivals, Trace),
            "lengths of kind trace are of one request each: leave out `conversations`": of_trace
            and self.conversations is not None,
            f"`hooks`: one has at_s {late:g}, when the run is over (duration_s {self.duration_s:g})": self.hooks
            and 0 < self.duration_s <= late,
            f"`tenants` have a name twice ({', '.join(names)}): give each its own": len(set(names)) < len(names),
        }
        for message, is_wrong in wrong.items():
            if is_wrong:
                raise ValueError(message)


def parse_workload(text: str, where: str = "the workload") -> Workload:
    """A workload from YAML. Raises SpecInvalid, with the path of the field that is wrong and its value."""
    return convert(load_yaml(text, where), Workload, where, KINDS)


def read_workload(path: Path) -> Workload:
    """A workload from a file. Raises SpecInvalid."""
    try:
        return parse_workload(path.read_text(), str(path))
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise SpecInvalid(f"{path}: {why}; give a workload's file; `livery bench suite NAME` runs a suite") from error
