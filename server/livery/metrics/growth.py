"""What one process counted, as it is told to the one that adds all of it up, and back to who shows it."""

from __future__ import annotations

import msgspec

from livery.metrics.adapters import AdapterCounts
from livery.metrics.requests import SeriesGrowth
from livery.metrics.tenants import TenantCounts


class Growth(msgspec.Struct, frozen=True):
    """Counts of Metrics, by name where they have names. `asked`: digests, each with the adapter it is a version of."""

    requests: SeriesGrowth
    adapters: list[tuple[str, AdapterCounts]]
    tenants: list[tuple[str, TenantCounts]]
    http: list[tuple[str, str, str, int]]  # route, method, status, responses
    unknown_fields: int
    asked: list[tuple[str, str]]
