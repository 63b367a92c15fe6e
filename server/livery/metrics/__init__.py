"""What the server counts and how it shows: Prometheus text under the names routers and dashboards read.

Whole-server series carry vLLM's names and labels; series per adapter are our own, counters and gauges only, and
bounded to the busiest adapters. Knows no HTTP and no engine object: the engine's numbers come in as a snapshot.
"""

from __future__ import annotations

from livery.activity import Outcome
from livery.metrics.adapters import AdapterCounts
from livery.metrics.collectors import Metrics
from livery.metrics.meter import RequestMeter, SequenceMeter
from livery.metrics.outcomes import OUTCOMES
from livery.metrics.server import ServerState
from livery.metrics.snapshot import Snapshot, Standing
from livery.metrics.tenants import Throttle
from livery.metrics.top import OTHER, Top

__all__ = [
    "OTHER",
    "OUTCOMES",
    "AdapterCounts",
    "Metrics",
    "Outcome",
    "RequestMeter",
    "SequenceMeter",
    "ServerState",
    "Snapshot",
    "Standing",
    "Throttle",
    "Top",
]
