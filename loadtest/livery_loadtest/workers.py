"""A script sent by processes of their own, one or several, that begin together; what they did, as one Run.

The process that measures sends nothing itself: it shows progress, samples the server and changes what it has, and
none of that may hold a request back.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from array import array
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from livery_loadtest.drive import LOOK_S, Glance, Observer, conversations, look_away
from livery_loadtest.frames import (
    Batch,
    Begin,
    Ended,
    Look,
    Ready,
    Stop,
    ToSender,
    Unusable,
    Work,
    as_record,
    frame,
    read_news,
)
from livery_loadtest.gaps import Gaps
from livery_loadtest.health import judge
from livery_loadtest.meanwhile import Meanwhile
from livery_loadtest.options import Options
from livery_loadtest.record import Record, Run
from livery_loadtest.script import Planned, Script
from livery_loadtest.stopping import stopping
from livery_loadtest.target import Target, TargetUnusable
from livery_loadtest.watch import Watch

LEAD_S = 0.2  # from the order to begin to the beginning
STOP_S = 10.0  # what a process that was told to stop gets for telling what it did
SENDER = (sys.executable, "-m", "livery_loadtest.sender")


class ClientFailed(Exception):
    """A process that should have sent ended before it began; the message has its exit status."""


@dataclass(slots=True)
class _Sender:
    """A process that sends, and what came from it."""

    process: asyncio.subprocess.Process
    glance: Glance = field(default_factory=lambda: Glance(0.0, 0, 0, 0, 0, 0))
    records: list[Record] = field(default_factory=list)
    ended: Ended | None = None

    def tell(self, message: ToSender) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(frame(message))

    async def make_ready(self, work: Work) -> None:
        """Hand over the work. Raises ClientFailed."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.tell(work)
            await self.process.stdin.drain()
            assert isinstance(await read_news(self.process.stdout), Ready)
        except (asyncio.IncompleteReadError, ConnectionError):
            status = await self.process.wait()
            raise ClientFailed(f"a client process ended with status {status} before it began") from None

    async def listen(self, requests: Sequence[Planned]) -> None:
        """Take what it tells, to its end. Raises TargetUnusable."""
        assert self.process.stdout is not None
        with contextlib.suppress(asyncio.IncompleteReadError):
            while self.ended is None:
                news = await read_news(self.process.stdout)
                if isinstance(news, Look):
                    self.glance = news.glance
                elif isinstance(news, Batch):
                    self.records += [as_record(row, requests) for row in news.rows]
                elif isinstance(news, Ended):
                    self.ended = news
                elif isinstance(news, Unusable):
                    raise TargetUnusable(news.message)


async def measure(
    script: Script,
    target: Target,
    options: Options,
    *,
    processes: int = 1,
    observer: Observer = look_away,
    sample_s: float = 0.0,
    allow_hooks: bool = False,
    stop: asyncio.Event | None = None,
) -> Run:
    """Send a whole script from `processes` processes, or fewer where there is less to share out.

    Meanwhile the server's metrics are sampled every `sample_s` seconds (0: not), and what the script changes is
    changed; its hooks run where they are allowed. `stop`, or without one SIGINT and SIGTERM, ends the run early; it is
    then what had ended by then. Raises TargetUnusable and ClientFailed.
    """
    parts = share_out(script, options, processes)
    async with contextlib.AsyncExitStack() as held:
        stop = stop or held.enter_context(stopping())
        senders = await held.enter_async_context(_senders(0 if stop.is_set() else len(parts)))
        if not await _all_ready(senders, [Work(requests, target, own) for requests, own in parts], stop):
            health = judge([], [])
            return Run(target.name, options.repeat, time.perf_counter(), 0.0, (), health, interrupted=True)
        begin = time.perf_counter() + LEAD_S
        for sender in senders:
            sender.tell(Begin(begin))
        watch = Watch(target, sample_s, begin)
        meanwhile = Meanwhile(script, target, begin, allow_hooks=allow_hooks)
        beside = [asyncio.ensure_future(watch.run()), asyncio.ensure_future(meanwhile.run())]
        try:
            interrupted = await _collect(senders, script.requests, observer, begin, stop)
        finally:
            watch.end()
            meanwhile.end()
            await asyncio.gather(*beside)
    told = [sender.ended for sender in senders if sender.ended is not None]
    records = sorted((record for sender in senders for record in sender.records), key=_index)
    health = judge([ended.vitals() for ended in told], records)
    lost = len(senders) - len(told)
    if lost:
        reason = f"{lost} of {len(senders)} client processes ended midway: what they sent is lost"
        health = replace(health, processes=len(senders), reasons=(*health.reasons, reason))
    return Run(
        target=target.name,
        repeat=options.repeat,
        started=begin,
        seconds=max((ended.started + ended.seconds for ended in told), default=time.perf_counter()) - begin,
        records=records,
        health=health,
        samples=watch.samples,
        loads=meanwhile.loads,
        hooked=meanwhile.hooked,
        interrupted=interrupted,
        gaps=_merged(told),
        unsampled="" if watch.samples else watch.trouble,
    )


