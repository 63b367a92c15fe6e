"""PEFT with transformers behind the smallest server that can be compared: a plain loop around `generate`.

Run as a program. Two ways, which are what PEFT offers for several adapters: `mixed` answers whatever waits as one
batch with `adapter_names`, `merge` takes what waits for one adapter, merges its weights into the base, answers, and
takes them out again. Batches are static: a batch ends with its longest answer, and only then the next one begins.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import uvicorn
from peft import PeftModel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.generation.streamers import BaseStreamer

BASE = "__base__"  # PEFT's name for rows without an adapter
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
GATHER_S = 0.005  # how long the first of a batch waits for others that are just arriving


@dataclass(slots=True)
class Job:
    """One request; `tokens` takes its answer's ids and None at the end, from the thread that computes."""

    adapter: str
    ids: list[int]
    max_tokens: int
    ignore_eos: bool
    tokens: asyncio.Queue[int | None]
    loop: asyncio.AbstractEventLoop
    given: int = 0
    finish: str = "length"
    done: bool = field(default=False)

    def give(self, token: int, eos: int | None) -> None:
        """Take the next token of this row, unless its answer is complete."""
        if self.done:
            return
        if token == eos and not self.ignore_eos:
            self.finish = "stop"
            self.end()
            return
        self.given += 1
        self.loop.call_soon_threadsafe(self.tokens.put_nowait, token)
        if self.given == self.max_tokens:
            self.end()

    def end(self) -> None:
        """No further token comes."""
        if not self.done:
            self.done = True
            self.loop.call_soon_threadsafe(self.tokens.put_nowait, None)


class Waiting:
    """Requests on their way to the thread that computes."""

    def __init__(self) -> None:
        self._jobs: list[Job] = []
        self._arrived = threading.Condition()

    def put(self, job: Job) -> None:
        with self._arrived:
            self._jobs.append(job)
            self._arrived.notify()

    def take(self, most: int, alike: bool) -> list[Job]:
        """Wait for one, then up to `most` in the order they came; `alike`: only those of the first one's adapter."""
        with self._arrived:
            self._arrived.wait_for(lambda: bool(self._jobs))
        time.sleep(GATHER_S)
        with self._arrived:
            first = self._jobs[0].adapter
            chosen = [job for job in self._jobs if not alike or job.adapter == first][:most]
            self._jobs = [job for job in self._jobs if job not in chosen]
            return chosen


class RowStreamer(BaseStreamer):  # type: ignore[misc]  # transformers types it as Any
    """Hands each step's tokens to the rows of a batch; the first call has the prompts."""

    def __init__(self, jobs: Sequence[Job], eos: int | None) -> None:
        self._jobs, self._eos, self._begun = jobs, eos, False

    def put(self, value: torch.Tensor) -> None:
        if not self._begun:
            self._begun = True
            return
        for job, token in zip(self._jobs, value.tolist(), strict=True):
            job.give(token, self._eos)

    def end(self) -> None:
        for job in self._jobs:
            job.end()


class PlainLoop:
    """The model with its adapters and the loop that answers; everything that computes runs on its thread."""

    def __init__(
        self,
        base: Path,
        adapters: Mapping[str, Path],
        merge: bool,
        batch: int,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(base)
        self._merge, self._batch, self._device = merge, batch, torch.device(device)
        self.model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=dtype).to(self._device).eval()
        self.model.generation_config.eos_token_id = None  # rows end by themselves: some are to ignore it
        for name, path in adapters.items():
            if isinstance(self.model, PeftModel):
                self.model.load_adapter(str(path), adapter_name=name, autocast_adapter_dtype=False)
            else:
                self.model = PeftModel.from_pretrained(
                    self.model, str(path), adapter_name=name, autocast_adapter_dtype=False
                )
        self.waiting = Waiting()

    def run(self) -> None:
        """Answer for ever."""
        with torch.inference_mode():
            while True:
                jobs = self.waiting.take(self._batch, alike=self._merge)
                with self.applied(jobs) as names:
                    self.generate(jobs, names)

    @contextmanager
    def applied(self, jobs: Sequence[Job]) -> Iterator[list[str] | None]:
        """The adapters of a batch in effect; yields the names of its rows where each has its own."""
        if not isinstance(self.model, PeftModel):
            yield None
        elif not self._merge:
            yield [job.adapter for job in jobs]
        elif jobs[0].adapter == BASE:
            with self.model.disable_adapter():
                yield None
        else:
            self.model.set_adapter(jobs[0].adapter)
            self.model.merge_adapter([jobs[0].adapter])
            try:
                yield None
            finally:
                self.model.unmerge_adapter()

    def generate(self, jobs: Sequence[Job], names: list[str] | None) -> None:
        """Answer a batch to its end."""
        longest = max(len(job.ids) for job in jobs)
        pad = self.tokenizer.pad_token_id or 0
        padded = [[pad] * (longest - len(job.ids)) + job.ids for job in jobs]
        ids = torch.tensor(padded, device=self._device)
        known = [[0] * (longest - len(job.ids)) + [1] * len(job.ids) for job in jobs]
        mask = torch.tensor(known, device=self._device)
        most = max(job.max_tokens for job in jobs)
        options: dict[str, Any] = {"adapter_names": names} if names else {}
        self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=most,
            do_sample=False,
            pad_token_id=pad,
            streamer=RowStreamer(jobs, self.tokenizer.eos_token_id),
            stopping_criteria=[
                lambda ids, _, **__: torch.full((len(ids),), all(job.done for job in jobs), device=ids.device)
            ],
            **options,
        )


