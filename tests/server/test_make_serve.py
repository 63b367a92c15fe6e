"""What `make serve` promises: the printed commands work as printed, and every demo adapter answers by its name."""

from __future__ import annotations

import asyncio
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import AsyncOpenAI, OpenAI

from server.running import RunningServer, livery_serve

DEMO = Path(__file__).parents[2] / "adapters" / "demo"
NAMES = sorted(folder.parent.name for folder in DEMO.glob("*/adapter_config.json"))
QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with livery_serve("smollm2-135m-instruct", DEMO, tmp_path_factory.mktemp("demo"), "--max-model-len", "512") as it:
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
