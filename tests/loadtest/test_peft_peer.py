"""The plain loop around PEFT, in both of its ways, against PEFT's own forward, one request at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import torch
from openai import AsyncOpenAI
from peft import LoraConfig, PeftModel
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.families import LLAMA_LINEAR
from engine.oracle import save_adapter
from livery_loadtest.peers.peft import VARIABLES, peft_command
from livery_loadtest.peers.peft_server import Job, PlainLoop
from livery_loadtest.servers import LaunchedServer, LaunchSpec, free_port
from server.running import tiny_model

pytestmark = pytest.mark.bench

PROMPT = "The best way to spend a quiet evening"
TOKENS = 6


@dataclass(frozen=True)
class Peers:
    base: Path
    adapters: dict[str, Path]
    urls: dict[str, str]


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peers]:
    folder = tmp_path_factory.mktemp("peft-peer")
    base = tiny_model(folder / "tiny")
    config = LoraConfig(r=4, target_modules=LLAMA_LINEAR, task_type="CAUSAL_LM")
    adapters = {name: save_adapter(base, folder / name, seed, config) for seed, name in enumerate(("red", "blue"))}
    with ExitStack() as stack:
        urls = {}
        for way in ("mixed", "merged"):
            port = free_port()
            command = peft_command(base, "tiny", port, adapters, way == "merged", 8)
            url = f"http://127.0.0.1:{port}"
            spec = LaunchSpec(way, command, url, folder / f"{way}.log", VARIABLES, expects=frozenset(adapters))
            stack.enter_context(LaunchedServer(spec)).wait_ready(120, Console(stderr=True))
            urls[way] = url
        yield Peers(base, adapters, urls)


def greedy(base: Path, adapter: Path | None, prompt: str) -> str:
    """What the oracle says, token by token, without a cache."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    ids = tokenizer(prompt)["input_ids"]
    prompt_length = len(ids)
    with torch.inference_mode():
        for _ in range(TOKENS):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return str(tokenizer.decode(ids[prompt_length:]))


@pytest.mark.parametrize("way", ["mixed", "merged"])
async def test_answers_under_every_adapter_at_once_are_those_of_peft(peers: Peers, way: str) -> None:
    asked = [(name, prompt) for name in ("tiny", "red", "blue") for prompt in (PROMPT, PROMPT + " at home")]

    async def answer(model: str, prompt: str) -> str:
        stream = await client.completions.create(
            model=model, prompt=prompt, max_tokens=TOKENS, stream=True, extra_body={"ignore_eos": True}
        )
        return "".join([chunk.choices[0].text async for chunk in stream if chunk.choices])

    async with AsyncOpenAI(base_url=f"{peers.urls[way]}/v1", api_key="none") as client:
        answers = await asyncio.gather(*(answer(*one) for one in asked))
    expected = [greedy(peers.base, peers.adapters.get(model), prompt) for model, prompt in asked]
    assert answers == expected
    assert len({text for text, (_, prompt) in zip(answers, asked, strict=True) if prompt == PROMPT}) == 3


def test_in_bf16_base_and_adapters_are_and_an_answer_is_that_of_peft(peers: Peers) -> None:
    """On a GPU all peers compute in bf16; the same code does so on a CPU."""
    loop = PlainLoop(peers.base, peers.adapters, merge=False, batch=8, dtype=torch.bfloat16)
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(peers.base, dtype=torch.bfloat16),
        str(peers.adapters["red"]),
        autocast_adapter_dtype=False,
    )
    assert {weights.dtype for weights in loop.model.parameters()} == {torch.bfloat16}
    assert {name: one.dtype for name, one in loop.model.named_buffers()}.items() >= {
        name: one.dtype for name, one in model.named_buffers()
    }.items(), "what turns positions stays as transformers has it"
    ids = loop.tokenizer(PROMPT)["input_ids"]
    said: list[int] = []
    events = asyncio.new_event_loop()
    job = Job("red", ids, TOKENS, True, asyncio.Queue(), events)
    with torch.inference_mode(), loop.applied([job]) as names:
        loop.generate([job], names)
    events.run_until_complete(asyncio.sleep(0))
    while (token := job.tokens.get_nowait()) is not None:
        said.append(token)
    events.close()
    model.generation_config.eos_token_id = None
    whole = model.generate(input_ids=torch.tensor([ids]), max_new_tokens=TOKENS, do_sample=False)
    assert said == whole[0, len(ids) :].tolist()


async def test_usage_and_the_end_of_an_answer_are_told(peers: Peers) -> None:
    body = {"model": "red", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3, "ignore_eos": True}
    async with httpx.AsyncClient() as client:
        answer = await client.post(f"{peers.urls['mixed']}/v1/chat/completions", json=body)
        unknown = await client.post(f"{peers.urls['mixed']}/v1/completions", json={"model": "none", "prompt": "x"})
    assert '"completion_tokens": 3' in answer.text
    assert '"finish_reason": "length"' in answer.text
    assert answer.text.endswith("data: [DONE]\n\n")
    assert unknown.status_code == 404
