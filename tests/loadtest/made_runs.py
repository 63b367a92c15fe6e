"""Runs made up with a seed: what a server with known delays would have been recorded as doing."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from livery_loadtest.record import Health, Load, Record, Run, Sample
from livery_loadtest.script import Planned
from livery_loadtest.spec import Workload, parse_workload

GOOD = Health(1, 0.31, (0.1, 0.8, 2.0), (0.2, 1.1, 3.0))
BUSY = Health(1, 0.97, (0.4, 14.0, 31.0), (0.3, 2.0, 9.0), ("the client used 97 % of a core; give it --processes 2",))


def workload(**changes: object) -> Workload:
    """An open loop with an SLO, two tenants with weights, and what is changed of it."""
    fields = {
        "name": "made",
        "arrivals": {"kind": "poisson", "rate": 20},
        "requests": 200,
        "slo": {"ttft_ms": 200, "tpot_ms": 30},
        "tenants": [
            {"name": "gold", "key_env": "GOLD_KEY", "weight": 2},
            {"name": "free", "key_env": "FREE_KEY", "weight": 1},
        ],
        **changes,
    }
    return parse_workload(str(fields).replace("None", "null"))


@dataclass(frozen=True)
class Making:
    """A server as a few numbers: TTFT lognormal about `ttft_s`, gaps about `gap_s`, requests at `rate` a second."""

    requests: int = 200
    rate: float = 20.0
    ttft_s: float = 0.08
    gap_s: float = 0.012
    tokens: int = 16
    adapters: int = 6
    tenants: Sequence[str] = ("gold", "free")
    failing: float = 0.0
    cold: int = 0
    leaving: float = 0.0
    started: float = 1000.0
    seed: int = 0


def made_run(making: Making, target: str = "ours", repeat: int = 0, health: Health = GOOD) -> Run:
    """One repeat; what is drawn differs from repeat to repeat. Whatever the seed, the requests are the same."""
    plan, draw = (np.random.default_rng([seed, repeat]) for seed in (0, making.seed))
    weights = 1 / np.arange(1, making.adapters + 1)
    (times, models), _ = (
        (
            np.cumsum(some.exponential(1 / making.rate, making.requests)),
            some.choice(making.adapters, making.requests, p=weights / weights.sum()),
        )
        for some in (plan, draw)
    )
    records = []
    for index in range(making.requests):
        tenant = making.tenants[index % len(making.tenants)] if making.tenants else None
        cold = index >= making.requests - making.cold
        leaves = bool(draw.random() < making.leaving)
        planned = Planned(
            index,
            float(times[index]),
            f"cold-{index}" if cold else f"adapter-{models[index]}",
            "text",
            making.tokens,
            tenant,
            leave_after=4 if leaves else None,
            cold=cold,
        )
        records.append(_record(planned, making, draw, leaves))
    end = max(record.finished for record in records) - making.started
    samples = [
        Sample(float(at), {"process_resident_memory_bytes": 3e8 + 1e5 * at, "process_open_fds": 40.0})
        for at in np.linspace(0, end, 40)
    ]
    loads = [Load(float(at), f"adapter-{i}", 0.2) for i, at in enumerate(np.linspace(1, end - 1, 4))]
    return Run(target, repeat, making.started, end, records, health, samples, loads)


def _record(planned: Planned, making: Making, draw: np.random.Generator, leaves: bool) -> Record:
    assert planned.at is not None
    record = Record(planned, making.started + planned.at)
    record.sent = record.intended + float(draw.exponential(0.0005))
    record.connected = record.sent + 0.0002
    if draw.random() < making.failing:
        record.finished, record.status = record.sent + 0.01, 503
        record.error, record.error_message, record.retry_after_s = "http 503", "the server <is> full", 2.0
        return record
    first = record.sent + making.ttft_s * float(draw.lognormal(0, 0.5)) * (3 if planned.cold else 1)
    count = 4 if leaves else planned.max_tokens
    gaps = making.gap_s * draw.lognormal(0, 0.3, count - 1)
    record.events = array("d", [first, *(first + np.cumsum(gaps))])
    record.finished, record.status, record.left = record.events[-1] + 0.0005, 200, leaves
    record.prompt_tokens, record.cached_tokens = 64, 16
    if not leaves:
        record.output_tokens, record.finish_reason = planned.max_tokens, "length"
    record.text, record.model_told = "words", planned.model
    return record
