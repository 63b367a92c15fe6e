"""Device memory for adapters: one buffer of pages, given out by residency, filled from images piece by piece.

On CUDA copies run on a stream of their own, from pinned memory, each piece followed by an event; a forward waits for
the pieces of a projection group when it comes to that group, so a cold adapter's copy overlaps its own prefill. Pages
that were another's before are written only when the steps submitted by then are done with them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from livery.engine.images import AdapterImage
from livery.engine.lora.bank import Arrival, PackedAdapter, Unit
from livery.engine.pages import PAGE_BYTES, Run


class Arena:
    """Pages [0, num_pages) of one device; plain copies here, without streams. For one thread but for `fence`."""

    def __init__(self, nbytes: int, device: torch.device) -> None:
        self.buffer = torch.empty(nbytes // PAGE_BYTES * PAGE_BYTES, dtype=torch.uint8, device=device)

    def fence(self) -> torch.cuda.Event | None:
        """What the steps submitted so far are, for `place` to wait for. Called by who submits steps."""
        return None

    def place(self, image: AdapterImage, runs: Sequence[Run], after: torch.cuda.Event | None) -> PackedAdapter:
        """Bring an image's pieces to their pages; the result may be used at once.

        `after` is the fence taken when these pages were given out.
        """
        starts = [run.first * PAGE_BYTES for run in runs]
        packed = image.over(self.buffer, starts)
        targets = [self.buffer[start : start + piece.nbytes] for start, piece in zip(starts, image.pieces, strict=True)]
        return replace(packed, arrival=self._copy(image, targets, after))

    def _copy(self, image: AdapterImage, targets: Sequence[Tensor], after: torch.cuda.Event | None) -> Arrival | None:
        """Copy each piece to its target; what a forward is to wait for, if it is to wait."""
        del after
        for target, piece in zip(targets, image.pieces, strict=True):
            target.copy_(image.memory[piece.start : piece.start + piece.nbytes])
        return None


class CudaArena(Arena):
    """The arena of a CUDA device."""

    def __init__(self, nbytes: int, device: torch.device) -> None:
        super().__init__(nbytes, device)
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._under_way: deque[tuple[torch.cuda.Event, AdapterImage]] = deque()  # images stay until they are copied

    def fence(self) -> torch.cuda.Event | None:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.buffer.device))
        return event

    def _copy(self, image: AdapterImage, targets: Sequence[Tensor], after: torch.cuda.Event | None) -> Arrival | None:
        while self._under_way and _passed(self._under_way[0][0]):
            self._under_way.popleft()
        events = []
        with torch.cuda.stream(self._stream):
            if after is not None:
                self._stream.wait_event(after)
            for target, piece in zip(targets, image.pieces, strict=True):
                target.copy_(image.memory[piece.start : piece.start + piece.nbytes], non_blocking=True)
                event = torch.cuda.Event()  # type: ignore[no-untyped-call]
                event.record(self._stream)
                events.append(event)
        if not events:
            return None
        self._under_way.append((events[-1], image))
        return CudaArrival(events, image, self.buffer.device)


class CudaArrival:
    """Pieces on their way to a CUDA device, in order."""

    def __init__(self, events: Sequence[torch.cuda.Event], image: AdapterImage, device: torch.device) -> None:
        self._events = events
        self._device = device
        self._last_piece = image.last_piece

    def done(self) -> bool:
        return _passed(self._events[-1])

    def wait(self, unit: Unit) -> None:
        """Let the device's current stream wait; the host goes on."""
        if (piece := self._last_piece.get(unit, -1)) >= 0:
            torch.cuda.current_stream(self._device).wait_event(self._events[piece])


def _passed(event: torch.cuda.Event) -> bool:
    return bool(event.query())  # type: ignore[no-untyped-call]


def arena_for(device: torch.device, nbytes: int) -> Arena | None:
    """The arena of a device; None on CPU, where images are computed on as they lie: copies would hold all twice."""
    return CudaArena(nbytes, device) if device.type == "cuda" else None
