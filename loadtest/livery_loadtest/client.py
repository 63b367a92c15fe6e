"""One streamed request to an OpenAI-compatible server, timed as its bytes arrive.

Knows nothing of load, rounds or adapters: a model is a name.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import httpx
import msgspec

from livery_loadtest.target import Target
from livery_loadtest.workload import Request

DONE = b"[DONE]"


@dataclass(frozen=True, slots=True)
class Dialect:
    """How requests are worded: endpoint, and whether an end-of-text token ends the answer."""

    chat: bool = False
    ignore_eos: bool = True

    @property
    def path(self) -> str:
        return "/v1/chat/completions" if self.chat else "/v1/completions"

    def body(self, request: Request) -> dict[str, Any]:
        """The JSON body: streamed, greedy, with usage at the end."""
        body: dict[str, Any] = {
            "model": request.model,
            "max_tokens": request.max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.chat:
            body["messages"] = [{"role": "user", "content": request.prompt}]
        else:
            body["prompt"] = request.prompt
        if self.ignore_eos:
            body["ignore_eos"] = True
        return body


@dataclass(slots=True)
class Record:
    """What happened to one request. Times are seconds on one monotonic clock.

    `arrivals` are the times of the chunks that carried text; a server may put several tokens into one chunk,
    or hold a token back until its characters are complete. `output_tokens` is the server's own usage, or the
    number of those chunks where it sent none (`usage_missing`). `error` is a short kind, such as "http 404".
    """

    model: str
    started: float
    finished: float = 0.0
    arrivals: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    output_tokens: int = 0
    usage_missing: bool = False
    finish_reason: str | None = None
    text: str = ""
    error: str | None = None
    error_message: str = ""


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


class _StreamFailed(Exception):
    """The answer is no good; `kind` groups such failures."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


_decode_chunk = msgspec.json.Decoder(_Chunk).decode


def http_client(timeout: float, api_key: str | None = None) -> httpx.AsyncClient:
    """A client without a limit on connections; `timeout` is the longest silence in seconds."""
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(timeout=timeout, limits=limits, headers=headers, trust_env=False)


async def send(client: httpx.AsyncClient, target: Target, dialect: Dialect, request: Request) -> Record:
    """Send one request and read its stream to the end. A failure is in the record, never raised."""
    record = Record(model=request.model, started=time.perf_counter())
    usage: _Usage | None = None
    try:
        body = {**dialect.body(request), **target.fields.get(request.model, {})}
        usage = await _read_answer(client, target.url + dialect.path, body, record)
    except _StreamFailed as failure:
        record.error, record.error_message = failure.kind, str(failure)
    except httpx.HTTPError as failure:
        record.error, record.error_message = type(failure).__name__, str(failure)
    except msgspec.DecodeError as failure:
        record.error, record.error_message = "unreadable event", str(failure)
    record.finished = time.perf_counter()
    record.usage_missing = usage is None
    record.output_tokens = len(record.arrivals) if usage is None else usage.completion_tokens
    record.prompt_tokens = 0 if usage is None else usage.prompt_tokens
    return record


async def _read_answer(client: httpx.AsyncClient, url: str, body: dict[str, Any], record: Record) -> _Usage | None:
    async with client.stream("POST", url, json=body) as response:
        if response.status_code != 200:
            detail = (await response.aread()).decode(errors="replace")
            raise _StreamFailed(f"http {response.status_code}", detail[:300])
        usage: _Usage | None = None
        pending = b""
        async for data in response.aiter_bytes():
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                if not line.startswith(b"data:"):
                    continue
                payload = line[5:].strip()
                if payload == DONE:
                    _expect_finished(record)
                    return usage
                usage = _note_chunk(_decode_chunk(payload), record) or usage
    raise _StreamFailed("stream cut", f"the stream ended without {DONE.decode()}")


def _note_chunk(chunk: _Chunk, record: Record) -> _Usage | None:
    if chunk.error is not None:
        raise _StreamFailed("stream error", str(chunk.error)[:300])
    for choice in chunk.choices:
        text = choice.delta.content if choice.delta is not None else choice.text
        if text:
            record.arrivals.append(time.perf_counter())
            record.text += text
        record.finish_reason = choice.finish_reason or record.finish_reason
    return chunk.usage


def _expect_finished(record: Record) -> None:
    if record.finish_reason is None:
        raise _StreamFailed("no finish reason", "the stream ended without a finish_reason")
