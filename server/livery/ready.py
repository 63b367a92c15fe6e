"""Whether a server is ready, asked from beside it, as a container's health check does: `python -m livery.ready`.

Such a check can't know by which flags, variables or file the server was told where to listen: the server writes that
down (--address-file). Nothing but the standard library is imported here: a check comes every few seconds, and the
command line's imports would take one of a core each time.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

VARIABLE = "LIVERY_ADDRESS_FILE"
TIMEOUT_S = 4.0  # of a check, which Docker gives 5 s
UNIX = "unix:"


class NotReady(Exception):
    """Nobody answers that it is ready; the message says where that was asked, and what came back."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens: scheme, host and port, or a Unix socket at `uds`, on which `url` tells the scheme."""

    url: str
    uds: str | None = None

    @classmethod
    def parse(cls, url: str) -> Address:
        """From a URL, or unix:PATH."""
        return cls("http://localhost", url.removeprefix(UNIX)) if url.startswith(UNIX) else cls(url)

    @classmethod
    def read(cls, file: Path) -> Address:
        """As a server wrote it. Raises NotReady."""
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            return cls(str(found["url"]), found["uds"])
        except FileNotFoundError:
            raise NotReady(f"no server runs that was told to write where it listens to {file}") from None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise NotReady(f"{file} isn't what a server writes there: {error}") from None

    def write(self, file: Path) -> None:
        """In one step, so that nobody reads half of it. Raises OSError."""
        staged = file.with_name(f".{file.name}.{os.getpid()}")
        staged.write_text(json.dumps(asdict(self)), encoding="utf-8")
        staged.replace(file)

    def __str__(self) -> str:
        return f"{UNIX}{self.uds}" if self.uds else self.url


def check(address: Address) -> None:
    """Ask /ready, past any proxy. Raises NotReady.

    A certificate isn't verified: it is of the name that clients use, not of this machine, and nothing secret is sent.
    """
    try:
        parts = urlsplit(address.url)
        with _connect(address, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)) as plain:
            connection = http.client.HTTPConnection("localhost", timeout=TIMEOUT_S)
            connection.sock = _tls().wrap_socket(plain) if parts.scheme == "https" else plain
            connection.request("GET", f"{parts.path.rstrip('/')}/ready")
            answer = connection.getresponse()
            status, body = answer.status, answer.read(4096).decode(errors="replace")
            connection.close()
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise NotReady(f"no answer from {address} ({error or type(error).__name__})") from None
    if status != 200:
        raise NotReady(f"{address} answers /ready with {status}: {' '.join(body.split())}")


def _connect(address: Address, host: str, port: int) -> socket.socket:
    if address.uds is None:
        return socket.create_connection((host, port), TIMEOUT_S)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made.settimeout(TIMEOUT_S)
    try:
        made.connect(address.uds)
    except OSError:
        made.close()
        raise
    return made


def _tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def main() -> int:
    """The exit status: 0 where the server is ready, else 1 after a line that says why."""
    file = os.environ.get(VARIABLE)
    try:
        if not file:
            raise NotReady(f"{VARIABLE} is not set: give it the file that the server has as its --address-file")
        check(Address.read(Path(file)))
    except NotReady as why:
        print(why, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
