"""How requests end, as labels."""

from __future__ import annotations

from typing import Literal

Outcome = Literal["stop", "length", "abort", "error"]
OUTCOMES: tuple[Outcome, ...] = ("stop", "length", "abort", "error")
