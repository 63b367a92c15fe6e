"""SHA-256 of something that comes in pieces, computed beside whoever brings them."""

from __future__ import annotations

import hashlib
import queue
import threading

from livery_adapters.background import step_back

LARGE = 1 << 18  # bytes of a piece from which on a thread of its own pays
_AHEAD = 8  # pieces that may wait to be hashed: the memory that a slow processor costs


class PieceHash:
    """Pieces are hashed in the order of `update`. Large ones by a thread: hashlib lets go of the interpreter meanwhile.

    Use from one thread at a time, and `close` it at the end: until then its thread waits for more.
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._pieces: queue.Queue[bytes | None] = queue.Queue(_AHEAD)
        self._thread: threading.Thread | None = None

    def update(self, piece: bytes | bytearray | memoryview) -> None:
        """Take the next piece; waits while too many are to be hashed. It may be changed once this returns."""
        if self._thread is None and len(piece) < LARGE:
            self._hash.update(piece)
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="livery-hash", daemon=True)
            self._thread.start()
        self._pieces.put(bytes(piece))  # no copy of what can't change

    def hexdigest(self) -> str:
        """Of all pieces so far; waits until they are hashed, and ends the thread."""
        self.close()
        return self._hash.hexdigest()

    def close(self) -> None:
        """End the thread. Does nothing the second time."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._pieces.put(None)
            thread.join()

    def _run(self) -> None:
        step_back()
        while (piece := self._pieces.get()) is not None:
            self._hash.update(piece)
