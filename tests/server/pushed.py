"""A trainer that pushes new weights of one adapter while others ask for it, and what each of them saw.

Every answer says by its fingerprint which version made it. That must be one that was active at some moment between
sending the request and its first event; an answer that was cut short must have been under way while somebody pushed and
asked for that.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import torch
from safetensors.torch import load_file, save_file

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
RAW = {"content-type": "application/octet-stream"}
NAME = "policy"
PROMPTS = [[400 + 7 * i, 900, 31 * i + 5, *range(60, 60 + 3 * i)] for i in range(5)]


@dataclass
class Version:
    """One that was pushed: it may answer from when its push was sent, and not once a later one was acknowledged."""

    fingerprint: str
    sent: float
    answered: float
    aborts: bool  # its push had others end
    folder: Path


@dataclass(frozen=True)
class Answer:
    """What a request got. `began` is when its first event came; times are of one clock."""

    prompt: int
    fingerprint: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    reason: str
    sent: float
    began: float
    ended: float


@dataclass
class Trained:
    """One run: `keep` versions are kept; some pushes, drawn by `seed`, have running requests end."""

    client: httpx.AsyncClient
    folder: Path  # of the first version, which PEFT saved; later ones lie beside it
    seed: int
    keep: int = 2
    max_tokens: int = 8
    versions: list[Version] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, list[float]] = field(default_factory=dict)

    async def upload(self) -> None:
        """The first version comes with its configuration."""
        files = {name: (name, (self.folder / name).read_bytes()) for name in (CONFIG, WEIGHTS)}
        await self._post(self.folder, {}, files=files)

    async def push(self) -> None:
        """Other weights of the same shapes, drawn by the seed and how many there were."""
        number = len(self.versions)
        dice = random.Random(f"{self.seed}/{number}")
        folder = self.folder.parent / f"{self.folder.name}-{number}"
        folder.mkdir()
        shutil.copy(self.folder / CONFIG, folder)
        draw = torch.Generator().manual_seed(dice.getrandbits(48))
        first = load_file(self.folder / WEIGHTS)
        tensors = {name: 0.3 * torch.randn(weight.shape, generator=draw) for name, weight in first.items()}
        save_file(tensors, folder / WEIGHTS)
        aborts = dice.random() < 0.3
        params = {"keep": self.keep, "running": "abort" if aborts else "finish"}
        await self._post(folder, params, content=(folder / WEIGHTS).read_bytes(), headers=RAW)

    async def ask(self, dice: random.Random) -> None:
        """One streamed request for a prompt of the pool."""
        prompt = dice.randrange(len(PROMPTS))
        body = {"model": NAME, "prompt": PROMPTS[prompt], "max_tokens": self.max_tokens, "temperature": 0}
        body |= {"ignore_eos": True, "stream": True, "logprobs": 0, "return_token_ids": True}
        sent, began, events = time.monotonic(), 0.0, []
        async with self.client.stream("POST", "/v1/completions", json=body) as response:
            assert response.status_code == 200, (await response.aread()).decode()
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    began = began or time.monotonic()
                    events.append(json.loads(line.removeprefix("data: ")))
        self.answers.append(_answer(prompt, events, sent, began))
        self.outcomes[self.answers[-1].reason] += 1

    async def ask_until(self, done: asyncio.Event, number: int) -> None:
        dice = random.Random(f"{self.seed}: {number}")
        while not done.is_set():
            await self.ask(dice)

    async def run(self, pushes: int, streams: int) -> None:
        """So many pushes, one after the other, beside so many streams of requests that never pause."""
        done = asyncio.Event()
        async with asyncio.TaskGroup() as everything:  # whichever fails ends the others
            for number in range(streams):
                everything.create_task(self.ask_until(done, number))
            for _ in range(pushes):
                await self.push()
            done.set()

    def check(self) -> None:
        """Is every answer that of a version that was active when it was admitted, and whole unless it was to end?"""
        for answer in self.answers:
            found = self.made_by(answer)
            until = next((one.answered for one in self.versions if one.sent > found.sent), float("inf"))
            assert found.sent <= answer.began, f"{answer} is older than its version"
            assert answer.sent <= until, f"{answer} was sent when its version had been replaced at {until}"
            if answer.reason == "abort":
                assert any(
                    one.aborts and one.sent <= answer.ended and found.sent < one.sent and one.answered >= answer.sent
                    for one in self.versions
                ), f"nobody asked for the end of {answer}"
            else:
                assert (answer.reason, len(answer.tokens)) == ("length", self.max_tokens), answer
            assert len(answer.logprobs) == len(answer.tokens), answer

    def made_by(self, answer: Answer) -> Version:
        """The version that an answer says it is of."""
        (found,) = [one for one in self.versions if one.fingerprint == answer.fingerprint]
        return found

    async def _post(self, folder: Path, params: dict[str, Any], **body: Any) -> None:
        sent = time.monotonic()
        answer = await self.client.post(f"/v1/adapters/{NAME}/versions", params=params, **body)
        assert answer.status_code == 200, answer.text
        new = answer.json()["pushed"]
        assert (new["version"], new["active"]) == (len(self.versions) + 1, True)
        aborts = params.get("running") == "abort"
        self.versions.append(Version(new["system_fingerprint"], sent, time.monotonic(), aborts, folder))
        for stage, seconds in new["seconds"].items():
            self.seconds.setdefault(stage, []).append(seconds)


def _answer(prompt: int, events: list[dict[str, Any]], sent: float, began: float) -> Answer:
    choices = [event["choices"][0] for event in events]
    (fingerprint,) = {event["system_fingerprint"] for event in events}
    return Answer(
        prompt,
        fingerprint,
        tuple(token for choice in choices for token in choice["token_ids"]),
        tuple(value for choice in choices for value in (choice["logprobs"] or {}).get("token_logprobs", ())),
        choices[-1]["finish_reason"],
        sent,
        began,
        time.monotonic(),
    )
