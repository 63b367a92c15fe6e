"""What the process that measures and those that send tell each other: frames of msgpack over a pipe."""

from __future__ import annotations

import asyncio
import dataclasses
import struct
import sys
from array import array
from collections.abc import Sequence
from typing import Any

import msgspec

from livery_loadtest.drive import Glance
from livery_loadtest.health import Vitals
from livery_loadtest.options import Options
from livery_loadtest.record import Record
from livery_loadtest.script import Planned
from livery_loadtest.target import Target

_LENGTH = struct.Struct("<I")
_TOLD = tuple(field.name for field in dataclasses.fields(Record) if field.name not in ("planned", "events"))
_FEW = ("finish_reason", "model_told", "version", "error")  # few different ones: kept once each


class Work(msgspec.Struct, tag=True):
    """To a sender, first: what to send, to whom and how."""

    requests: list[Planned]
    target: Target
    options: Options


class Begin(msgspec.Struct, tag=True):
    """To a sender that is ready: the start, on time.perf_counter, which all processes of a machine share."""

    at: float


class Stop(msgspec.Struct, tag=True):
    """To a sender: tell what has ended by now."""


class Ready(msgspec.Struct, tag=True):
    """From a sender: the work is there, and it waits for its beginning."""


class Look(msgspec.Struct, tag=True):
    """From a sender, now and then."""

    glance: Glance


class Unusable(msgspec.Struct, tag=True):
    """From a sender, in place of all that follows: it can't send to this target."""

    message: str


class Batch(msgspec.Struct, tag=True):
    """From a sender when all is over: some of its records, each a row of its fields."""

    rows: list[list[Any]]


class Ended(msgspec.Struct, tag=True):
    """From a sender, last. `lags`, `delays` and `gaps` are arrays' bytes."""

    started: float
    seconds: float
    cpu_s: float
    wall_s: float
    lags: bytes
    delays: bytes
    reasons: tuple[str, ...]
    interrupted: bool
    gaps: bytes | None = None

    def vitals(self) -> Vitals:
        return Vitals(self.cpu_s, self.wall_s, array("d", self.lags), array("d", self.delays), self.reasons)


ToSender = Work | Begin | Stop
FromSender = Ready | Look | Unusable | Batch | Ended

_encode = msgspec.msgpack.Encoder().encode
_to_sender: msgspec.msgpack.Decoder[ToSender] = msgspec.msgpack.Decoder(ToSender)
_from_sender: msgspec.msgpack.Decoder[FromSender] = msgspec.msgpack.Decoder(FromSender)


def frame(message: ToSender | FromSender) -> bytes:
    """A message with its length before it."""
    data = _encode(message)
    return _LENGTH.pack(len(data)) + data


async def read_order(reader: asyncio.StreamReader) -> ToSender:
    """The next message to a sender. Raises asyncio.IncompleteReadError where the other end is gone."""
    return _to_sender.decode(await _read(reader))


async def read_news(reader: asyncio.StreamReader) -> FromSender:
    """The next message from a sender. Raises asyncio.IncompleteReadError where the other end is gone."""
    return _from_sender.decode(await _read(reader))


async def _read(reader: asyncio.StreamReader) -> bytes:
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    return await reader.readexactly(length)


def as_row(record: Record) -> list[Any]:
    """A record without its request, which the other end knows by its index."""
    return [record.planned.index, record.events.tobytes(), *(getattr(record, name) for name in _TOLD)]


def as_record(row: Sequence[Any], requests: Sequence[Planned]) -> Record:
    """The record of a row."""
    index, events, *told = row
    fields = dict(zip(_TOLD, told, strict=True))
    fields |= {name: sys.intern(fields[name]) for name in _FEW if fields[name] is not None}
    return Record(planned=requests[index], events=array("d", events), **fields)
