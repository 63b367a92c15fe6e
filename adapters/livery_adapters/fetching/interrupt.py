"""Ending a fetch from outside: its thread looks at every piece, and writes nothing once it is told to end."""

from __future__ import annotations

import threading
from typing import BinaryIO, Protocol

from livery_adapters.incoming import read_piece


class Interrupted(Exception):
    """Whoever asked for the fetch doesn't want it any more."""


class Sink(Protocol):
    """What a fetch writes to; `Incoming` is one and says what each method raises."""

    def check_size(self, name: str, size: int) -> None: ...

    def begin(self, name: str, size: int | None = None) -> None: ...

    def write(self, name: str, chunk: bytes | bytearray | memoryview) -> None: ...

    def read(self, name: str, stream: BinaryIO, size: int | None = None) -> None: ...


class Interrupt:
    """Ends a fetch. `set` from any thread; after it returns, the fetch touches its sink no more."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._set = threading.Event()

    def set(self) -> None:
        with self.lock:
            self._set.set()

    def check(self) -> None:
        """Raises Interrupted."""
        if self._set.is_set():
            raise Interrupted

    def pause(self, seconds: float) -> None:
        """Sleep, not longer than until it is set. Raises Interrupted."""
        self._set.wait(seconds)
        self.check()


class InterruptibleSink:
    """A sink up to the moment of an interrupt; then every method raises Interrupted.

    Whoever set the interrupt may close the sink at once: its descriptors may be other files by the time a thread that
    is slow to notice would write to them.
    """

    def __init__(self, sink: Sink, interrupt: Interrupt) -> None:
        self._sink = sink
        self._interrupt = interrupt

    def check_size(self, name: str, size: int) -> None:
        with self._interrupt.lock:
            self._interrupt.check()
            self._sink.check_size(name, size)

    def begin(self, name: str, size: int | None = None) -> None:
        with self._interrupt.lock:
            self._interrupt.check()
            self._sink.begin(name, size)

    def write(self, name: str, chunk: bytes | bytearray | memoryview) -> None:
        with self._interrupt.lock:
            self._interrupt.check()
            self._sink.write(name, chunk)

    def read(self, name: str, stream: BinaryIO, size: int | None = None) -> None:
        """In pieces, so that an interrupt waits for one of them at most."""
        self.begin(name, size)
        while piece := read_piece(name, stream):
            self.write(name, piece)
