"""A real server whose clients leave at any moment, and whose engine is lost: nothing is left over, and it goes on."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from peft import LoraConfig

from chaos import common
from chaos.disconnects import is_idle, storm
from engine.oracle import save_adapter
from livery_adapters.manifest import read_manifest
from server.running import SMALL, RunningServer, livery_serve, tiny_model

pytestmark = pytest.mark.skipif(not common.PROC.is_dir(), reason="finds processes in /proc")

DISCONNECTS = 60
SEED = 20
KNOBS = ("--max-adapter-bytes", "64KiB", "--keep-alive", "2")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("life")
    model, adapters = tiny_model(folder / "tiny"), folder / "adapters"
    save_adapter(model, adapters / "pirate", 1, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    with livery_serve(model, adapters, folder, "--threads", "1", "--max-running", "4", *KNOBS, *SMALL) as server:
        yield server


def complete(server: RunningServer, **fields: object) -> httpx.Response:
    body = {"model": "", "prompt": [5, 6, 7], "max_tokens": 4, "temperature": 0, "ignore_eos": True, **fields}
    return httpx.post(f"{server.url}/v1/completions", json=body, timeout=120)


def test_an_adapter_over_the_servers_limit_is_refused_by_its_knob(server: RunningServer, tmp_path: Path) -> None:
    config = LoraConfig(r=128, target_modules=["q_proj", "v_proj"])
    large = save_adapter(server.log.parent / "tiny", tmp_path / "large", 2, config)
    parts = {name: (large / name).read_bytes() for name in ("adapter_config.json", "adapter_model.safetensors")}
    assert len(parts["adapter_model.safetensors"]) > 64 << 10
    refused = httpx.post(f"{server.url}/v1/adapters/large/versions", files=parts, timeout=60)
    assert refused.json()["error"]["code"] == "too_large"
    assert "over the limit of 65536 bytes; raise --max-adapter-bytes" in refused.json()["error"]["message"]


def test_an_idle_connection_is_closed_after_the_knobs_time(server: RunningServer) -> None:
    place = urlsplit(server.url)
    with socket.create_connection((place.hostname, place.port), timeout=60) as idle:
        idle.sendall(b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
        while idle.recv(1 << 16):
            pass  # until the server closes it, long before its usual 75 s


def test_nothing_is_left_of_clients_that_leave(server: RunningServer) -> None:
    storm(server.url, SEED + 1, 20)  # what is started once: pools, the process that tries grammars
    assert common.until(lambda: is_idle(server.url), 60) is not None
    before = common.descriptors(server.pid)
    left = storm(server.url, SEED, DISCONNECTS)
    assert left.total() == DISCONNECTS
    assert len(left) >= 8, left
    assert common.until(lambda: is_idle(server.url), 60) is not None, common.gauges(server.url)
    assert common.until(lambda: common.descriptors(server.pid) <= before + 2, 60) is not None
    assert complete(server).status_code == 200
    assert "Traceback" not in server.log.read_text()


def test_a_server_goes_on_with_another_engine(server: RunningServer) -> None:
    version = read_manifest(server.log.parent / "adapters" / "pirate").digest[:12]
    before = complete(server, model="pirate")
    counted = common.gauges(server.url)
    assert before.headers["x-livery-adapter"] == f"pirate@{version}"
    answers: list[httpx.Response] = []
    threads = [threading.Thread(target=lambda: answers.append(complete(server, max_tokens=240, n=8))) for _ in range(4)]
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        body = {"n": 8, "ignore_eos": True}
        stream = client.completions.create(model="pirate", prompt=[5, 6], max_tokens=240, stream=True, extra_body=body)
        next(iter(stream))
        for thread in threads:
            thread.start()
        os.kill(common.engine_of(server.pid), signal.SIGKILL)
        with pytest.raises(openai.APIError) as told:
            list(stream)
    assert told.value.code == "engine_restarting"
    scrape_while_away(server.url)
    for thread in threads:
        thread.join(120)
    for answer in answers:
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "engine_restarting"
        assert int(answer.headers["retry-after"]) >= 1
    assert common.until(lambda: httpx.get(f"{server.url}/ready", timeout=30).status_code == 200, 120) is not None
    assert httpx.get(f"{server.url}/health", timeout=30).json() == {"status": "ok"}
    after = complete(server, model="pirate")
    assert after.json()["choices"] == before.json()["choices"]
    assert after.headers["x-livery-adapter"] == before.headers["x-livery-adapter"]
    now = common.gauges(server.url)
    assert now["livery_engine_restarts_total"] == counted["livery_engine_restarts_total"] + 1 == 1
    for name in ("vllm:generation_tokens_total", "vllm:e2e_request_latency_seconds_count"):
        assert now[name] >= counted[name] > 0, name
    assert "vllm:lora_requests_info" in now
    assert is_idle(server.url)


def scrape_while_away(url: str) -> None:
    """While there is no engine a scrape tells what is known without it."""
    away = httpx.get(f"{url}/metrics", timeout=30)
    assert away.status_code == 200
    assert "\nlivery_ready 0" in away.text
    assert 'livery_adapter_requests_total{adapter="pirate",outcome="length"}' in away.text
