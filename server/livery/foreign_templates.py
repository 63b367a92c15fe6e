"""Chat templates that adapters bring, rendered beside this process: one that runs wild costs its own request alone.

    workers = TemplateWorkers()
    template = ForeignTemplate(source, named_tokens, workers, "acme")
    text = await template.apart(lambda: template.render(conversation))     # InvalidMessages where it was stopped
    workers.close()

A rendering has a limit of processor time, of memory and of length, held by the system in a process of its own
(`livery.template_worker`), which is killed when it goes over one and started again. That process never renders another
template, nor this one for another tenant, whose adapter may have the same text: whatever a template leaves behind in it
meets no conversation but its own tenant's. A tenant's renderings of one template wait for each other, so that a slow
one takes one worker, and all that a tenant asks for take half of them.
"""

from __future__ import annotations

import asyncio
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import msgspec

from livery.chat_template import Conversation, InvalidMessages
from livery.template_worker import LENGTH, Order, Rendered

T = TypeVar("T")

# What a worker needs of the environment to find its code and the time zone; nothing else reaches it.
ENVIRONMENT = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "TZ")
KEPT = 32  # idle workers that have rendered, each for a tenant and template of its own: some 12 MB each
REMEDY = "change it with `livery adapters profile`, or shorten the messages"


@dataclass(frozen=True, slots=True)
class RenderLimits:
    """What one rendering may take: seconds of a processor, bytes of address space, characters of text.

    `wall_s` bounds the wait for a worker that gets no processor at all.
    """

    cpu_s: float = 1.0
    memory_bytes: int = 512 << 20
    max_chars: int = 4 << 20
    wall_s: float = 30.0


class TemplateStopped(InvalidMessages):
    """The template itself is at fault: it isn't one, or went over a limit."""

    def __init__(self, message: str) -> None:
        super().__init__(f"this adapter's chat template {message}; {REMEDY}")


class _Task(NamedTuple):
    """What a process renders in its life: one template, for one tenant."""

    tenant: str
    source: str


class TemplateWorkers:
    """Processes that render, each one template for one tenant, and threads that wait for them.

    One that has rendered nothing yet stands by, so that a template's first rendering needn't wait for a start.
    """

    def __init__(self, count: int = 4, limits: RenderLimits | None = None) -> None:
        self.limits = limits or RenderLimits()
        self._each = max(1, count // 2)
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="livery-template")
        self._idle: list[_Worker] = []  # the latest used last
        self._idle_lock = threading.Lock()
        self._turns: weakref.WeakValueDictionary[_Task, asyncio.Lock] = weakref.WeakValueDictionary()
        self._places: weakref.WeakValueDictionary[str, asyncio.Semaphore] = weakref.WeakValueDictionary()
        self._closed = False

    async def run(self, tenant: str, source: str, work: Callable[[], T]) -> T:
        """Run in a thread of these workers, one at a time of the same tenant and template.

        Whoever goes away while it runs waits for its end all the same, or its tenant could take every thread.
        """
        turn = self._turns.setdefault(_Task(tenant, source), asyncio.Lock())
        places = self._places.setdefault(tenant, asyncio.Semaphore(self._each))
        async with turn, places:
            running = asyncio.get_running_loop().run_in_executor(self._threads, work)
            try:
                return await asyncio.shield(running)
            except asyncio.CancelledError:
                if not running.done():
                    await asyncio.wait([running])
                raise

    def render(self, source: str, named_tokens: Mapping[str, str], chat: Conversation, tenant: str = "") -> str:
        """Blocks, within the limits. Raises InvalidMessages."""
        order = Order(source, dict(named_tokens), msgspec.to_builtins(chat), self.limits.max_chars)
        worker = self._worker(_Task(tenant, source))
        try:
            rendered = worker.ask(msgspec.json.encode(order))
        except BaseException:
            worker.kill()
            raise
        finally:
            self._put_back(worker)
        if rendered.fault:
            raise TemplateStopped(rendered.fault)
        if rendered.error:
            raise InvalidMessages(rendered.error, rendered.param or "messages")
        return rendered.text

    def close(self) -> None:
        """End the workers; a rendering under way still ends within its limits."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._idle_lock:
            self._closed = True
            ended, self._idle = self._idle, []
        for worker in ended:
            worker.kill()

    def _worker(self, task: _Task) -> _Worker:
        """A process that has rendered this template for this tenant, or nothing yet."""
        for renders in (task, None):
            while (worker := self._take_idle(renders)) is not None:
                if worker.alive:
                    worker.renders = task
                    return worker
                worker.kill()
        worker = _Worker(self.limits)
        worker.renders = task
        return worker

    def _take_idle(self, renders: _Task | None) -> _Worker | None:
        with self._idle_lock:
            for index in reversed(range(len(self._idle))):
                if self._idle[index].renders == renders:
                    return self._idle.pop(index)
        return None

    def _put_back(self, worker: _Worker) -> None:
        """Keep it for its template while there is room, and have a fresh one stand by."""
        with self._idle_lock:
            fresh = [idle for idle in self._idle if idle.renders is None]
            used = [idle for idle in (*self._idle, worker) if idle.renders is not None and idle.alive]
            used = _kept(used)
            ended = [idle for idle in (*self._idle, worker) if idle not in fresh and idle not in used]
            if self._closed:
                ended, fresh, used = [*self._idle, worker], [], []
            elif not fresh:
                with suppress(OSError):  # no process or descriptor left: the rendering that needs one says so
                    fresh = [_Worker(self.limits)]
            self._idle = [*fresh, *used]
        for idle in ended:
            idle.kill()


def _kept(used: Sequence[_Worker]) -> list[_Worker]:
    """As many as are kept, in their order: of the tenant that has most, the longest unused goes first."""
    kept = list(used)
    while len(kept) > KEPT:
        owners = [worker.renders.tenant if worker.renders else "" for worker in kept]
        kept.pop(owners.index(Counter(owners).most_common(1)[0][0]))
    return kept


class ForeignTemplate:
    """One adapter's template, as a tokenizer renders with it for a tenant. Trying it out is no tenant's."""

    def __init__(
        self, source: str, named_tokens: Mapping[str, str], workers: TemplateWorkers, tenant: str = ""
    ) -> None:
        self.source = source
        self._tenant = tenant
        self._named_tokens = dict(named_tokens)
        self._workers = workers

    def reads(self, variable: str) -> bool:
        """Whether its text has the name of a variable in it: nothing of it is parsed in this process."""
        return re.search(rf"\b{re.escape(variable)}\b", self.source) is not None

    async def apart(self, work: Callable[[], T]) -> T:
        """Work that renders blocks, so it has a thread of the workers', after that of the same tenant and template."""
        return await self._workers.run(self._tenant, self.source, work)

    def render(self, chat: Conversation) -> str:
        """Blocks. Raises InvalidMessages."""
        return self._workers.render(self.source, self._named_tokens, chat, self._tenant)


