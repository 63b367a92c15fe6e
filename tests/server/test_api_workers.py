"""Several processes on one engine: what one of them is told, counts or holds is the whole server's.

Over the real engine; what needs tokens at chosen moments is in test_api_workers_faults.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from peft import LoraConfig

from chaos import common
from chaos.common import PROC
from engine.oracle import save_adapter
from server.running import livery_serve, tiny_model
from server.worker_processes import PATIENCE_S, STOPPABLE, Workers, only, state_of, stop, until
from service.few_descriptors import at_most

pytestmark = pytest.mark.skipif(not PROC.is_dir(), reason="looks at processes in /proc")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    """Over a real engine. Told to stop at the end, it ends well."""
    folder = tmp_path_factory.mktemp("workers")
    model, adapters = tiny_model(folder / "tiny"), folder / "adapters"
    for seed in (1, 2, 3):
        save_adapter(model, adapters / ".pool" / str(seed), seed, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    flags = ("--api-workers", "2", "--threads", "1", "--log-format", "json", *STOPPABLE)
    with at_most(1000), livery_serve(model, adapters, folder, *flags) as running:
        workers = Workers(running.process, lambda: httpx.Client(base_url=running.url), folder)
        pids = workers.pids
        yield workers
    assert [state_of(pid) for pid in pids] == ["", ""]


def test_every_process_may_open_as_many_files_as_the_system_allows(server: Workers) -> None:
    for pid in (server.process.pid, *server.pids, common.engine_of(server.process.pid)):
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        assert soft == hard > 1000


def test_what_each_worker_did_is_told_by_every_one(server: Workers) -> None:
    pids, before, texts = server.pids, server.series(), set()
    for pid in pids:
        with only(pid, *pids):
            answer = server.ask().json()
        assert answer["usage"]["completion_tokens"] == 3
        texts.add(answer["choices"][0]["text"])
    assert len(texts) == 1, "one engine computes for both"
    told = server.status()  # each says what it counted; those that are stopped next couldn't
    assert [one["generated_tokens"] for one in told["requests"]] == [3, 3]
    for pid in pids:
        with only(pid, *pids):
            found = server.series()
        grown = {name: value - before.get(name, 0) for name, value in found.items()}
        assert grown["vllm:generation_tokens_total"] == 6
        assert grown["vllm:prompt_tokens_total"] == 4
        assert grown["vllm:e2e_request_latency_seconds_count"] == grown["vllm:time_to_first_token_seconds_count"] == 2
        assert found["livery_api_workers"] == 2
    lines = [json.loads(line) for line in server.log.read_text().splitlines() if "livery.access" in line]
    assert {line["worker"] for line in lines if line["route"] == "/v1/completions"} == {0, 1}


def test_what_one_worker_changes_the_others_know_before_it_answers(server: Workers) -> None:
    one, other = server.pids
    for here, there in ((one, other), (other, one)):
        put = server.call("PUT", "/v1/adapters/pirate", json={"source": ".pool/1"})
        assert put.is_success, put.text
        with only(here, one, other):
            assert server.ask("pirate").headers["x-livery-adapter"].startswith("pirate@")
        with only(there, one, other):
            assert server.ask("pirate").is_success
        assert server.call("DELETE", "/v1/adapters/pirate").status_code == 200
        for pid in (here, there):
            with only(pid, one, other):
                gone = server.ask("pirate")
                assert gone.status_code == 404, (pid, gone.text, server.log.read_text()[-3000:])


def test_new_weights_hold_in_every_worker_once_they_are_acknowledged(server: Workers) -> None:
    put = server.call("PUT", "/v1/adapters/policy", json={"source": ".pool/1"})
    assert put.is_success, put.text
    pids = server.pids
    for which in ("2", "3"):
        pushed = push(server, which)
        for pid in pids:
            with only(pid, *pids):
                assert server.ask("policy").json()["system_fingerprint"] == pushed["system_fingerprint"]


def test_what_runs_on_older_weights_ends_in_every_worker(server: Workers) -> None:
    """The engine stands still while weights that it has run before take the place of others."""
    for which in ("1", "2"):
        assert server.call("PUT", "/v1/adapters/rolled", json={"source": f".pool/{which}"}).is_success
    engine, pids = common.engine_of(server.process.pid), server.pids
    with ThreadPoolExecutor(2) as pool, ExitStack() as undo:
        undo.callback(os.kill, engine, signal.SIGCONT)
        answers = []
        for pid in pids:
            os.kill(engine, signal.SIGCONT)
            begun = threading.Event()
            with only(pid, *pids):
                answers.append(pool.submit(last_choice, server, "rolled", begun))
                assert begun.wait(PATIENCE_S)
                stop(engine)
        push(server, "1", name="rolled", running="abort")
        os.kill(engine, signal.SIGCONT)
        for answer in answers:
            choice = answer.result(PATIENCE_S)
            assert (choice["finish_reason"], choice["stop_reason"]) == ("abort", "adapter_replaced")


def push(server: Workers, which: str, name: str = "policy", **params: str) -> dict[str, Any]:
    """New weights of an adapter, those of one in the pool."""
    weights = (server.data.parent / "adapters" / ".pool" / which / "adapter_model.safetensors").read_bytes()
    with server.connect() as client:
        headers = {"content-type": "application/octet-stream"}
        path = f"/v1/adapters/{name}/versions"
        answer = client.post(path, params=params, content=weights, headers=headers, timeout=60)
    assert answer.is_success, answer.text
    found: dict[str, Any] = answer.json()["pushed"]
    return found


def last_choice(server: Workers, model: str, begun: threading.Event) -> dict[str, Any]:
    """What a long stream says at its end; `begun` is set with its first event."""
    body = {"model": model, "prompt": [3, 4], "max_tokens": 240, "ignore_eos": True, "stream": True}
    choice: dict[str, Any] = {}
    with server.connect() as client, client.stream("POST", "/v1/completions", json=body, timeout=60) as events:
        for line in events.iter_lines():
            if line.startswith("data: {"):
                choice = json.loads(line.removeprefix("data: "))["choices"][0]
                begun.set()
    return choice


def test_streams_of_both_are_told_that_the_engine_is_lost_and_both_serve_again(server: Workers) -> None:
    pids, names = server.pids, ("pirate", "")
    assert server.call("PUT", "/v1/adapters/pirate", json={"source": ".pool/1"}).is_success
    before = [server.ask(name) for name in names]
    streams = [server.stream(pid, "pirate", max_tokens=240, n=8) for pid in pids]
    os.kill(common.engine_of(server.process.pid), signal.SIGKILL)
    for stream in streams:
        assert json.loads(stream.rest())["error"]["code"] == "engine_restarting"
    for pid in pids:
        with only(pid, *pids):
            until(lambda: server.call("GET", "/ready").status_code == 200, "each is ready again")
            after = [server.ask(name) for name in names]
        assert [answer.json()["choices"] for answer in after] == [answer.json()["choices"] for answer in before]
        assert after[0].headers["x-livery-adapter"] == before[0].headers["x-livery-adapter"]
    assert server.pids == pids
    assert server.series()["livery_engine_restarts_total"] == 1
