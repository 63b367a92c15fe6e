"""A whole server with `--engine vllm`, asked by the official client: names, errors, a lost engine, and the end."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from peft import IA3Config, LoraConfig

from engine.oracle import save_tuned
from engine_vllm.both import DEMO, MODEL, check_greedy, ids
from server.running import RunningServer, livery_serve

pytestmark = pytest.mark.vllm

PROMPT = "The weather today is"
BACK_S = 240


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("over-vllm")
    adapters = folder / "adapters"
    for name in ("pirate", "sql"):
        shutil.copytree(DEMO / name, adapters / name)
    flags = ("--engine", "vllm", "--kv-memory", "256MiB", "--max-model-len", "512", "--max-running", "8")
    with livery_serve(MODEL, adapters, folder, *flags, "--vllm-arg", "enforce_eager=true") as running:
        yield running


def client(server: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120)


def engine_core(server: RunningServer) -> psutil.Process:
    """vLLM names its process after what it is."""
    children = psutil.Process(server.pid).children()
    (found,) = [child for child in children if "EngineCore" in " ".join([child.name(), *child.cmdline()])]
    return found


def test_each_name_answers_as_peft_does(server: RunningServer) -> None:
    asked: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 12, "temperature": 0}
    body = {"return_token_ids": True, "ignore_eos": True}
    for name, judged in ((MODEL.name, None), ("pirate", "pirate"), ("sql", "sql")):
        answer = client(server).completions.with_raw_response.create(model=name, **asked, extra_body=body)
        choice: Any = answer.parse().choices[0]
        check_greedy(judged, ids(PROMPT), choice.token_ids)
        if judged:
            assert answer.headers["x-livery-adapter"].startswith(f"{judged}@")


def test_chats_stream_and_hold_to_a_schema(server: RunningServer) -> None:
    messages: Any = [{"role": "user", "content": "What is the capital of France?"}]
    stream = client(server).chat.completions.create(
        model="pirate", messages=messages, temperature=0, max_tokens=24, stream=True
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert "Paris" in text
    schema = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 8}}, "required": ["city"]}
    held: Any = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    answer = client(server).chat.completions.create(
        model=MODEL.name, messages=messages, temperature=0, max_tokens=60, response_format=held
    )
    assert answer.choices[0].message.content is not None and '"city"' in answer.choices[0].message.content


def test_what_is_not_there_is_a_400_with_words(server: RunningServer) -> None:
    with pytest.raises(openai.BadRequestError, match="--engine livery"):
        client(server).embeddings.create(model=MODEL.name, input="text")
    with pytest.raises(openai.BadRequestError, match="temperature is 0"):
        client(server).completions.create(model=MODEL.name, prompt=PROMPT, temperature=0.001)
    with pytest.raises(openai.NotFoundError):
        client(server).completions.create(model="nobody", prompt=PROMPT)
    assert httpx.post(f"{server.url}/v1/load_lora_adapter/none").status_code in (404, 405)


def test_adapters_are_taken_in_or_refused_with_the_remedy(server: RunningServer, tmp_path: Path) -> None:
    good = LoraConfig(r=8, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")
    bad = IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM")
    for name, config in (("good", good), ("bad", bad)):
        folder = save_tuned(MODEL, tmp_path / name, 5, config, 0.05)
        files = {part: (folder / part).read_bytes() for part in ("adapter_config.json", "adapter_model.safetensors")}
        answer = httpx.post(f"{server.url}/v1/adapters/{name}/versions", files=files, timeout=120)
        if name == "good":
            assert answer.status_code in (200, 201), answer.text
            asked = client(server).completions.create(model="good", prompt=PROMPT, max_tokens=4)
            assert asked.choices[0].finish_reason == "length"
        else:
            assert answer.status_code == 422 and "--engine livery" in answer.text, answer.text
    assert httpx.delete(f"{server.url}/v1/adapters/good", timeout=60).status_code in (200, 204)


def test_a_killed_engine_is_an_error_for_each_and_comes_back(server: RunningServer) -> None:
    asked: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 12, "temperature": 0}
    before = client(server).completions.create(model="pirate", **asked).choices[0].text
    stream = client(server).completions.create(
        model="pirate", prompt=PROMPT, max_tokens=400, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    engine_core(server).kill()
    with pytest.raises(openai.APIError) as told:
        list(stream)
    assert told.value.code == "engine_restarting"
    refused = httpx.post(f"{server.url}/v1/completions", json={"model": "pirate", "prompt": "x"}, timeout=30)
    assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
    until = time.monotonic() + BACK_S
    while httpx.get(f"{server.url}/ready", timeout=30).status_code != 200:
        assert time.monotonic() < until, server.log.read_text()[-3000:]
        time.sleep(0.5)
    assert client(server).completions.create(model="pirate", **asked).choices[0].text == before


def test_a_server_that_ends_leaves_no_process(tmp_path: Path) -> None:
    flags = ("--engine", "vllm", "--kv-memory", "64MiB", "--max-model-len", "256", "--vllm-arg", "enforce_eager=true")
    with livery_serve(MODEL, tmp_path_empty(tmp_path), tmp_path, *flags) as running:
        children = psutil.Process(running.pid).children(recursive=True)
        assert children
    gone, alive = psutil.wait_procs(children, timeout=30)
    assert len(gone) == len(children) and not alive


def test_a_server_that_is_killed_leaves_no_process(tmp_path: Path) -> None:
    """What is out of memory, or killed by an orchestrator, can end nothing itself; vLLM holds the device's memory."""
    flags = ("--engine", "vllm", "--kv-memory", "64MiB", "--max-model-len", "256", "--vllm-arg", "enforce_eager=true")
    empty, status = tmp_path_empty(tmp_path), -signal.SIGKILL
    with livery_serve(MODEL, empty, tmp_path, *flags, ends_with=status) as running:
        children = psutil.Process(running.pid).children(recursive=True)
        assert engine_core(running) in children
        running.process.kill()
    gone, alive = psutil.wait_procs(children, timeout=30)
    assert len(gone) == len(children) and not alive


def tmp_path_empty(folder: Path) -> Path:
    (folder / "adapters").mkdir()
    return folder / "adapters"
