"""One of the processes that send: `python -m livery_loadtest.sender`, with orders on standard input.

It does nothing else while it measures, and tells its records when all is over. It ends when its orders do.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import signal
import sys
from itertools import islice

from livery_loadtest.drive import Driven, drive_part
from livery_loadtest.frames import (
    Batch,
    Begin,
    Ended,
    FromSender,
    Look,
    Ready,
    Stop,
    Unusable,
    Work,
    as_row,
    frame,
    read_order,
)
from livery_loadtest.precise import new_loop
from livery_loadtest.script import Script
from livery_loadtest.target import TargetUnusable

ROWS = 512  # records in one message
ORDER_BUFFER = 1 << 24


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever gives the orders
    news = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what is printed is no message
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # a system may allow less than it says
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    gone = (asyncio.IncompleteReadError, ConnectionError)  # whoever gave the orders is
    with asyncio.Runner(loop_factory=new_loop) as runner, contextlib.suppress(*gone):
        runner.run(_send(news))


async def _send(news: int) -> None:
    loop = asyncio.get_running_loop()
    orders = asyncio.StreamReader(limit=ORDER_BUFFER)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, os.fdopen(news, "wb"))
    transport.set_write_buffer_limits(0)  # what is drained has gone out, all of it
    writer = asyncio.StreamWriter(transport, protocol, None, loop)

    def tell(message: FromSender) -> None:
        writer.write(frame(message))

    work = await read_order(orders)
    assert isinstance(work, Work)
    tell(Ready())
    begin = await read_order(orders)
    if not isinstance(begin, Begin):  # stopped before it began
        return
    gc.collect()
    gc.freeze()  # what is there stays: no collection need look at the script again
    stop = asyncio.Event()
    obeying = asyncio.ensure_future(_obey(orders, stop))
    try:
        driven = await drive_part(
            Script(work.requests),
            work.target,
            work.options,
            lambda glance: tell(Look(glance)),
            stop=stop,
            begin=begin.at,
        )
    except TargetUnusable as failure:
        tell(Unusable(str(failure)))
    else:
        records = iter(driven.records)
        while rows := [as_row(record) for record in islice(records, ROWS)]:
            tell(Batch(rows))
            await writer.drain()
        tell(_ended(driven))
    await writer.drain()
    obeying.cancel()
    transport.close()


async def _obey(orders: asyncio.StreamReader, stop: asyncio.Event) -> None:
    """Stop when told to, or when there is nobody left to tell."""
    with contextlib.suppress(asyncio.IncompleteReadError):
        while not isinstance(await read_order(orders), Stop):
            pass
    stop.set()


def _ended(driven: Driven) -> Ended:
    vitals = driven.vitals
    return Ended(
        driven.started,
        driven.seconds,
        vitals.cpu_s,
        vitals.wall_s,
        vitals.lags.tobytes(),
        vitals.delays.tobytes(),
        vitals.reasons,
        driven.interrupted,
        None if driven.gaps is None else driven.gaps.counts.tobytes(),
    )


if __name__ == "__main__":
    main()
