"""What will be sent, and when: the requests of one run, fixed before it begins. Knows no HTTP and no clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from livery_loadtest.spec import Hook


@dataclass(frozen=True, slots=True)
class Planned:
    """One request to send.

    `at` is the intended time in seconds after the run's start; None where the one before decides: in a closed loop,
    and in later turns of a conversation, which follow request `follows` by `pause_s`. `text` is what the user says;
    in a later turn the messages before it and their answers go first. The turns of a conversation stand next to each
    other. `leave_after` is the number of events after which the client leaves, None where it stays. A request with
    `json_schema` never carries ignore_eos. `cold` marks the first request for an adapter kept for that.
    """

    index: int
    at: float | None
    model: str
    text: str
    max_tokens: int
    tenant: str | None = None
    follows: int | None = None
    pause_s: float = 0.0
    leave_after: int | None = None
    json_schema: Mapping[str, Any] | None = None
    cold: bool = False


@dataclass(frozen=True, slots=True)
class Change:
    """One change of what the server has, `at` seconds after the start: unload `model`, then load it from `source`.

    `source` is the adapter's own directory, as the server sees it.
    """

    at: float
    model: str
    source: str


@dataclass(frozen=True, slots=True)
class Script:
    """All requests of one run in the order of their times, what changes meanwhile, and commands to be run.

    A request's `index` is its place in `requests`. A conversation stands where its first turn does.
    """

    requests: Sequence[Planned]
    changes: Sequence[Change] = ()
    hooks: Sequence[Hook] = ()
