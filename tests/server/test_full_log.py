"""Standard error as a pipe that nobody reads: lines are lost, counted and told; nobody waits."""

from __future__ import annotations

import json
import logging
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from livery.logs import PIECE, configure

LINES = 2000
LINE = 200  # characters: all of them are far more than a pipe holds


@contextmanager
def unread(flags: int = 0) -> Iterator[TextIO]:
    """Log lines as JSON go to a pipe; what comes out of it. Not a fixture: pytest takes standard error between them."""
    reading, writing = os.pipe2(flags)
    os.set_blocking(reading, False)
    with os.fdopen(reading) as out, os.fdopen(writing, "w") as stream:
        stderr, sys.stderr = sys.stderr, stream
        configure("info", "json")
        try:
            yield out
        finally:
            sys.stderr = stderr


def read(out: TextIO) -> str:
    return os.read(out.fileno(), 1 << 20).decode()


def test_lines_that_nobody_reads_are_lost_and_told_once_somebody_does() -> None:
    log = logging.getLogger("test")
    with unread() as out:
        for number in range(LINES):
            log.info("%d %s", number, "x" * LINE)
        came = [json.loads(line)["message"] for line in read(out).splitlines()]
        assert [int(message.split()[0]) for message in came] == list(range(len(came)))
        assert 0 < len(came) < LINES
        log.info("read again")
        told, newest = (json.loads(line) for line in read(out).splitlines())
        assert (told["level"], newest["message"]) == ("warning", "read again")
        assert told["message"].startswith(f"{LINES - len(came)} log lines were lost: standard error is a pipe")
        log.info("and nothing is told twice")
        assert len(read(out).splitlines()) == 1


def test_a_line_that_a_pipe_takes_whole_is_written_at_once() -> None:
    """Several processes write to one pipe: what one writes in parts may have others' lines between them."""
    log = logging.getLogger("test")
    with unread(os.O_DIRECT) as out:  # each write is read by itself
        for message in (
            "x" * (select.PIPE_BUF - 200),
            "é" * (select.PIPE_BUF // 8),
        ):  # as JSON has them, six signs each
            log.info(message)
            assert json.loads(read(out))["message"] == message
        log.info("z" * select.PIPE_BUF)
        assert len(read(out)) == select.PIPE_BUF


def test_a_line_that_went_out_in_part_ends_before_the_next_one() -> None:
    log = logging.getLogger("test")
    with unread() as out:
        log.info("y" * (PIECE * 1024))
        assert read(out).endswith("y")
        log.info("next")
        end, told, newest = read(out).splitlines()
        assert end == ""
        assert json.loads(told)["message"].startswith("1 log lines were lost")
        assert json.loads(newest)["message"] == "next"
