"""How requests end, as labels."""

from __future__ import annotations

from typing import Literal

Outcome = Literal["stop", "length", "abort", "error"]

# What failed a request, as a label: the engine's own codes for it, its loss, or anything else.
KINDS = ("deadline_exceeded", "resident_bytes_exceeded", "adapter_load_failed", "engine_lost", "request_refused")
FAILED = "failed"

OUTCOMES: tuple[Outcome, ...] = ("stop", "length", "abort", "error")