class Api:
    """As much of the OpenAI API as a load test asks for: completions and chats, streamed, greedy."""

    def __init__(self, loop: PlainLoop, name: str, adapters: Sequence[str]) -> None:
        self._loop, self._name, self._adapters = loop, name, list(adapters)

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/health", self.health),
                Route("/v1/models", self.models),
                Route("/v1/completions", self.answer, methods=["POST"]),
                Route("/v1/chat/completions", self.answer, methods=["POST"]),
            ]
        )

    async def health(self, _: Request) -> Response:
        return JSONResponse({})

    async def models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": name} for name in (self._name, *self._adapters)]})

    async def answer(self, request: Request) -> Response:
        body = await request.json()
        model = body["model"]
        if model != self._name and model not in self._adapters:
            return JSONResponse({"error": {"message": f"there is no model {model}"}}, status_code=404)
        if "messages" in body:
            prompt = self._loop.tokenizer.apply_chat_template(
                body["messages"], tokenize=False, add_generation_prompt=True
            )
        else:
            prompt = body["prompt"]
        job = Job(
            adapter=BASE if model == self._name else model,
            ids=self._loop.tokenizer(prompt, add_special_tokens="messages" not in body)["input_ids"],
            max_tokens=body.get("max_tokens") or body.get("max_completion_tokens") or 16,
            ignore_eos=bool(body.get("ignore_eos")),
            tokens=asyncio.Queue(),
            loop=asyncio.get_running_loop(),
        )
        self._loop.waiting.put(job)
        return StreamingResponse(self._events(job, model, "messages" in body), media_type="text/event-stream")

    async def _events(self, job: Job, model: str, chat: bool) -> AsyncIterator[str]:
        head = {"id": "0", "object": "chat.completion.chunk" if chat else "text_completion", "model": model}
        ids: list[int] = []
        told = ""
        while (token := await job.tokens.get()) is not None:
            ids.append(token)
            text = self._loop.tokenizer.decode(ids, skip_special_tokens=True)
            new, told = ("", told) if text.endswith("\ufffd") else (text[len(told) :], text)
            content = {"delta": {"content": new}} if chat else {"text": new}
            yield _event({**head, "choices": [{"index": 0, **content, "finish_reason": None}]})
        last: dict[str, Any] = {"delta": {}} if chat else {"text": ""}
        yield _event({**head, "choices": [{"index": 0, **last, "finish_reason": job.finish}]})
        usage = {"prompt_tokens": len(job.ids), "completion_tokens": job.given}
        yield _event({**head, "choices": [], "usage": {**usage, "total_tokens": sum(usage.values())}})
        yield "data: [DONE]\n\n"


def _event(value: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="directory of the base")
    parser.add_argument("--name", required=True, help="the base's public name")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--adapter", action="append", default=[], metavar="NAME=DIRECTORY")
    parser.add_argument("--merge", action="store_true", help="merge one adapter at a time; else adapter_names")
    parser.add_argument("--batch", type=int, default=16, help="the most rows of one batch")
    parser.add_argument("--device", default="cpu", help="as torch calls it: cpu, cuda")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of base and adapters")
    given = parser.parse_args()
    adapters = {name: Path(path) for name, _, path in (one.partition("=") for one in given.adapter)}
    loop = PlainLoop(given.model, adapters, given.merge, given.batch, given.device, DTYPES[given.dtype])
    threading.Thread(target=loop.run, daemon=True, name="generate").start()
    uvicorn.run(Api(loop, given.name, list(adapters)).app(), host="127.0.0.1", port=given.port, log_level="warning")


if __name__ == "__main__":
    main()
