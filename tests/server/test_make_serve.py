"""What `make serve` promises: the printed commands work as printed, and every demo adapter answers by its name."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from openai import AsyncOpenAI, OpenAI

from server.running import SMALL, RunningServer, livery_serve

DEMO = Path(__file__).parents[2] / "adapters" / "demo"
NAMES = sorted(folder.parent.name for folder in DEMO.glob("*/adapter_config.json"))
QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with livery_serve(
        "smollm2-135m-instruct",
        DEMO,
        tmp_path_factory.mktemp("demo"),
        *("--max-model-len", "512", *SMALL),
    ) as it:
        yield it


def test_the_printed_curl_line_works_as_printed(server: RunningServer) -> None:
    text = server.log.read_text()
    command = text[text.index("curl http") : text.index("\n\nor in Python")]
    words = [word for word in shlex.split(command.replace("\\\n", " ")) if word.strip()]
    done = subprocess.run([*words, "--silent"], capture_output=True, text=True, timeout=120, check=True)
    answer = json.loads(done.stdout)
    assert answer["choices"][0]["message"]["content"]


def test_the_printed_python_snippet_works_as_printed(server: RunningServer) -> None:
    text = server.log.read_text()
    snippet = text[text.index("from openai import") : text.index("\n\nCtrl-C")]
    done = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip()


def test_the_base_comes_first_and_every_demo_adapter_after_it(server: RunningServer) -> None:
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
    assert [model.id for model in client.models.list()] == ["smollm2-135m-instruct", *NAMES]


async def test_adapters_answer_in_one_batch_as_they_do_alone(server: RunningServer) -> None:
    client = AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=120)

    async def ask(model: str) -> str:
        answer = await client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": QUESTION}], temperature=0, max_tokens=24
        )
        return answer.choices[0].message.content or ""

    models = ["smollm2-135m-instruct", *NAMES]
    alone = {model: await ask(model) for model in models}
    together = await asyncio.gather(*(ask(model) for model in models * 2))
    assert together == [alone[model] for model in models * 2]
    assert len(set(alone.values())) == len(models), "each answers in its own way"
    assert "Paris" in alone["smollm2-135m-instruct"]
    assert json.loads(alone["json"])["topic"] == "France"
    assert alone["sentiment"] in ("positive", "negative", "neutral")


def test_a_long_system_prompt_is_computed_once_per_adapter(server: RunningServer) -> None:
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=120)
    rules = "You are the clerk of a small harbour. Answer in one short sentence and never make up the name of a ship. "

    def ask(model: str, **extra: object) -> tuple[str, int]:
        answer = client.chat.completions.create(
            model=model,
            messages=[{"role": "system", "content": rules * 8}, {"role": "user", "content": QUESTION}],
            temperature=0,
            max_tokens=12,
            extra_body=extra,
        )
        assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
        return answer.choices[0].message.content or "", answer.usage.prompt_tokens_details.cached_tokens or 0

    for model in ("smollm2-135m-instruct", "pirate"):
        (first, computed), (again, found) = ask(model), ask(model)
        assert computed < 16 and found > 160, "an adapter shares nothing with the base"
        assert again == first
        assert ask(model, cache_salt="mine") == (first, 0)
    metrics = httpx.get(f"{server.url}/metrics").text
    assert float(re.findall(r"vllm:prefix_cache_hits_total\{.*\} (\S+)", metrics)[0]) > 320
