"""A process that may open no more than a few files."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def only(more: int) -> Iterator[None]:
    """This process may open so many files beside those that it has."""
    spare = [os.open(os.devnull, os.O_RDONLY) for _ in range(more)]
    first_refused = os.dup(0)  # the system gives the lowest number that is free
    for one in (*spare, first_refused):
        os.close(one)
    with at_most(first_refused):
        yield


@contextmanager
def at_most(limit: int) -> Iterator[None]:
    """This process, and those it starts, may open so many, as far as they raise no limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def opened() -> int:
    """How many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))
