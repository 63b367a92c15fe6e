"""Reinforcement learning against a running server: it makes the rollouts, and gets new weights of one adapter for each.

    livery serve --model smollm2-135m-instruct                                  # in one terminal
    python adapters/examples/reinforce.py --out reinforce                       # in another

Plain REINFORCE, nothing but PEFT, torch and two HTTP clients. Each iteration asks the server for several answers to
each of some prompts, through the official client, with the log-probability of every token (at temperature 1 that is
what the token was drawn by); rewards them; takes two steps of policy gradient in this process; and pushes the adapter's
weights back, which the next iteration's answers are made by. The reward is a toy: the share of an answer's words that
begin with a vowel. The baseline of an answer is the mean of the others to its prompt. A token counts by its importance
weight, the probability that it has by now over the one that it was drawn by, at most 2: 1 in the first step, but for
rounding, which shows that server and trainer compute the same.

Writes OUT.json (reward and timings of each iteration, and rewards on prompts that training never saw, before and after)
and OUT.svg (the reward's curve) after every iteration.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import torch
from openai import AsyncOpenAI
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save
from torch import Tensor
from transformers import AutoModelForCausalLM

from livery import __version__
from livery.models import DEMO_MODEL, resolve_model
from livery_loadtest.origin import Origin, document, write_json

PROMPTS = [
    "Tell me about the sea.",
    "What should I cook tonight?",
    "Describe a walk in the mountains.",
    "Why do people read books?",
    "What makes a good friend?",
    "Tell me about a city you like.",
    "How does a garden grow?",
    "What happens in winter?",
    "Describe a morning at the market.",
    "Why is music important?",
    "Tell me about an old house.",
    "What do children play?",
]
HELD_OUT = ["Describe a storm.", "What is a library for?", "Tell me about horses.", "How do I learn to swim?"]
VOWELS = frozenset("aeiouAEIOU")
MOST_IMPORTANT = 2.0  # an importance weight's bound
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def reward(text: str) -> float:
    """The share of words that begin with a vowel; an answer without words has none."""
    words = [word.lstrip("\"'(*-") for word in text.split()]
    return sum(word[:1] in VOWELS for word in words) / len(words) if words else 0.0


@dataclass(frozen=True)
class Rollout:
    """One answer: token ids of prompt and answer, the log-probability of each of the answer's where it was drawn, and
    the fingerprint of the version that made it.
    """

    prompt: list[int]
    answer: list[int]
    logprobs: list[float]
    reward: float
    fingerprint: str


@dataclass
class Server:
    """The server's side of it: answers, and the adapter that makes them."""

    url: str
    key: str
    name: str
    base: str
    serving: str = ""  # the fingerprint of what was pushed last
    made: bool = False
    client: AsyncOpenAI = field(init=False)
    http: httpx.AsyncClient = field(init=False)

    def __post_init__(self) -> None:
        self.client = AsyncOpenAI(base_url=f"{self.url}/v1", api_key=self.key, timeout=300)
        headers = {"authorization": f"Bearer {self.key}"}
        self.http = httpx.AsyncClient(base_url=self.url, timeout=300, headers=headers)

    async def roll_out(self, prompt: str, answers: int, tokens: int, seed: int) -> list[Rollout]:
        """So many answers to one prompt, as the newest version gives them; before there is one, the base."""
        told = await self.client.chat.completions.create(
            model=self.name if self.made else self.base,
            messages=[{"role": "user", "content": prompt}],
            n=answers,
            max_tokens=tokens,
            temperature=1,
            seed=seed,
            logprobs=True,
            extra_body={"return_token_ids": True},
        )
        if self.serving and told.system_fingerprint != self.serving:
            raise SystemExit(f"{told.system_fingerprint} answered, and {self.serving} was pushed last")
        found = []
        for choice in told.choices:
            content = choice.logprobs.content if choice.logprobs else None
            ids: list[int] = choice.token_ids  # type: ignore[attr-defined]
            logprobs = [entry.logprob for entry in content or []]
            text = choice.message.content or ""
            prompt_ids: list[int] = told.prompt_token_ids  # type: ignore[attr-defined]
            found.append(Rollout(prompt_ids, ids, logprobs, reward(text), told.system_fingerprint or ""))
        return found

    async def push(self, weights: bytes, config: bytes) -> dict[str, Any]:
        """Make these the weights that answer from now on; the first ones bring the configuration along."""
        url = f"/v1/adapters/{self.name}/versions"
        if self.made:
            headers = {"content-type": "application/octet-stream"}
            answer = await self.http.post(url, params={"keep": 2}, content=weights, headers=headers)
        else:
            files = {"adapter_config.json": config, "adapter_model.safetensors": weights}
            parts = {name: (name, data) for name, data in files.items()}
            answer = await self.http.post(url, params={"keep": 2}, files=parts)
        if not answer.is_success:
            raise SystemExit(f"the weights were refused: {answer.json()['error']['message']}")
        told: dict[str, Any] = answer.json()["pushed"]
        self.made, self.serving = True, told["system_fingerprint"]
        return told

    async def first_token_s(self) -> float:
        """Seconds until a short request has its first token."""
        began, took = time.perf_counter(), 0.0
        body: dict[str, Any] = {"model": self.name, "prompt": "Once upon a time there was", "max_tokens": 1}
        async for event in await self.client.completions.create(**body, stream=True):
            took = took or time.perf_counter() - began
            if event.system_fingerprint != self.serving:
                raise SystemExit(f"{event.system_fingerprint} answered, and {self.serving} was pushed")
        return took


