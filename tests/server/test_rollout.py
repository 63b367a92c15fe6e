"""A rollout under load: replace, roll back, share 90/10, take out of service. Every answer is that of a version that
was active at some moment between sending the request and hearing of it, and is what PEFT gives for that version.

LIVERY_ROLLOUT_REQUESTS sets another number of requests.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from peft import IA3Config, LoHaConfig, LoraConfig, PeftConfig
from transformers import AutoTokenizer

from engine.families import LLAMA_LINEAR
from engine.oracle import GAP, Oracle, save_tuned
from livery_adapters.manifest import read_manifest
from server.running import SMALL, livery_serve, tiny_model
from sizes import SEED, wished

REQUESTS = wished("LIVERY_ROLLOUT_REQUESTS", 300)
STREAMS = 10
CHANGES = ("put", "rollback", "delete")
MAX_TOKENS = 6
PROMPTS = [[400 + 7 * i, 900, 31 * i + 5, *range(60, 60 + 3 * i)] for i in range(5)]
CONFIGS: list[PeftConfig] = [
    LoraConfig(r=3, target_modules=LLAMA_LINEAR),
    LoraConfig(r=4, use_dora=True, target_modules=LLAMA_LINEAR[:4]),
    LoHaConfig(r=2, alpha=2, target_modules=LLAMA_LINEAR),
    IA3Config(target_modules=LLAMA_LINEAR, feedforward_modules=["down_proj"]),
]


@dataclass
class Change:
    """A version that a name stood for: between sending the change and its answer either side may hold."""

    digest: str | None
    sent: float
    answered: float = float("inf")


@dataclass
class Heard:
    """An answer, and between which moments it was made."""

    model: str
    prompt: int
    sent: float
    at: float
    answer: httpx.Response


@dataclass
class Rollout:
    """What was asked of the server, when, and what PEFT says."""

    pool: dict[str, Path]  # digest -> files
    oracle: Oracle
    tokenizer: Any
    history: dict[str, list[Change]] = field(default_factory=dict)
    outcomes: Counter[str] = field(default_factory=Counter)
    answers: dict[tuple[int, str | None], tuple[str, bool]] = field(default_factory=dict)
    heard: list[Heard] = field(default_factory=list)

    def admissible(self, name: str, sent: float, heard: float) -> set[str | None]:
        """Every version that may have been active at some moment of that time."""
        changes = self.history[name]
        ends = [change.answered for change in changes[1:]] + [float("inf")]
        return {
            change.digest for change, end in zip(changes, ends, strict=True) if change.sent <= heard and end >= sent
        }

    def expected(self, prompt: int, digest: str | None) -> tuple[str, bool]:
        """PEFT's greedy text, and whether every choice in it was clear."""
        key = (prompt, digest)
        if key not in self.answers:
            tokens, clear = list(PROMPTS[prompt]), True
            for _ in range(MAX_TOKENS):
                best = self.oracle.logits(tokens, self.pool[digest] if digest else None)[-1].topk(2)
                clear = clear and float(best.values[0] - best.values[1]) > GAP
                tokens.append(int(best.indices[0]))
            self.answers[key] = (self.tokenizer.decode(tokens[len(PROMPTS[prompt]) :]), clear)
        return self.answers[key]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("rollout") / "tiny")


