"""A script sent from the test's own process: what the load test does with several, without them."""

from __future__ import annotations

import asyncio

from livery_loadtest.drive import Observer, drive_part, look_away
from livery_loadtest.health import judge
from livery_loadtest.options import Options
from livery_loadtest.record import Run
from livery_loadtest.script import Script
from livery_loadtest.target import Target


async def drive(
    script: Script,
    target: Target,
    options: Options,
    observer: Observer = look_away,
    *,
    stop: asyncio.Event | None = None,
    begin: float | None = None,
) -> Run:
    """As `drive_part`, and its run judged."""
    driven = await drive_part(script, target, options, observer, stop=stop, begin=begin)
    records = sorted(driven.records, key=lambda record: record.planned.index)
    return Run(
        target=target.name,
        repeat=options.repeat,
        started=driven.started,
        seconds=driven.seconds,
        records=records,
        health=judge([driven.vitals], records),
        interrupted=driven.interrupted,
        gaps=driven.gaps,
    )
