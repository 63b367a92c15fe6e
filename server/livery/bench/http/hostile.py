"""Bodies as long as a body may be that cost a server as much as they can, and how long others wait meanwhile."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import msgspec

from livery.api.boundary import MAX_BODY
from livery.bench.http.pinging import pinged
from livery_loadtest.lean import RECEIVED, post

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
ROOM = MAX_BODY - 4096  # bytes of a body for what is hostile in it


@dataclass(frozen=True, slots=True)
class Hostile:
    """A request that is within all limits of size. `path` is its route."""

    name: str
    path: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Delay:
    """What others noticed of a request: `worst_ms` that one of them waited for the answer to a ping meanwhile.

    `status` and `seconds` are the hostile request's own.
    """

    name: str
    status: int
    seconds: float
    pings: int
    worst_ms: float


def hostile_requests() -> Iterator[Hostile]:
    """Long texts, many small things, deep things, wrong things, wherever a request takes any."""
    user = {"role": "user", "content": "hi"}
    for name, content in (
        ("words", "fish and chips " * (ROOM // 15)),
        ("one letter", "a" * ROOM),
        ("special tokens", "<|im_end|>" * (ROOM // 10)),
        ("signs of three bytes", "魚" * (ROOM // 3)),
        ("spaces", " " * ROOM),
    ):
        yield _hostile(f"one message of {name}", CHAT, messages=[{"role": "user", "content": content}])
        yield _hostile(f"a prompt of {name}", TEXT, prompt=content)
    yield _hostile("many messages", CHAT, messages=_many(user))
    yield _hostile("many parts", CHAT, messages=[{"role": "user", "content": _many({"type": "text", "text": "x"})}])
    yield _hostile("many messages that are none", CHAT, messages=_many(1))
    yield _hostile("many wrong messages", CHAT, messages=_many({}))
    yield _hostile("many token ids", TEXT, prompt=_many(1))
    yield _hostile("many token ids that are none", TEXT, prompt=_many(True))
    yield _hostile("many prompts", TEXT, prompt=_many(""))
    yield _hostile("many prompts of ids", TEXT, prompt=_many([]))
    yield _hostile("many lists nobody reads", CHAT, messages=[user], extra=_many([]))
    yield _hostile("many objects nobody reads", CHAT, messages=[user], extra=_many({}))
    yield _hostile("many fields nobody reads", CHAT, messages=[user], **{f"f{n}": 0 for n in range(ROOM // 12)})
    calls = [{"type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}]
    yield _hostile("many tool calls", CHAT, messages=_many({"role": "assistant", "tool_calls": calls}))
    arguments = '{"a":[' + ",".join(["[]"] * (ROOM // 3)) + "]}"
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    yield _hostile("arguments of many lists", CHAT, messages=[user, {"role": "assistant", "tool_calls": [call]}])
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    yield _hostile("many tools", CHAT, messages=[user], tools=_many(tool))
    yield _hostile("many biases", CHAT, messages=[user], logit_bias={str(n): 1 for n in range(ROOM // 12)})
    yield _hostile("many stop strings", CHAT, messages=[user], stop=_many("a"))
    yield _hostile("many stop ids", CHAT, messages=[user], stop_token_ids=_many(1))
    deep = b'{"messages":' + b"[" * (ROOM // 2) + b"]" * (ROOM // 2) + b"}"
    yield Hostile("deep lists", CHAT, deep)
    yield Hostile("escapes", CHAT, b'{"messages":[{"role":"user","content":"' + b"\\u0041" * (ROOM // 6) + b'"}]}')
    yield Hostile("digits", CHAT, b'{"seed":' + b"1" * ROOM + b',"messages":[{"role":"user","content":"hi"}]}')
    yield Hostile("an end that is missing", CHAT, b'{"messages":[' + b"[]," * (ROOM // 3))


def worst_delay(url: str, hostile: Hostile) -> Delay:
    """Send one hostile request and ping the server from another connection until it is answered."""
    address, begun = urlsplit(url), time.perf_counter()
    with pinged(url) as waits, socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(post(url, hostile.path, hostile.body))
        answer = connection.recv(RECEIVED)
    seconds = time.perf_counter() - begun
    status = int(answer.split(b" ", 2)[1]) if answer else 0
    return Delay(hostile.name, status, seconds, len(waits), 1e3 * max(waits))


def _many(item: object) -> list[object]:
    """As many of them as a body has room for."""
    return [item] * (ROOM // (len(msgspec.json.encode(item)) + 1))


def _hostile(name: str, path: str, **fields: object) -> Hostile:
    body = msgspec.json.encode({"max_tokens": 1, **fields})
    assert len(body) <= MAX_BODY, name
    return Hostile(name, path, body)