def share_out(script: Script, options: Options, processes: int) -> list[tuple[list[Planned], Options]]:
    """What each process sends, and how: whole conversations in turn, and its share of the streams."""
    dealt = list(conversations(script))
    count = max(1, min(processes, divisible(script, options)))
    parts = []
    for part in range(count):
        requests = [planned for turns in dealt[part::count] for planned in turns]
        streams = len(range(part, options.streams, count))
        parts.append((requests, replace(options, streams=streams)))
    return parts


def divisible(script: Script, options: Options) -> int:
    """Among how many processes a script can be shared out: by conversations, and by streams where there are any."""
    chats = sum(planned.follows is None for planned in script.requests)
    return min(chats, options.streams or chats)


async def _all_ready(senders: Sequence[_Sender], work: Sequence[Work], stop: asyncio.Event) -> bool:
    """Hand over the work; whether all have it, and not: that was stopped before. Raises ClientFailed."""
    readying = asyncio.gather(*(sender.make_ready(own) for sender, own in zip(senders, work, strict=False)))
    stopped = asyncio.ensure_future(stop.wait())
    first: set[asyncio.Future[Any]] = {readying, stopped}
    try:
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if readying.done():
            readying.result()
        return not stop.is_set()
    finally:
        readying.cancel()
        stopped.cancel()


async def _collect(
    senders: Sequence[_Sender],
    requests: Sequence[Planned],
    observer: Observer,
    begin: float,
    stop: asyncio.Event,
) -> bool:
    """Listen to all of them to their ends; whether that was interrupted."""
    listening = asyncio.ensure_future(_listen(senders, requests))
    looking = asyncio.ensure_future(_look(senders, observer, begin))
    stopped = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({listening, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not listening.done():
            for sender in senders:
                sender.tell(Stop())
            await asyncio.wait({listening}, timeout=STOP_S)
        if not listening.done():
            return True
        listening.result()
        return any(sender.ended is not None and sender.ended.interrupted for sender in senders)
    finally:
        for task in (listening, looking, stopped):
            task.cancel()
        observer(_together(senders, begin))


async def _listen(senders: Sequence[_Sender], requests: Sequence[Planned]) -> None:
    await asyncio.gather(*(sender.listen(requests) for sender in senders))


async def _look(senders: Sequence[_Sender], observer: Observer, begin: float) -> None:
    while True:
        await asyncio.sleep(LOOK_S)
        observer(_together(senders, begin))


def _together(senders: Sequence[_Sender], begin: float) -> Glance:
    """The latest glance of all of them, added up."""
    looks = [sender.glance for sender in senders]
    return Glance(
        at=max(0.0, time.perf_counter() - begin),
        sent=sum(look.sent for look in looks),
        running=sum(look.running for look in looks),
        done=sum(look.done for look in looks),
        failed=sum(look.failed for look in looks),
        tokens=sum(look.tokens for look in looks),
        ttft_s=tuple(ttft for look in looks for ttft in look.ttft_s),
    )


@contextlib.asynccontextmanager
async def _senders(count: int) -> AsyncIterator[list[_Sender]]:
    """Processes that wait for work, in sessions of their own, so that Ctrl-C reaches only this process."""
    senders: list[_Sender] = []
    pipe = asyncio.subprocess.PIPE
    try:
        for _ in range(count):
            process = await asyncio.create_subprocess_exec(*SENDER, stdin=pipe, stdout=pipe, start_new_session=True)
            senders.append(_Sender(process))
        yield senders
    finally:
        for sender in senders:
            # not Process.kill(): it looks first whether the child has ended, and takes its status from the event loop,
            # which then warns of an unknown child
            if sender.process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(sender.process.pid, signal.SIGKILL)
        await asyncio.gather(*(sender.process.wait() for sender in senders))


def _merged(told: Sequence[Ended]) -> Gaps | None:
    gaps = None
    for ended in told:
        if ended.gaps is not None:
            part = Gaps(array("q", ended.gaps))
            if gaps is None:
                gaps = part
            else:
                gaps.merge(part)
    return gaps


def _index(record: Record) -> int:
    return record.planned.index
