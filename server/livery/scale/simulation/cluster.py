"""Plays requests through replicas under a policy, event by event."""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np

from livery.scale.plan.capacity import Replica as Planned
from livery.scale.simulation.load import Requests, prompt_seconds
from livery.scale.simulation.outcome import Outcome, summarise
from livery.scale.simulation.policies import Policy, View
from livery.scale.simulation.replica import NEVER, NONE, Jobs, Replica, Spec
from livery_loadtest.traces import Ints

WARM_UP = 0.2  # of the requests, first ones that fill caches and aren't counted


@dataclass(frozen=True, slots=True)
class Served:
    """The replica of each request, and the seconds that each replica worked."""

    places: Ints
    busy: list[float]


def spec_of(planned: Planned) -> Spec:
    """A replica of a plan as the simulation serves by it."""
    memory, question = planned.memory, planned.question
    return Spec(
        costs=planned.costs,
        kv_tokens=memory.kv_tokens,
        max_running=question.max_running,
        slots=memory.slots,
        host_slots=memory.host_slots,
        host_load=memory.adapter / planned.host_rate,
        store_load=memory.adapter / question.store_rate,
    )


def play(requests: Requests, spec: Spec, replicas: int, kind: type[Policy], seed: int) -> Outcome:
    """Serve every request to its end, and say how it went."""
    jobs = jobs_of(requests, spec)
    served = serve(requests.times.tolist(), jobs, spec, replicas, kind, seed)
    return summarise(kind, requests, jobs, served.places, served.busy, int(WARM_UP * len(requests)))


def jobs_of(requests: Requests, spec: Spec) -> Jobs:
    """The requests as replicas know them, none of them served."""
    count = len(requests)
    return Jobs(
        adapters=requests.adapters.tolist(),
        prompts=requests.prompts.tolist(),
        outputs=requests.outputs.tolist(),
        reading=prompt_seconds(requests.prompts, spec.costs.prefill).tolist(),
        first=[NEVER] * count,
        last=[NEVER] * count,
        found=[NONE] * count,
    )


def serve(times: list[float], jobs: Jobs, spec: Spec, replicas: int, kind: type[Policy], seed: int) -> Served:
    """Play the requests through; their times are in `jobs` afterwards.

    Events of a replica that has changed since they were noted are passed over.
    """
    view = View([0] * replicas)
    cluster = [Replica(spec, jobs, index, view.holders, view.announced) for index in range(replicas)]
    policy = kind(view, seed)
    events: list[tuple[float, int, int]] = []  # time, replica, the number of its change that noted it
    changes = [0] * len(cluster)
    chosen: list[int] = []
    adapters = jobs.adapters

    def changed(index: int) -> None:
        replica = cluster[index]
        view.loads[index] = replica.load
        changes[index] += 1
        at = replica.next_event()
        if at < NEVER:
            heappush(events, (at, index, changes[index]))

    def happen_until(now: float) -> None:
        while events and events[0][0] <= now:
            at, index, change = heappop(events)
            if change == changes[index]:
                cluster[index].happen(at)
                changed(index)

    for request, now in enumerate(times):
        happen_until(now)
        index = policy.choose(adapters[request])
        chosen.append(index)
        cluster[index].give(request, now)
        changed(index)
    happen_until(NEVER)
    return Served(np.array(chosen), [replica.busy for replica in cluster])
