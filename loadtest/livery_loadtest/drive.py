"""A script on a target: requests sent at their times or by a number of streams, and what became of each.

In an open loop nothing a server does holds a request back: each has its task and its connection. Latencies count from
the intended time (in a closed loop: when the stream was free), so what holds the client back, or keeps it waiting for
a connection, counts too; the client's part is told apart in the run's health.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from livery_loadtest.dialect import NO_FIELDS
from livery_loadtest.gaps import Gaps
from livery_loadtest.health import Pulse, Stopwatch, Vitals
from livery_loadtest.options import Options
from livery_loadtest.reader import Answer
from livery_loadtest.record import Record
from livery_loadtest.script import Planned, Script
from livery_loadtest.target import Target, TargetUnusable
from livery_loadtest.wire import OWN_FAILURES, Failed, Left, Pool

NOT_SENT = "not sent"  # a turn of a conversation whose turn before failed
LOOK_S = 0.5  # between two looks at a run
LATEST = 64  # requests whose first token is shown


@dataclass(frozen=True, slots=True)
class Glance:
    """A look at a run under way, `at` seconds after its start. `tokens` counts events; `ttft_s` are the latest ones."""

    at: float
    sent: int
    running: int
    done: int
    failed: int
    tokens: int
    ttft_s: tuple[float, ...] = ()


Observer = Callable[[Glance], None]


@dataclass(slots=True)
class Driven:
    """What one process did. Records are in the order in which they ended."""

    started: float
    seconds: float
    records: list[Record]
    vitals: Vitals
    gaps: Gaps | None
    interrupted: bool = False


def look_away(_: Glance) -> None:
    """An observer that doesn't."""


async def drive_part(
    script: Script,
    target: Target,
    options: Options,
    observer: Observer = look_away,
    *,
    stop: asyncio.Event | None = None,
    begin: float | None = None,
) -> Driven:
    """Send a script from this process, beginning at `begin` (on time.perf_counter) or now.

    When `stop` is set, or the calling task is cancelled, it is what had ended by then and is marked interrupted.
    Failures of requests are in their records. Raises TargetUnusable where there is no such host, or a key is missing.
    """
    return await _Drive(script, target, options, observer).run(stop or asyncio.Event(), begin)


def conversations(script: Script) -> Iterator[list[Planned]]:
    """The requests by conversation: those that follow each other stand together."""
    turns: list[Planned] = []
    for planned in script.requests:
        if turns and planned.follows is None:
            yield turns
            turns = []
        turns.append(planned)
    if turns:
        yield turns


