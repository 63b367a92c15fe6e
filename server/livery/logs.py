"""Log lines as text for people or as JSON for machines, in the server's process and the engine's alike.

One record is one line, whatever names and messages hold: what could end a line or move a terminal's cursor is escaped.
Fields of a record (`extra={"fields": {...}}`) are told as fields in JSON; text has them in its message.
The engine computes for many requests at once: its lines have a list `request_ids`, the server's have `request_id`.
"""

from __future__ import annotations

import json
import logging
import select
import sys
from collections.abc import Sequence
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

LogFormat = Literal["text", "json"]

# The request that the running task belongs to, where it belongs to one.
request_id: ContextVar[str] = ContextVar("request_id", default="")

NAMED_REQUESTS = 64  # by one line, at most

# A line waits so long for whoever reads standard error; once one has waited in vain, the next ones don't.
PATIENCE_MS = 50
# Bytes that a pipe takes whole where it has room at all, and at once: no other process's come in between. JSON lines up
# to this length stay whole therefore; parts of longer ones may have others' lines between them.
PIECE = select.PIPE_BUF
LONGEST_SIGN = 4  # bytes, in UTF-8

_TRACE = "    | "  # before each line of a traceback, so that none passes for a record


def configure(level: str, form: LogFormat, worker: int | None = None) -> None:
    """Send everything from this level on to standard error in this form, in place of an earlier one.

    `worker` is the number of this process where several serve HTTP; every line says it then.
    """
    handler = _StandardError()
    handler.setFormatter(JsonLines(worker) if form == "json" else TextLines(worker))
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old, _StandardError)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())


class _StandardError(logging.Handler):
    """Writes to what standard error is at the time, which whoever runs this within a program of theirs may replace.

    A pipe that is full because nobody reads it costs lines, which are counted and told later, and never the event loop.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lost = 0
        self._cut = ""  # what ends a line of which only the beginning went out

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if self._lost and self._write(self.format(_lines_lost(self._lost)), patience_ms=0):
                self._lost = 0
            if self._lost or not self._write(self.format(record), PATIENCE_MS):
                self._lost += 1
        except OSError:  # nobody can read it any more
            self.handleError(record)

    def _write(self, line: str, patience_ms: int) -> bool:
        """Write a line piece by piece; whether there was room for all of it."""
        stream, text = sys.stderr, f"{self._cut}{line}\n"
        piece = PIECE if text.isascii() else PIECE // LONGEST_SIGN
        for start in range(0, len(text), piece):
            if not _has_room(stream, patience_ms):
                self._cut = "\n" if start else self._cut
                return False
            stream.write(text[start : start + piece])
            stream.flush()
        self._cut = ""
        return True


def _has_room(stream: TextIO, patience_ms: int) -> bool:
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):  # it is no file
        return True
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(patience_ms))


def _lines_lost(count: int) -> logging.LogRecord:
    message = f"{count} log lines were lost: standard error is a pipe that nobody read; read it, or send it to a file"
    told = {"name": __name__, "levelname": "WARNING", "levelno": logging.WARNING, "msg": message}
    return logging.makeLogRecord(told)


class TextLines(logging.Formatter):
    """`TIME LEVEL LOGGER MESSAGE`, a traceback indented below it; `LOGGER[2]` where it is worker 2 that says it."""

    def __init__(self, worker: int | None = None) -> None:
        super().__init__()
        self._by = "" if worker is None else f"[{worker}]"

    def format(self, record: logging.LogRecord) -> str:
        when = _when(record).strftime("%Y-%m-%d %H:%M:%S,%f")[:-3]
        line = f"{when} {record.levelname} {record.name}{self._by} {on_one_line(record.getMessage())}"
        trace = "".join(f"\n{_TRACE}{on_one_line(part)}" for part in self._trace(record).splitlines())
        return line + trace

    def _trace(self, record: logging.LogRecord) -> str:
        return self.formatException(record.exc_info) if record.exc_info else ""


class JsonLines(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, request_id, worker, and the record's own fields."""

    def __init__(self, worker: int | None = None) -> None:
        super().__init__()
        self._by = {} if worker is None else {"worker": worker}

    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, Any] = {
            "time": _when(record).astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._by,
        }
        if request := request_id.get():
            told["request_id"] = request
        told |= getattr(record, "fields", {})
        if record.exc_info:
            told["traceback"] = self.formatException(record.exc_info)
        return json.dumps(told, default=str)


def of_requests(ids: Sequence[str]) -> dict[str, Any]:
    """The `extra` of a record about these requests; for none it has no field. At most `NAMED_REQUESTS` are named."""
    return {"fields": {"request_ids": list(ids[:NAMED_REQUESTS])} if ids else {}}


def listed(ids: Sequence[str]) -> str:
    """The same for a message's words."""
    more = len(ids) - NAMED_REQUESTS
    return ", ".join(ids[:NAMED_REQUESTS]) + (f" and {more} more" if more > 0 else "")


def on_one_line(text: str) -> str:
    """The text with everything escaped that isn't printable, as Python would write it."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


def _when(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created).astimezone()
