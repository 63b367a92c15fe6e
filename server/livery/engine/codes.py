"""Codes of requests that end with an error, wherever programs tell one from another: the seam, refusals, metrics."""

from __future__ import annotations

DEADLINE_EXCEEDED = "deadline_exceeded"  # its time is up
ADAPTER_TOO_LARGE = "resident_bytes_exceeded"  # more than its tenant may have in memory
ADAPTER_LOST = "adapter_load_failed"  # it could not be read when the request needed it
