"""How many files and sockets a process may have open at once, which the system calls descriptors, and who gets them.

A connection takes one, and so does each adapter version that requests under way run on: its files are held against
deletion (livery.holds).
"""

from __future__ import annotations

import errno
import resource
from contextlib import suppress

RESERVED = 256  # for everything else: files, sockets and pipes of the server's own
MOST_CONNECTIONS = 16384


def raise_limit() -> None:
    """Let this process, and those that it starts, have as many as the system allows without privileges.

    The usual limit is 1024, for the sake of programs that wait by select(2), which knows no higher ones; what does that
    here (livery.grammar_process) is a process of its own with a handful.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # a system may allow less than it says
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def connections(adapters: int) -> int:
    """As many as there may be beside so many adapter versions in use, which get half of what is there at most."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MOST_CONNECTIONS
    room = max(soft - RESERVED, soft // 2)
    return min(MOST_CONNECTIONS, room - min(adapters, room // 2))


def used_up(error: BaseException) -> bool:
    """Whether something failed because this process, or the system, has as many as it may."""
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)