class _Worker:
    """One process, used by one thread at a time."""

    def __init__(self, limits: RenderLimits) -> None:
        self.renders: _Task | None = None  # the only one it is ever given
        self._limits = limits
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "livery.template_worker", str(limits.memory_bytes), str(limits.cpu_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
            cwd="/",
            start_new_session=True,  # no Ctrl-C arrives there
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()
        for pipe in (self._to, self._from):
            os.set_blocking(pipe, False)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, order: bytes) -> Rendered:
        """Raises InvalidMessages where the worker came to its end or answers what it can't have been asked for."""
        deadline = time.monotonic() + self._limits.wall_s
        try:
            self._send(len(order).to_bytes(LENGTH, "big") + order, deadline)
            size = int.from_bytes(self._receive(LENGTH, deadline), "big")
            if size > 4 * self._limits.max_chars + 4096:
                raise ConnectionError
            return msgspec.msgpack.decode(self._receive(size, deadline), type=Rendered)
        except (OSError, msgspec.DecodeError):
            self.kill()
            raise TemplateStopped(f"was stopped: {self._why()}") from None

    def kill(self) -> None:
        """End it and let go of its pipes; more than once does nothing."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None and not pipe.closed:
                pipe.close()

    def _why(self) -> str:
        if self._process.returncode == -signal.SIGPROF:
            return f"it took over {self._limits.cpu_s:g} s of processor time"
        return "it broke the process that renders it"

    def _send(self, data: bytes, deadline: float) -> None:
        left = memoryview(data)
        while left:
            _wait(self._to, select.POLLOUT, deadline)
            left = left[os.write(self._to, left) :]

    def _receive(self, size: int, deadline: float) -> bytes:
        data = bytearray()
        while len(data) < size:
            _wait(self._from, select.POLLIN, deadline)
            piece = os.read(self._from, min(size - len(data), 1 << 20))
            if not piece:
                raise ConnectionError
            data += piece
        return bytes(data)


def _wait(pipe: int, event: int, deadline: float) -> None:
    """Raises TimeoutError. A poll: descriptors may be beyond what select takes."""
    poll = select.poll()
    poll.register(pipe, event)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise TimeoutError
