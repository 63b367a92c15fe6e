"""An OpenAI-compatible answer read as its bytes arrive: server-sent events, or JSON in one piece, into a Record."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec

from livery_loadtest.record import Record
from livery_loadtest.wire import Failed, Left

DONE = b"[DONE]"
WRONG_MODEL = "wrong model"
MOST_EVENT = 4 << 20  # bytes of one event, and of an answer in one piece
MOST_REFUSAL = 1 << 16  # bytes of a refusal that are looked at
MOST_SHOWN = 300  # characters of a server's message that are kept
EVENTS_PER_TOKEN, MORE_EVENTS = 16, 1024  # an answer of more than this many has no end


class EventSplitter:
    """Bytes, cut anywhere, into the data of server-sent events: lines end by CR, LF or both, comments are dropped.

    Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
    """

    def __init__(self) -> None:
        self._line = bytearray()
        self._data: list[bytes] = []
        self._held = 0  # bytes of lines that wait for the end of their event
        self._after_cr = False
        self._fresh = True

    def feed(self, data: bytes) -> list[bytes]:
        """The data of the events that end in these bytes. Raises Failed where one grows without an end."""
        if self._fresh:
            data = self._without_mark(data)
        if self._after_cr or b"\r" in data:
            data = self._plain_ends(data)
        *lines, rest = data.split(b"\n")
        if lines and self._line:
            lines[0] = bytes(self._line) + lines[0]
            self._line.clear()
        events = []
        for line in lines:
            if not line:
                if self._data:
                    events.append(self._data[0] if len(self._data) == 1 else b"\n".join(self._data))
                    self._data = []
                    self._held = 0
            elif line.startswith(b"data:") or line == b"data":
                self._data.append(line[6:] if line[5:6] == b" " else line[5:])
                self._held += len(line)
        self._line += rest
        if self._held + len(self._line) > MOST_EVENT:
            raise Failed("event too large", f"an event of more than {MOST_EVENT} bytes")
        return events

    def end(self) -> list[bytes]:
        """What a stream that ended without an empty line had begun."""
        return self.feed(b"\n\n")

    def _plain_ends(self, data: bytes) -> bytes:
        """LF in place of CR and CRLF, also where one was cut in two."""
        if self._after_cr and data.startswith(b"\n"):
            data = data[1:]
            self._after_cr = False
        if data:
            self._after_cr = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _without_mark(self, data: bytes) -> bytes:
        """Without the byte order mark that a stream may begin with."""
        self._line += data
        start = bytes(self._line)
        if len(start) < 3 and b"\xef\xbb\xbf".startswith(start):
            return b""
        self._line.clear()
        self._fresh = False
        return start.removeprefix(b"\xef\xbb\xbf")


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    message: _Delta | None = None
    finish_reason: str | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    model: str = ""
    usage: _Usage | None = None
    error: Any = None
    object: str = ""
    message: str = ""


_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Answer:
    """The reading of one answer; a wire.Exchange. Fills `record`, raises Failed where the answer is no good.

    `echoes`: the answer must bear the name of the model that was asked for. `keep_text`: the text goes into the
    record; otherwise only its events are noted.
    """

    def __init__(self, record: Record, *, echoes: bool = True, keep_text: bool = False) -> None:
        self.whole = False
        self._record = record
        self._echoes, self._keep_text = echoes, keep_text
        self._texts: list[str] = []
        self._events = EventSplitter()
        self._streamed = True
        self._kind = ""  # of the body, as its head says
        self._body = bytearray()  # of an answer in one piece, or of a refusal
        self._leave_after = record.planned.leave_after
        self._most = EVENTS_PER_TOKEN * record.planned.max_tokens + MORE_EVENTS
        self._seen = 0

    def on_connected(self, now: float) -> None:
        self._record.connected = now

    def on_retried(self) -> None:
        self._record.retried = True

    def on_sent(self, now: float) -> None:
        if not self._record.retried:
            self._record.sent = now
        if self._leave_after == 0:
            self._leave(now)

    def on_head(self, status: int, headers: Mapping[str, str]) -> None:
        record = self._record
        record.status = status
        record.version = sys.intern(headers.get("x-livery-adapter", ""))
        record.retry_after_s = _seconds(headers.get("retry-after", ""))
        self._kind = headers.get("content-type", "")
        self._streamed = status == 200 and "json" not in self._kind

    def on_data(self, data: bytes, now: float) -> bool:
        if self.whole:
            return False
        if self._streamed:
            payloads = self._events.feed(data)
            self._note_events(payloads, now)
            return bool(payloads)
        if len(self._body) + len(data) > MOST_EVENT:
            raise Failed("answer too large", f"an answer in one piece of more than {MOST_EVENT} bytes")
        self._body += data
        return True

    def on_end(self, now: float) -> None:
        record = self._record
        if record.status != 200:
            raise Failed(f"http {record.status}", _refusal(bytes(self._body[:MOST_REFUSAL])))
        if self._streamed:
            if not self.whole:
                self._note_events(self._events.end(), now)
            if not (self.whole or self._seen):
                raise Failed("no events", f"the answer ended without an event; its content-type is {self._kind!r:.80}")
            if not self.whole:
                raise Failed("stream cut", f"the stream ended without {DONE.decode()}")
        else:
            self._note(bytes(self._body), now)
            record.finished = now
        self._settle()

    def _note_events(self, payloads: Sequence[bytes], now: float) -> None:
        for payload in payloads:
            if payload == DONE:
                self.whole = True
                self._record.finished = now
                return
            self._note(payload, now)
        self._seen += len(payloads)
        if self._seen > self._most:
            raise Failed("endless answer", f"{self._seen} events for {self._record.planned.max_tokens} tokens")

    def _note(self, payload: bytes, now: float) -> None:
        """Take one chunk, which came `now`."""
        record = self._record
        try:
            chunk = _decode_chunk(payload)
        except _UNREADABLE as failure:
            shown = payload[:MOST_SHOWN].decode(errors="replace")
            raise Failed("unreadable event", f"{failure}: {shown}") from None
        for choice in chunk.choices:
            delta = choice.delta or choice.message
            if choice.text or (delta is not None and self._says(delta)):
                record.events.append(now)
                if self._keep_text:
                    self._texts.append(choice.text or (delta.content if delta else "") or "")
                if len(record.events) == self._leave_after:
                    self._leave(now)
            if choice.finish_reason is not None:
                record.finish_reason = sys.intern(choice.finish_reason)
        if chunk.model != record.model_told and chunk.model:
            self._note_model(chunk.model)
        if chunk.usage is not None:
            self._note_usage(chunk.usage)
        if chunk.error is not None or chunk.object == "error":
            raise Failed("error event", _told(chunk.error if chunk.error is not None else chunk.message))

    @staticmethod
    def _says(delta: _Delta) -> bool:
        return bool(delta.content or delta.reasoning_content or delta.reasoning or delta.tool_calls or delta.refusal)

    def _note_model(self, name: str) -> None:
        """The name that isn't the one asked for stays noted, whatever comes after it."""
        planned = self._record.planned.model
        if self._record.model_told in ("", planned):
            self._record.model_told = planned if name == planned else name[:MOST_SHOWN]

    def _note_usage(self, usage: _Usage) -> None:
        record = self._record
        record.prompt_tokens, record.output_tokens = usage.prompt_tokens, usage.completion_tokens
        if usage.prompt_tokens_details is not None:
            record.cached_tokens = usage.prompt_tokens_details.cached_tokens

    def _leave(self, now: float) -> None:
        self._record.left = True
        self._record.finished = now
        self._keep()
        raise Left

    def _settle(self) -> None:
        record = self._record
        self._keep()
        if record.finish_reason is None:
            raise Failed("no finish reason", "the answer ended without a finish_reason")
        if self._echoes and record.model_told not in ("", record.planned.model):
            raise Failed(WRONG_MODEL, f"{record.planned.model!r} was asked for, the answer bears {record.model_told!r}")

    def _keep(self) -> None:
        self._record.text = "".join(self._texts)


def _seconds(retry_after: str) -> float | None:
    """What Retry-After asks for, whole seconds or a date (RFC 9110, 10.2.3); None where it is neither."""
    if retry_after.isdecimal():
        return float(retry_after[:9])
    try:
        return max(0.0, (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError, IndexError, OverflowError):
        return None


def _refusal(body: bytes) -> str:
    """The message in a refusal, or its beginning where it has none."""
    try:
        told = msgspec.json.decode(body)
    except _UNREADABLE:
        return body[:MOST_SHOWN].decode(errors="replace")
    return _told(told.get("error", told) if isinstance(told, dict) else told)


def _told(error: object) -> str:
    message = error.get("message", error) if isinstance(error, dict) else error
    return str(message)[:MOST_SHOWN]
