"""A small real server with known answers, and every kind of bad one, for the load client to measure."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

# Adapters that misbehave, each in one way; CHANGING answers a prompt otherwise when it is asked again.
REFUSED, CUT, FAILING, SILENT_USAGE, UNFINISHED = "refused", "cut", "failing", "silent-usage", "unfinished"
CHANGING, MISNAMED, BROKEN, HANGING = "changing", "misnamed", "broken", "hanging"


@dataclass
class KnownServer:
    """Answers max_tokens words, one a chunk: `MODEL:0 MODEL:1 …`."""

    name: str
    models: list[str]
    seen: list[dict[str, object]] = field(default_factory=list)
    under_way: int = 0
    most_under_way: int = 0
    url: str = ""
    metrics: str | None = None
    key: str | None = None  # to list models
    metrics_key: str | None = None
    scrapes: int = 0
    changes: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/models", self.list_models),
                Route("/version", self.version),
                Route("/metrics", self.tell_metrics),
                Route("/v1/load_lora_adapter", self.change, methods=["POST"]),
                Route("/v1/unload_lora_adapter", self.change, methods=["POST"]),
                Route("/v1/completions", self.complete, methods=["POST"]),
                Route("/v1/chat/completions", self.complete, methods=["POST"]),
            ]
        )

    async def list_models(self, request: Request) -> Response:
        if not _opens(self.key, request):
            return PlainTextResponse("no key, or a wrong one", 401)
        return JSONResponse({"object": "list", "data": [{"id": name} for name in self.models]})

    async def version(self, _: Request) -> Response:
        return JSONResponse({"version": f"{self.name}-1.0"})

    async def tell_metrics(self, request: Request) -> Response:
        if self.metrics is None:
            return PlainTextResponse("there are none", 404)
        if not _opens(self.metrics_key, request):
            return PlainTextResponse("no key, or a wrong one", 401)
        self.scrapes += 1
        return PlainTextResponse(self.metrics)

    async def change(self, request: Request) -> Response:
        self.changes.append((request.url.path, await request.json()))
        if REFUSED in self.changes[-1][1].values():
            return PlainTextResponse("no such adapter", 404)
        return PlainTextResponse("done")

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        key = request.headers.get("authorization")
        self.seen.append({"server": self.name, "path": request.url.path, **({"key": key} if key else {}), **body})
        if body["model"] == REFUSED or body["model"] not in self.models:
            error = {"message": f"model {body['model']} is not served", "code": "model_not_found"}
            return JSONResponse({"error": error}, status_code=404)
        if body["model"] == BROKEN:
            return PlainTextResponse("the engine is starting", 503, {"retry-after": "7"})
        if body["model"] == HANGING:
            while (await request.receive())["type"] != "http.disconnect":
                continue
        return StreamingResponse(self.stream(body), media_type="text/event-stream")

    async def stream(self, body: dict[str, object]) -> AsyncIterator[str]:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            async for payload in self.payloads(body):
                yield f"data: {payload}\r\n\r\n"
                await asyncio.sleep(0)  # answers overlap, as they do on a server that computes
        finally:
            self.under_way -= 1

    async def payloads(self, body: dict[str, object]) -> AsyncIterator[str]:
        model, count = str(body["model"]), int(str(body["max_tokens"]))
        chat = "messages" in body
        asked = [body.get("prompt"), body["model"]]
        again = model == CHANGING and [[one.get("prompt"), one["model"]] for one in self.seen].count(asked) > 1
        if chat:
            yield json.dumps({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        for index in range(count):
            if index == 2 and model == CUT:
                return
            if index == 2 and model == FAILING:
                yield json.dumps({"error": {"message": "the engine is gone", "code": 500}})
                return
            word = f"{model}:{index} "
            if "response_format" in body:
                word = str(index + 1)  # a number, which is JSON
            if again:
                word = word.upper()
            choice: dict[str, object] = {"index": 0, "finish_reason": None}
            choice |= {"delta": {"content": word}} if chat else {"text": word}
            yield json.dumps({"model": "base" if model == MISNAMED else model, "choices": [choice]})
        if model != UNFINISHED:
            yield json.dumps({"choices": [{"index": 0, "text": "", "delta": {}, "finish_reason": "length"}]})
        if model != SILENT_USAGE:
            prompt = len(str(body.get("prompt", "")).split())
            yield json.dumps({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": count}})
        yield "[DONE]"


def _opens(key: str | None, request: Request) -> bool:
    return key is None or request.headers.get("authorization") == f"Bearer {key}"


class _Running:
    """uvicorn in a thread, on a socket that is bound before it starts."""

    def __init__(self, server: KnownServer) -> None:
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.socket.listen(64)  # a client may connect before uvicorn accepts
        server.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.uvicorn = uvicorn.Server(uvicorn.Config(server.app(), log_level="warning"))
        self.thread = threading.Thread(target=self.uvicorn.run, kwargs={"sockets": [self.socket]})
        self.thread.start()

    def stop(self) -> None:
        self.uvicorn.should_exit = True
        self.thread.join()
        self.socket.close()


@contextmanager
def serving(*servers: KnownServer) -> Iterator[tuple[KnownServer, ...]]:
    """Serve until the block ends."""
    running = [_Running(server) for server in servers]
    try:
        yield servers
    finally:
        for one in running:
            one.stop()
