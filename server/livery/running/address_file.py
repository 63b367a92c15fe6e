"""A server writes down where it listens, for whoever watches it beside it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from livery.listening import Listener
from livery.ready import Address, NotReady

log = logging.getLogger("livery.serve")


@contextmanager
def told_in(file: Path | None, listener: Listener) -> Iterator[None]:
    """Around a server: its address is in this file meanwhile, for `livery ready`.

    Where that can't be written it is a warning: an image names one for all, and who runs it may have allowed no file.
    """
    if file is None:
        yield
        return
    if listener.uds is not None:
        address = Address(f"{'https' if listener.tls else 'http'}://localhost", str(listener.uds.absolute()))
    else:
        address = Address(listener.url)
    try:
        address.write(file)
    except OSError as error:
        log.warning("--address-file %s can't be written (%s): `livery ready` can't find this server", file, error)
    try:
        yield
    finally:
        with suppress(NotReady, OSError):
            if Address.read(file) == address:  # else it is of a server that took this one's place
                file.unlink()
