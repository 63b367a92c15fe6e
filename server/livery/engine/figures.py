"""How an engine tells what it measured, across the process border: plain frozen data, small whatever is loaded."""

from __future__ import annotations

import msgspec

# What a step's time goes to: adapters moved and a plan made; the step launched (on a CPU, computed); its tokens waited
# for; requests advanced by them; requests taken in and answers sent.
PHASES = ("schedule", "launch", "result", "update", "messages")

# Bounds of what is counted, each inclusive; a last count is of what is above. Seconds, and rows or tokens of a step.
STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
LOAD_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


class Spread(msgspec.Struct, frozen=True, array_like=True):
    """Observations counted by bounds, and their sum."""

    counts: tuple[int, ...] = ()
    total: float = 0.0


class AdapterUse(msgspec.Struct, frozen=True, array_like=True):
    """What became of one version since the engine started. Counters only grow."""

    digest: str
    loads: int = 0  # into device memory
    load_seconds: float = 0.0  # spent on reading and copying it
    failures: int = 0
    evictions: int = 0
    hits: int = 0  # requests that found it in device memory
    misses: int = 0


class TenantStanding(msgspec.Struct, frozen=True, array_like=True):
    """How one tenant does beside the others: sequences, and its counter above the lowest (livery.engine.fairness)."""

    tenant: str
    waiting: int = 0
    running: int = 0
    lag: float = 0.0


class EngineFigures(msgspec.Struct, frozen=True):
    """What an engine measured since it started."""

    phase_seconds: tuple[float, ...] = (0.0,) * len(PHASES)  # none where it doesn't know
    step_seconds: Spread = Spread()
    step_sequences: Spread = Spread()
    step_tokens: Spread = Spread()
    reads: Spread = Spread()  # seconds from store to host memory: read, verified, converted
    copies: Spread = Spread()  # seconds from host to device memory
    load_failures: int = 0
    adapters: tuple[AdapterUse, ...] = ()  # those that something happened to last
    tenants: tuple[TenantStanding, ...] = ()  # those with the most requests


class PromptRead(msgspec.Struct):
    """How far an engine had got with a prompt whose request ended before its answer began: `tokens` were computed or
    found, `cached` of these found. None while that isn't known.
    """

    tokens: int | None = None
    cached: int = 0


class RequestTimes(msgspec.Struct, frozen=True, array_like=True):
    """What a sequence's time went to before its first token: seconds.

    `load_s` of the `queue_s` it waited for its adapter to come to the device.
    """

    queue_s: float
    load_s: float
    prefill_s: float
