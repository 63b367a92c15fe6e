"""Where a process spends its time: its stack, looked at a thousand times a second, by the part it belongs to.

A sample interrupts between two operations of the interpreter, so what a compiled function takes counts for the Python
that called it. Looking costs half a percent, spread evenly; a tracing profiler would charge small functions most.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Mapping
from types import FrameType

INTERVAL_S = 0.001
WAITING = "waiting for sockets"
OTHER = "other"

# The innermost frame that stands here says which part it was: by function or class, else by module, else by package.
PARTS: Mapping[str, str] = {
    "selectors": WAITING,
    "livery.text.Detokenizer": "detokenising",
    "livery.text.Tokenizer.decode": "detokenising",
    "livery.stops": "stop strings",
    "livery.text": "tokenising",
    "livery.prompts": "tokenising",
    "livery.chat_template": "templating",
    "jinja2": "templating",
    "livery.generation": "tokens to text to chunks",
    "livery.service": "admission",
    "livery.served": "admission",
    "livery.sampling": "admission",
    "livery.jobs": "admission",
    "livery.lease": "admission",
    "livery.tenancy": "admission",
    "livery.metrics": "metrics",
    "prometheus_client": "metrics",
    "livery.api.sse": "events and sending them on",
    "livery.api.openai": "events and sending them on",
    "livery.api.chat_shape": "JSON of chunks",
    "livery.api.text_shape": "JSON of chunks",
    "livery.api.shapes": "JSON of chunks",
    "livery.api.responses": "JSON of answers",
    "livery.api.schemas": "reading bodies",
    "livery.api.body": "reading bodies",
    "livery.api.plain_json": "reading bodies",
    "livery.foreign_json": "reading bodies",
    "livery.api.chat_messages": "reading bodies",
    "livery.api.unsupported": "reading bodies",
    "pydantic": "reading bodies",
    "json": "reading bodies",
    "livery.api": "routes and boundary",
    "starlette": "framework",
    "fastapi": "framework",
    "uvicorn": "HTTP protocol",
    "h11": "HTTP protocol",
    "httptools": "HTTP protocol",
    "asyncio.timeouts": "timeouts",
    "asyncio.selector_events": "sockets",
    "asyncio.transports": "sockets",
    "asyncio": "event loop, tasks and queues",
    "uvloop": "event loop, tasks and queues",
    "livery.engine.fake": "the fake engine",
    "livery.engine.client": "the engine's client",
    "zmq": "the engine's client",
    "logging": "log lines",
    "concurrent": "threads",
    "threading": "threads",
}


class Sampler:
    """Counts samples by part between `begin` and `end`. Use in the main thread."""

    def __init__(self) -> None:
        self.samples: Counter[str] = Counter()

    def begin(self) -> None:
        self.samples.clear()
        signal.signal(signal.SIGALRM, self._look)
        signal.setitimer(signal.ITIMER_REAL, INTERVAL_S, INTERVAL_S)

    def end(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _look(self, _number: int, frame: FrameType | None) -> None:
        self.samples[part_of(frame)] += 1


def part_of(frame: FrameType | None) -> str:
    """The part that the innermost known frame belongs to."""
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        name = frame.f_code.co_qualname
        found = PARTS.get(f"{module}.{name}") or PARTS.get(f"{module}.{name.partition('.')[0]}")
        while found is None and module:
            found = PARTS.get(module)
            module = module.rpartition(".")[0]
        if found is not None:
            return found
        frame = frame.f_back
    return OTHER
