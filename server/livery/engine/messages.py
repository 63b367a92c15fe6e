"""What the two sides of the process border say to each other: msgpack over a private unix socket, never pickle."""

from __future__ import annotations

import msgspec

from livery.engine.base import AdapterRef, Asker, EngineConfig, EngineInfo, EngineStats, GenerationRequest, TokenDelta
from livery_adapters.effect import AdapterEffect


class Start(msgspec.Struct, frozen=True, tag=True):
    """The first message to a new engine process."""

    config: EngineConfig


class Submit(msgspec.Struct, frozen=True, tag=True):
    request: GenerationRequest


class Abort(msgspec.Struct, frozen=True, tag=True):
    request_id: str


class Load(msgspec.Struct, frozen=True, tag=True):
    adapter: AdapterRef
    asker: Asker


class Unload(msgspec.Struct, frozen=True, tag=True):
    digest: str


class Keep(msgspec.Struct, frozen=True, tag=True):
    """All versions that are not to be evicted; those of an earlier message are forgotten."""

    digests: tuple[str, ...]


class Ping(msgspec.Struct, frozen=True, tag=True):
    """Asks for a Pong through the engine's own loop, which proves that it turns; what is asked first is answered first.

    Anybody may have it sent, so it costs next to nothing.
    """


class Count(msgspec.Struct, frozen=True, tag=True):
    """Asks for Counted in the same way."""

    call: int


class Stop(msgspec.Struct, frozen=True, tag=True):
    pass


class Progress(msgspec.Struct, frozen=True, tag=True):
    """What a starting engine is busy with, in words."""

    text: str


class Ready(msgspec.Struct, frozen=True, tag=True):
    info: EngineInfo


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The model can't be served; the process ends after this."""

    reason: str


class Rejected(msgspec.Struct, frozen=True, tag=True):
    """A submitted request that never entered the queue."""

    request_id: str
    reason: str


class LoadOutcome(msgspec.Struct, frozen=True):
    """A version that was read and verified, with what it does to the base; or why it wasn't."""

    digest: str
    effect: AdapterEffect | None = None
    error: str | None = None
    code: str = ""


class Step(msgspec.Struct, frozen=True, tag=True):
    """Everything one step brought: one message, however many sequences ran."""

    deltas: list[TokenDelta]
    loads: list[LoadOutcome]


class Pong(msgspec.Struct, frozen=True, tag=True):
    pass


class Counted(msgspec.Struct, frozen=True, tag=True):
    """As of when it was asked for: with thousands of adapters hundreds of kilobytes."""

    call: int
    stats: EngineStats


ToEngine = Start | Submit | Abort | Load | Unload | Keep | Ping | Count | Stop
FromEngine = Progress | Ready | Refused | Rejected | Step | Pong | Counted


def pulse_address(address: str) -> str:
    """Where the beats of an engine go that is spoken to at this address."""
    return f"{address}-pulse"
