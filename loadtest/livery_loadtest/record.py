"""What happened: to one request, to the client itself, and at the server meanwhile. Facts; numbers come later."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from livery_loadtest.gaps import Gaps
from livery_loadtest.script import Planned


@dataclass(slots=True)
class Record:
    """What happened to one request. Times are seconds of `time.perf_counter`, 0.0 where not reached.

    `intended` is when it should have been sent: as planned in an open loop, when its stream was free in a closed one,
    and of a chat's later turn when the pause after the answer before it was over. Latencies count from it, so that
    neither a client that was held up nor a connection that was waited for flatters the server (coordinated omission).
    `sent` is when its first byte was, the first time. `connected` is when a connection
    made for it was there, 0.0 where one was kept from before. `events` are the arrival times of events that carried
    text, reasoning or a call; a server may put several tokens into one, or hold one back. `counted` is how many there
    were where only the first and the last were kept, else 0. `output_tokens` is the
    server's own usage, None where it sent none; `error` a short kind, such as "http 404", None where the answer was
    whole. `model_told` is the `model` of the answer, `version` its `x-livery-adapter`. `retry_after_s` is what a
    refusal asked for. `left` marks a client that went away as planned. `retried`: a connection kept from before was
    closed as the request went out, and it went out once more on another.
    """

    planned: Planned
    intended: float
    sent: float = 0.0
    connected: float = 0.0
    finished: float = 0.0
    events: array[float] = field(default_factory=lambda: array("d"))
    counted: int = 0
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    finish_reason: str | None = None
    model_told: str = ""
    version: str = ""
    text: str = ""
    status: int = 0
    error: str | None = None
    error_message: str = ""
    retry_after_s: float | None = None
    left: bool = False
    retried: bool = False


@dataclass(frozen=True, slots=True)
class Health:
    """How the client itself did. A run in which it was the bottleneck isn't a measurement of the server.

    `cpu_share` is its busiest process's CPU time by wall time (1.0 is a whole core), `loop_lag_ms` how late its event
    loop woke, `send_delay_ms` how late requests left; both as p50, p99 and maximum. `reasons` says in
    words what makes the run invalid; none: it is valid. `anew` says of each run that was thrown away for this one why.
    """

    processes: int
    cpu_share: float
    loop_lag_ms: tuple[float, float, float]
    send_delay_ms: tuple[float, float, float]
    reasons: tuple[str, ...] = ()
    anew: tuple[str, ...] = ()

    @property
    def valid(self) -> bool:
        return not self.reasons


@dataclass(frozen=True, slots=True)
class Sample:
    """The server's own metrics at one moment: `at` seconds after the start, Prometheus name with labels -> value."""

    at: float
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Load:
    """A change of what the server had: `seconds` it took, `error` where it failed."""

    at: float
    model: str
    seconds: float
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Hooked:
    """A command that was run: `status` is its exit status, None where it was killed for its time; `output` its end."""

    at: float
    name: str
    seconds: float
    status: int | None
    output: str


@dataclass(frozen=True, slots=True)
class Run:
    """One workload, once, on one target. `started` and `seconds` bound it on the clock of its records.

    `gaps` are the times between events where the run was too long to keep those: each record then has only its first
    and its last event. `interrupted` is set where it was stopped midway: what is here then is what was finished by
    then. `unsampled` is why there are no samples of the server's metrics, where there are none.
    """

    target: str
    repeat: int
    started: float
    seconds: float
    records: Sequence[Record]
    health: Health
    samples: Sequence[Sample] = ()
    loads: Sequence[Load] = ()
    hooked: Sequence[Hooked] = ()
    interrupted: bool = False
    gaps: Gaps | None = None
    unsampled: str = ""
