"""Clients that stream one answer after the other, and what they saw."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path

import httpx

BUCKET_S = 2.0


def upload(http: httpx.Client, name: str, folder: Path, **query: object) -> httpx.Response:
    """Take the adapter of a folder in; `query` are parameters of the route."""
    files = {
        file: (file, (folder / file).read_bytes()) for file in ("adapter_config.json", "adapter_model.safetensors")
    }
    return http.post(f"/v1/adapters/{name}/versions", files=files, params={k: str(v) for k, v in query.items()})


@dataclass(frozen=True)
class Seen:
    """One request as its client saw it. `outcome`: whole, an error's code, or cut; `replica`: "" where none began."""

    begun: float
    ended: float
    model: str
    outcome: str
    replica: str


@dataclass
class UnderWay:
    """One request that hasn't ended, and who answers it; "" before the answer's head is there."""

    begun: float
    model: str
    replica: str = ""


class Clients:
    """Clients that stream one answer after the other, until they are told to stop."""

    def __init__(
        self,
        now: Callable[[], float],
        http: Callable[[], httpx.Client],
        models: Sequence[str],
        count: int,
        max_tokens: int,
    ) -> None:
        """`now` is the time in seconds that is noted; each client asks for these models in turn."""
        self.seen: list[Seen] = []
        self._now, self._http, self._models, self._max_tokens = now, http, models, max_tokens
        self._under_way: dict[int, UnderWay] = {}  # by client, each written by its own thread
        self._over = [threading.Event() for _ in range(count)]
        self._threads = [threading.Thread(target=self._stream, args=(index,)) for index in range(count)]
        for thread in self._threads:
            thread.start()

    def stop(self, left: int = 0) -> None:
        """Let all but so many clients end what they have, and wait for that."""
        for over, thread in zip(self._over[left:], self._threads[left:], strict=True):
            over.set()
            thread.join()

    def between(self, begin: float, end: float) -> list[Seen]:
        """What was under way at some time in between."""
        return [one for one in list(self.seen) if one.ended >= begin and one.begun <= end]

    def under_way(self) -> list[UnderWay]:
        """As it is now; what comes later isn't noted in it."""
        return [copy(one) for one in list(self._under_way.values())]

    def print(self) -> None:
        end = max(one.ended for one in self.seen)
        for index in range(int(min(one.begun for one in self.seen) / BUCKET_S), int(end / BUCKET_S) + 1):
            begin = index * BUCKET_S
            ended = Counter(one.outcome for one in self.seen if begin <= one.ended < begin + BUCKET_S)
            replicas = {one.replica for one in self.seen if begin <= one.ended < begin + BUCKET_S and one.replica}
            told = ", ".join(f"{count} {outcome}" for outcome, count in sorted(ended.items())) or "nothing ended"
            print(f"  {begin:6.0f} s  {told}  ({', '.join(sorted(replicas))})", flush=True)

    def _stream(self, index: int) -> None:
        with self._http() as http:
            number = index
            while not self._over[index].is_set():
                one = UnderWay(self._now(), self._models[number % len(self._models)])
                self._under_way[index] = one
                outcome = self._once(http, one)
                del self._under_way[index]
                self.seen.append(Seen(one.begun, self._now(), one.model, outcome, one.replica))
                number += 1
                if outcome != "whole":
                    time.sleep(0.5)  # as Retry-After says, more or less

    def _once(self, http: httpx.Client, one: UnderWay) -> str:
        """Its outcome; who answers is noted as soon as it is known."""
        body = {"model": one.model, "messages": [{"role": "user", "content": "Tell me about the sea."}], "stream": True}
        body |= {"max_tokens": self._max_tokens, "ignore_eos": True, "temperature": 0}
        try:
            with http.stream("POST", "/v1/chat/completions", json=body) as answer:
                one.replica = answer.headers.get("x-livery-replica", "")
                text = b"".join(answer.iter_raw())
        except httpx.HTTPError as error:
            return type(error).__name__
        if answer.status_code != 200:
            return str(json.loads(text)["error"]["code"])
        if text.endswith(b"data: [DONE]\n\n"):
            return "whole"
        last = text.rstrip().rpartition(b"data: ")[2]
        return str(json.loads(last)["error"]["code"]) if b'"error"' in last else "cut without a word"