class _Drive:
    def __init__(self, script: Script, target: Target, options: Options, observer: Observer) -> None:
        self._script, self._target, self._options, self._observer = script, target, options, observer
        self._keys = options.keys(target)
        self._pool = Pool(target.url, options.silence_s, options.connect_s, options.whole_s)
        self._vitals = Vitals()
        self._gaps = Gaps() if options.fold else None
        self._records: list[Record] = []
        self._running: dict[int, Record] = {}
        self._sent = self._failed = self._tokens = 0
        self._latest: deque[float] = deque(maxlen=LATEST)

    async def run(self, stop: asyncio.Event, begin: float | None) -> Driven:
        try:
            await self._pool.open()
        except Failed as failure:
            raise TargetUnusable(f"target {self._target.name}: {failure}; is its name right?") from failure
        self._begin = time.perf_counter() if begin is None else begin
        await _until(self._begin)
        stopwatch, pulse = Stopwatch(), Pulse(self._vitals.lags)
        looking = asyncio.ensure_future(self._look())
        try:
            interrupted = await self._work(stop)
        finally:
            pulse.stop()
            stopwatch.read_into(self._vitals)
            looking.cancel()
            self._pool.close()
        self._observer(self._glance())
        self._blame_the_client()
        ended = time.perf_counter() if interrupted else max((one.finished for one in self._records), default=0.0)
        seconds = max(ended - self._begin, 0.0)
        return Driven(self._begin, seconds, self._records, self._vitals, self._gaps, interrupted)

    async def _work(self, stop: asyncio.Event) -> bool:
        """Send everything; whether that was interrupted."""
        work = asyncio.ensure_future(self._closed() if self._options.streams else self._open())
        stopped = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()  # what is there is the answer to Ctrl-C
        stopped.cancel()
        interrupted = not work.done()
        work.cancel()
        await asyncio.wait({work})
        if not work.cancelled():
            work.result()  # a defect of this client is no finding about a server
        return interrupted

    async def _open(self) -> None:
        async with asyncio.TaskGroup() as group:
            for turns in conversations(self._script):
                planned = turns[0]
                assert planned.at is not None, f"request {planned.index} has no time: it is meant for a closed loop"
                intended = self._begin + planned.at
                request = self._worded(planned, [])  # before its time: wording takes some, too
                await _until(intended)
                group.create_task(self._converse(turns, intended, request))

    async def _closed(self) -> None:
        left = conversations(self._script)

        async def stream() -> None:
            for turns in left:
                request = self._worded(turns[0], [])
                await self._converse(turns, time.perf_counter(), request)

        async with asyncio.TaskGroup() as group:
            for _ in range(self._options.streams):
                group.create_task(stream())

    async def _converse(self, turns: list[Planned], intended: float, request: bytes) -> None:
        """One request, or all turns of a conversation, each `pause_s` after the answer before it."""
        said: list[tuple[str, str]] = []
        keeps_text = self._options.keep_text or len(turns) > 1
        for at, planned in enumerate(turns):
            record = await self._ask(planned, intended, request, keeps_text)
            said.append((planned.text, record.text))
            self._keep(record)
            left = turns[at + 1 :]
            if record.error is not None:
                message = f"turn {at + 1} of this conversation failed: {record.error}"
                for unsent in left:
                    self._keep(Record(unsent, record.finished, error=NOT_SENT, error_message=message))
                return
            if left:
                intended = record.finished + left[0].pause_s
                if self._over(intended):
                    return
                request = self._worded(left[0], said)
                await _until(intended)

    async def _ask(self, planned: Planned, intended: float, request: bytes, keeps_text: bool) -> Record:
        """Send one request and read its answer to the end. A failure is in the record."""
        record = Record(planned, intended)
        echoes = self._target.echoes and planned.model not in self._target.fields
        keeps_text = keeps_text or planned.json_schema is not None  # whether it is JSON is told later
        answer = Answer(record, echoes=echoes, keep_text=keeps_text)
        self._running[planned.index] = record
        self._sent += 1
        begun = time.perf_counter()
        try:
            await self._pool.exchange(request, answer)
        except Failed as failure:
            record.error, record.error_message = failure.kind, str(failure)
            record.finished = time.perf_counter()
        except Left:
            pass
        del self._running[planned.index]
        # Waiting for a connection is the server's; what lies before it and after it is the client's.
        waited = begun if record.retried else record.connected or begun  # what was sent twice had a connection at once
        self._vitals.delays.append(begun - intended + (record.sent - waited if record.sent else 0.0))
        return record

    def _keep(self, record: Record) -> None:
        """Take an ended record, with as little of it as the options ask for."""
        if record.error is not None:
            self._failed += 1
        elif record.events:
            self._latest.append(record.events[0] - record.intended)
        self._tokens += len(record.events)
        if not self._options.keep_text and record.planned.json_schema is None:
            record.text = ""
        if self._gaps is not None:
            self._gaps.add(record.events)
            record.counted = len(record.events)
            record.events = array("d", [*record.events[:1], *record.events[1:][-1:]])
            record.planned = replace(record.planned, text="")
        self._records.append(record)

    def _worded(self, planned: Planned, said: list[tuple[str, str]]) -> bytes:
        fields = self._target.fields.get(planned.model, NO_FIELDS)
        dialect = self._options.dialect
        return self._pool.post(dialect.path, dialect.body(planned, said, fields), self._keys[planned.tenant])

    def _over(self, intended: float) -> bool:
        """Whether an open loop's time is over then."""
        options = self._options
        return not options.streams and 0 < options.duration_s <= intended - self._begin

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            self._observer(self._glance())

    def _glance(self) -> Glance:
        running = self._running.values()
        return Glance(
            at=time.perf_counter() - self._begin,
            sent=self._sent,
            running=len(running),
            done=len(self._records),
            failed=self._failed,
            tokens=self._tokens + sum(len(record.events) for record in running),
            ttft_s=tuple(self._latest),
        )

    def _blame_the_client(self) -> None:
        """Requests that failed for want of something of the client's own make the run no measurement."""
        kinds = {record.error for record in self._records if record.error in OWN_FAILURES}
        self._vitals.reasons = tuple(f"requests failed: {kind}" for kind in sorted(filter(None, kinds)))


async def _until(moment: float) -> None:
    """Wait for a moment of time.perf_counter; a moment that is past isn't waited for."""
    while (left := moment - time.perf_counter()) > 0:
        await asyncio.sleep(left)