class Trainer:
    """The adapter in this process."""

    def __init__(self, model: str, rank: int, rate: float, seed: int) -> None:
        torch.manual_seed(seed)
        path = resolve_model(model).path
        base = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        layers = base.config.num_hidden_layers
        upper = list(range(layers // 2, layers))  # nothing is computed backwards below them
        config = LoraConfig(
            r=rank, lora_alpha=2 * rank, target_modules=TARGETS, layers_to_transform=upper, task_type="CAUSAL_LM"
        )
        self.model = get_peft_model(base, config)
        self.model.eval()  # no dropout: what is scored is what the server computes
        trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=rate)

    def step(self, rollouts: list[Rollout], advantages: list[float], rows: int = 8) -> dict[str, float]:
        """One step of policy gradient. Returns how far this process's log-probabilities are from the server's."""
        total = sum(len(rollout.answer) for rollout in rollouts)
        apart, weights = [], []
        self.optimizer.zero_grad()
        for start in range(0, len(rollouts), rows):
            group = rollouts[start : start + rows]
            loss = torch.zeros(())
            for rollout, own, advantage in zip(group, self._logprobs(group), advantages[start:], strict=False):
                drawn = torch.tensor(rollout.logprobs)
                ratio = (own.detach() - drawn).exp().clamp(max=MOST_IMPORTANT)
                loss = loss - (ratio * advantage * own).sum() / total
                apart.append((own.detach() - drawn).abs().max().item())
                weights.append(ratio.mean().item())
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return {"largest_difference": max(apart), "mean_importance": statistics.mean(weights)}

    def weights(self) -> bytes:
        """The adapter as a safetensors file."""
        tensors = {name: tensor.contiguous() for name, tensor in get_peft_model_state_dict(self.model).items()}
        return save(tensors, {"format": "pt"})

    def config(self) -> bytes:
        """Its adapter_config.json."""
        config = self.model.peft_config["default"].to_dict() | {"inference_mode": True}
        return json.dumps(config, default=sorted).encode()

    def _logprobs(self, rollouts: list[Rollout]) -> list[Tensor]:
        """Of the tokens of each answer, as the model gives them now."""
        longest = max(len(rollout.prompt) + len(rollout.answer) for rollout in rollouts)
        ids = torch.zeros(len(rollouts), longest, dtype=torch.long)
        for row, rollout in enumerate(rollouts):
            ids[row, : len(rollout.prompt) + len(rollout.answer)] = torch.tensor([*rollout.prompt, *rollout.answer])
        first = min(len(rollout.prompt) for rollout in rollouts)
        # Padding is on the right, where causal attention never looks; of the prompt's logits only the last are wanted.
        logits = self.model(input_ids=ids, logits_to_keep=longest - first + 1).logits
        scores = logits.log_softmax(-1)
        found = []
        for row, rollout in enumerate(rollouts):
            start, count = len(rollout.prompt) - first, len(rollout.answer)
            chosen = torch.tensor(rollout.answer)[:, None]
            found.append(scores[row, start : start + count].gather(-1, chosen)[:, 0])
        return found


def advantages_of(groups: list[list[Rollout]]) -> list[float]:
    """How much better each answer was than the others to its prompt, in standard deviations of all of them."""
    found = []
    for group in groups:
        total = sum(rollout.reward for rollout in group)
        for rollout in group:
            others = (total - rollout.reward) / max(1, len(group) - 1)
            found.append(rollout.reward - others)
    scale = statistics.pstdev(found) or 1.0
    return [value / scale for value in found]


async def rolled_out(server: Server, prompts: list[str], given: argparse.Namespace, seed: int) -> list[list[Rollout]]:
    """Answers to all prompts at once: they share batches on the server."""
    asked = [server.roll_out(prompt, given.answers, given.tokens, seed + place) for place, prompt in enumerate(prompts)]
    return await asyncio.gather(*asked)


def mean_reward(groups: list[list[Rollout]]) -> float:
    return statistics.mean(rollout.reward for group in groups for rollout in group)


async def train(server: Server, trainer: Trainer, given: argparse.Namespace, found: dict[str, Any]) -> None:
    """The loop: fills in `found`. Times are in seconds."""
    dice, began_all = random.Random(given.seed), time.perf_counter()
    before = mean_reward(await rolled_out(server, HELD_OUT, given, 1_000_000))
    rows = found["iterations"] = []
    found["held_out_before"] = before
    print(f"reward on prompts that aren't trained on: {before:.3f}", flush=True)
    for iteration in range(given.iterations):
        prompts = dice.sample(PROMPTS, given.prompts)
        began = time.perf_counter()
        groups = await rolled_out(server, prompts, given, 1000 * (iteration + 1))
        answered = time.perf_counter()
        rollouts, advantages = [one for group in groups for one in group], advantages_of(groups)
        for group in groups:
            for one in group:
                if len(one.logprobs) != len(one.answer):
                    raise SystemExit("an answer came without the log-probabilities of all its tokens")
        steps = [trainer.step(rollouts, advantages) for _ in range(given.steps)]
        stepped = time.perf_counter()
        pushed = await server.push(trainer.weights(), trainer.config())
        acknowledged = time.perf_counter()
        after, warm = await server.first_token_s(), await server.first_token_s()
        rows.append(
            {
                "iteration": iteration,
                "reward": mean_reward(groups),
                "version": pushed["version"],
                "rollout_s": answered - began,
                "step_s": stepped - answered,
                "push_s": acknowledged - stepped,
                "push_stages_s": pushed["seconds"],
                "first_token_s": after,
                "warm_first_token_s": warm,
                "tokens": sum(len(one.answer) for one in rollouts),
                "largest_logprob_difference": steps[0]["largest_difference"],
                "importance": [step["mean_importance"] for step in steps],
            }
        )
        print(
            f"{iteration:3d}  reward {rows[-1]['reward']:.3f}  rollout {answered - began:5.1f} s  step "
            f"{stepped - answered:5.1f} s  push {1e3 * (acknowledged - stepped):4.0f} ms  first token "
            f"{1e3 * after:4.0f} ms (warm {1e3 * warm:.0f})  log-probabilities within "
            f"{rows[-1]['largest_logprob_difference']:.1e}",
            flush=True,
        )
        found["seconds"] = time.perf_counter() - began_all
        write(found, given.out)
    found["held_out_after"] = mean_reward(await rolled_out(server, HELD_OUT, given, 1_000_000))
    print(
        f"reward on prompts that aren't trained on: {found['held_out_after']:.3f}, and {before:.3f} before", flush=True
    )
    write(found, given.out)


def write(found: dict[str, Any], out: Path | None) -> None:
    """What there is so far."""
    if out is not None:
        rewards = [row["reward"] for row in found["iterations"]]
        write_json(found, out.with_suffix(".json"))
        out.with_suffix(".svg").write_text(curve(rewards, found["held_out_before"], found.get("held_out_after")))


def curve(rewards: list[float], before: float, after: float | None) -> str:
    """The rewards of iterations as an SVG document, and as dashed lines those on other prompts before and after."""
    others = [(before, "before", "#64748b"), *([] if after is None else [(after, "after", "#15803d")])]
    width, height, left, top = 640, 320, 60, 40
    step = (width - left - 20) / max(1, len(rewards) - 1)

    def at(value: float) -> float:
        return height - 50 - (height - 50 - top) * value  # rewards are shares

    points = " ".join(f"{left + step * place:.1f},{at(value):.1f}" for place, value in enumerate(rewards))
    ticks = [part / 4 for part in range(5)]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{left}" y="22" font-size="14" font-weight="bold">Mean reward of an iteration\'s answers</text>',
        *(
            f'<line x1="{left}" x2="{width - 20}" y1="{at(tick):.1f}" y2="{at(tick):.1f}" stroke="#ddd"/>'
            f'<text x="{left - 8}" y="{at(tick) + 4:.1f}" text-anchor="end">{tick:.2f}</text>'
            for tick in ticks
        ),
        *(
            f'<line x1="{left}" x2="{width - 20}" y1="{at(value):.1f}" y2="{at(value):.1f}" stroke="{colour}" '
            f'stroke-dasharray="5 4"/><text x="{width - 24}" y="{at(value) - 5:.1f}" text-anchor="end" fill="{colour}">'
            f"other prompts, {when}: {value:.2f}</text>"
            for value, when, colour in others
        ),
        f'<polyline points="{points}" fill="none" stroke="#1d4ed8" stroke-width="2"/>',
        f'<text x="{(left + width) / 2}" y="{height - 14}" text-anchor="middle">'
        f"iteration (0 to {len(rewards) - 1})</text>",
    ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server (default: %(default)s)")
    parser.add_argument("--key", default="none", help="an owner's key, where the server asks for one")
    parser.add_argument("--name", default="policy", help="what the adapter is called (default: %(default)s)")
    parser.add_argument("--model", default=DEMO_MODEL, help="the server's base model (default: %(default)s)")
    parser.add_argument("--iterations", type=int, default=12)
    parser.add_argument("--prompts", type=int, default=4, help="of one iteration")
    parser.add_argument("--answers", type=int, default=6, help="to each prompt")
    parser.add_argument("--tokens", type=int, default=24, help="of an answer, at most")
    parser.add_argument("--steps", type=int, default=2, help="of gradient descent on one iteration's answers")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rate", type=float, default=1e-3, help="Adam's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="OUT.json and OUT.svg are written")
    given = parser.parse_args()

    here = ("url", "key", "out")
    options = {name: str(value) for name, value in vars(given).items() if name not in here}
    origin = Origin.here(f"livery {__version__}")
    if given.key != parser.get_default("key"):  # the command is written down, and a key isn't
        origin = replace(origin, command=origin.command.replace(given.key, "…"))
    found = document("livery-reinforce/1", origin, ["torch", "peft", "openai"], {"options": options})

    async def run() -> None:
        url = given.url.rstrip("/")
        base = httpx.get(f"{url}/v1/models", headers={"authorization": f"Bearer {given.key}"}).json()["data"][0]["id"]
        server = Server(url, given.key, given.name, base)
        await train(server, Trainer(given.model, given.rank, given.rate, given.seed), given, found)

    asyncio.run(run())


if __name__ == "__main__":
    main()
