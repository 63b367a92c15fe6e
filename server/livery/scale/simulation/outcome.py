"""How a policy did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from livery.scale.plan.popularity import Floats
from livery.scale.simulation.load import Requests
from livery.scale.simulation.policies import Policy
from livery.scale.simulation.replica import COMING, DEVICE, HOST, STORE, Jobs

TIMES = (0.5, 0.95, 0.99)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One policy on one load, without the warm-up. Seconds; shares of requests; `imbalance` is most over mean.

    `throughput` are tokens a second of requests that ended before the last one came; `found_*` say where a request's
    adapter was when it came: on the device, on its way there, in host memory, in the store.
    """

    policy: str
    requests: int
    hit_rate: float
    found_coming: float
    found_host: float
    found_store: float
    ttft_p50: float
    ttft_p95: float
    ttft_p99: float
    tpot_p50: float
    tpot_p99: float
    throughput: float
    imbalance: float  # of answered tokens by replica
    busy: float  # mean share of the time in which a replica worked


def summarise(
    kind: type[Policy], requests: Requests, jobs: Jobs, places: np.ndarray, busy: Sequence[float], warm_up: int
) -> Outcome:
    """The numbers of one run; `places` are the replicas of the requests, the first `warm_up` of which don't count."""
    counted = slice(warm_up, None)
    first, last = np.array(jobs.first)[counted], np.array(jobs.last)[counted]
    times, outputs = requests.times[counted], requests.outputs[counted]
    found = np.array(jobs.found)[counted]
    ttft = first - times
    several = outputs > 1
    tpot = (last - first)[several] / (outputs[several] - 1)
    start, end = float(times[0]), float(times[-1])
    in_time = last <= end
    by_replica = np.bincount(places[counted], weights=outputs, minlength=len(busy))
    seconds = max(end - start, 1e-9)
    finished = float(np.max(np.array(jobs.last)))
    return Outcome(
        policy=kind.name,
        requests=len(times),
        hit_rate=_share(found == DEVICE),
        found_coming=_share(found == COMING),
        found_host=_share(found == HOST),
        found_store=_share(found == STORE),
        **dict(zip(("ttft_p50", "ttft_p95", "ttft_p99"), _quantiles(ttft, TIMES), strict=True)),
        **dict(zip(("tpot_p50", "tpot_p99"), _quantiles(tpot, (0.5, 0.99)), strict=True)),
        throughput=float(outputs[in_time].sum()) / seconds,
        imbalance=float(by_replica.max() / by_replica.mean()),
        busy=float(np.mean(busy)) / finished,
    )


def _share(which: np.ndarray) -> float:
    return float(np.mean(which))


def _quantiles(values: Floats, at: Sequence[float]) -> list[float]:
    if not len(values):
        return [0.0] * len(at)
    return [float(value) for value in np.quantile(values, at)]