@pytest.fixture(scope="module")
def rollout(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Rollout:
    root = tmp_path_factory.mktemp("rollout-adapters")
    made = [save_tuned(base, root / ".pool" / str(seed), seed, config) for seed, config in enumerate(CONFIGS)]
    rollout = Rollout(
        {read_manifest(path).digest: path for path in made}, Oracle(base, 256), AutoTokenizer.from_pretrained(base)
    )
    for path in made:
        rollout.oracle.assert_visible(PROMPTS[2], path)
    return rollout


@pytest.mark.filterwarnings("ignore::UserWarning")
async def test_every_answer_is_that_of_a_version_active_when_it_was_admitted(
    base: Path, rollout: Rollout, tmp_path: Path
) -> None:
    root = next(iter(rollout.pool.values())).parent.parent
    flags = ("--threads", "1", "--max-batch-tokens", "24", "--log-level", "warning", *SMALL)
    with livery_serve(base, root, tmp_path, *flags) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
            first, second, *_ = rollout.pool
            for name, digest in (("stable", first), ("canary", second), ("passing", first)):
                await change(client, rollout, name, digest)
            targets = [{"adapter": "stable", "weight": 90}, {"adapter": "canary", "weight": 10}]
            (await client.put("/v1/aliases/prod", json={"targets": targets})).raise_for_status()
            todo, done = iter(range(REQUESTS)), asyncio.Event()
            rolling = asyncio.create_task(keep_changing(client, rollout, done))
            await asyncio.gather(*(stream(client, rollout, random.Random(SEED + n), todo) for n in range(STREAMS)))
            done.set()
            await rolling
            await until_empty(client, tmp_path / "data")
    for heard in rollout.heard:
        judge(rollout, heard)
    outcomes = rollout.outcomes
    print(f"seed {SEED}, {REQUESTS} requests: {dict(outcomes)}")
    assert outcomes["answered"] > REQUESTS / 2, outcomes
    assert outcomes["prod: canary"] > 0, outcomes
    assert 0.8 < outcomes["prod: stable"] / (outcomes["prod: stable"] + outcomes["prod: canary"]) < 0.98, outcomes


async def stream(client: httpx.AsyncClient, rollout: Rollout, dice: random.Random, todo: Any) -> None:
    for number in todo:
        await one_request(client, rollout, dice, number)


async def one_request(client: httpx.AsyncClient, rollout: Rollout, dice: random.Random, number: int) -> None:
    model = dice.choice(["prod", "prod", "stable", "canary", "passing"])
    prompt = dice.randrange(len(PROMPTS))
    body = {"model": model, "prompt": PROMPTS[prompt], "max_tokens": MAX_TOKENS, "temperature": 0, "ignore_eos": True}
    sent = time.monotonic()
    answer = await client.post("/v1/completions", json={**body, "user": f"user-{number}"})
    rollout.heard.append(Heard(model, prompt, sent, time.monotonic(), answer))


def judge(rollout: Rollout, heard: Heard) -> None:
    """When all is over: what a change led to may be known only after answers that it made."""
    model, answer = heard.model, heard.answer
    if answer.status_code in (404, 503):
        assert model == "passing", answer.text
        allowed = answer.status_code == 503 or None in rollout.admissible(model, heard.sent, heard.at)
        assert allowed, "it was there all the time"
        rollout.outcomes["absent"] += 1
        return
    assert answer.status_code == 200, answer.text
    name, _, short = answer.headers["x-livery-adapter"].partition("@")
    assert name == model or (model == "prod" and name in ("stable", "canary"))
    if model == "prod":
        rollout.outcomes[f"prod: {name}"] += 1
    active = rollout.admissible(name, heard.sent, heard.at)
    admissible = {one for one in active if one is not None and one.startswith(short)}
    assert len(admissible) == 1, f"{name} was served by {short}, which wasn't active meanwhile"
    text, clear = rollout.expected(heard.prompt, admissible.pop())
    if clear:
        assert answer.json()["choices"][0]["text"] == text, f"{name}@{short} answered with something else"
        rollout.outcomes["answered"] += 1


async def keep_changing(client: httpx.AsyncClient, rollout: Rollout, done: asyncio.Event) -> None:
    """As long as requests come, and until every kind of change was made: how many fit in depends on the machine."""
    dice = random.Random(5 + SEED)
    while not done.is_set() or min(rollout.outcomes[kind] for kind in CHANGES) < 2:
        name = dice.choice(["stable", "canary"])
        await change(client, rollout, name, dice.choice(list(rollout.pool)))
        await roll_back(client, rollout, name)
        await change(client, rollout, "passing", None)
        await change(client, rollout, "passing", dice.choice(list(rollout.pool)))


async def change(client: httpx.AsyncClient, rollout: Rollout, name: str, digest: str | None) -> None:
    """Serve a version under a name, or nothing."""
    step = Change(digest, time.monotonic())
    rollout.history.setdefault(name, []).append(step)
    if digest is None:
        answer = await client.delete(f"/v1/adapters/{name}")
        assert answer.status_code in (200, 202), answer.text
    else:
        answer = await client.put(f"/v1/adapters/{name}", json={"source": f".pool/{rollout.pool[digest].name}"})
        assert answer.status_code == 200, answer.text
        assert answer.json()["digest"] == digest
    step.answered = time.monotonic()
    rollout.outcomes["delete" if digest is None else "put"] += 1


async def roll_back(client: httpx.AsyncClient, rollout: Rollout, name: str) -> None:
    """What it leads to is known from the answer; until then nobody else changes the name."""
    versions = (await client.get(f"/v1/adapters/{name}/versions")).json()["data"]
    steps = [Change(version["digest"], time.monotonic()) for version in versions]
    sent = time.monotonic()
    answer = await client.post(f"/v1/adapters/{name}/rollback")
    if answer.status_code == 409:
        return
    assert answer.status_code == 200, answer.text
    (step,) = [step for step in steps if step.digest == answer.json()["digest"]]
    step.sent, step.answered = sent, time.monotonic()
    rollout.history[name].append(step)
    rollout.outcomes["rollback"] += 1


async def until_empty(client: httpx.AsyncClient, data: Path) -> None:
    """With everything deleted nothing may be left in the engine's memory or on disk."""
    await client.delete("/v1/aliases/prod")
    for name in ("stable", "canary", "passing"):
        await client.delete(f"/v1/adapters/{name}")
    async with asyncio.timeout(60):
        while True:
            lines = (await client.get("/metrics")).text.splitlines()
            (held,) = [float(line.split()[1]) for line in lines if line.startswith("livery_adapter_memory_bytes ")]
            if not held and not list(data.rglob("adapter_model.safetensors")):
                return
