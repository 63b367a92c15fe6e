"""How requests end, as labels."""

from __future__ import annotations

from typing import get_args

from livery.activity import Outcome

OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)

# What failed a request, as a label: the engine's own codes for it, its loss, or anything else.
KINDS = ("deadline_exceeded", "resident_bytes_exceeded", "adapter_load_failed", "engine_lost", "request_refused")
FAILED = "failed"
