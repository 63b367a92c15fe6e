"""How long others wait meanwhile: one ping after the other on a connection of its own."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from livery_loadtest.lean import RECEIVED


@contextmanager
def pinged(url: str) -> Iterator[list[float]]:
    """Seconds that each ping took as long as this lasts; one at least."""
    address, waits, done = urlsplit(url), list[float](), threading.Event()
    ping = f"GET /ping HTTP/1.1\r\nhost: {address.netloc}\r\n\r\n".encode()

    def pinging() -> None:
        with socket.create_connection((address.hostname, address.port)) as connection:
            while not done.is_set() or not waits:
                sent = time.perf_counter()
                connection.sendall(ping)
                connection.recv(RECEIVED)
                waits.append(time.perf_counter() - sent)

    thread = threading.Thread(target=pinging)
    thread.start()
    try:
        yield waits
    finally:
        done.set()
        thread.join()
