"""How requests end, as labels."""

from __future__ import annotations

from typing import get_args

from livery.activity import Outcome
from livery.engine.codes import ADAPTER_LOST, ADAPTER_TOO_LARGE, DEADLINE_EXCEEDED

OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)

# What failed a request, as a label: the engine's own codes for it, its loss, or anything else.
KINDS = (DEADLINE_EXCEEDED, ADAPTER_TOO_LARGE, ADAPTER_LOST, "engine_lost", "request_refused")
FAILED = "failed"
