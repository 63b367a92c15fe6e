"""Several processes on one engine: what one of them is told, counts or holds is the whole server's.

Which worker answers is settled by stopping the others: connections wait in the socket that all of them share.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from peft import LoraConfig

from chaos import common
from chaos.common import PROC
from cli.processes import serving, url_in
from engine.oracle import save_adapter
from livery.data_folder import DataFolder
from livery.tenancy import TenantStore
from server.running import livery_serve, tiny_model

pytestmark = pytest.mark.skipif(not PROC.is_dir(), reason="looks at processes in /proc")

PATIENCE_S = 60.0
TOKENS = 240  # of a stream: more than are let out until all have begun


class Workers:
    """A server of two workers."""

    def __init__(self, process: subprocess.Popen[str], url: str, folder: Path) -> None:
        self.process, self.url, self.data, self.log = process, url, folder / "data", folder / "server.log"
        self.headers: dict[str, str] = {}

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{self.url}/v1/status", headers=self.headers, timeout=30).json()
        return found

    @property
    def pids(self) -> list[int]:
        return [worker["pid"] for worker in self.status()["server"]["workers"]]

    def series(self) -> dict[str, float]:
        text = httpx.get(f"{self.url}/metrics", headers=self.headers, timeout=30).text
        lines = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in lines}

    def step(self, tokens: int) -> None:
        """Have a fake engine that waits for it let out so many tokens."""
        assert self.process.stdin is not None
        self.process.stdin.write("t" * tokens)
        self.process.stdin.flush()

    def ask(self, model: str = "", **more: Any) -> httpx.Response:
        body = {"model": model, "prompt": [3, 4], "max_tokens": 3, "temperature": 0, "ignore_eos": True, **more}
        return httpx.post(f"{self.url}/v1/completions", json=body, headers=self.headers, timeout=30)

    def stream(self, key: str = "none") -> openai.Stream[Any]:
        """A stream that has begun, as do all that are open: clients see nothing of it before its first token."""
        client = openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)
        with ThreadPoolExecutor(1) as aside:
            asked = aside.submit(client.completions.create, model="", prompt=[3, 4], max_tokens=TOKENS, stream=True)
            while not wait([asked], timeout=0.1).done:
                self.step(4)
            return asked.result()

    def finish(self, *streams: openai.Stream[Any]) -> None:
        """Let them come to their ends."""
        self.step(TOKENS * len(streams))
        for stream in streams:
            assert [one.choices[0].finish_reason for one in stream][-1] == "length"


@contextmanager
def over_fake_engine(folder: Path, *flags: str) -> Iterator[Workers]:
    """Its engine lets out a token for each that it is told to."""
    (folder / "adapters").mkdir()
    quietly = ("--log-level", "error")  # a full pipe stops whoever writes
    flags = ("--api-workers", "2", *quietly, *flags)
    with serving(folder / "adapters", folder / "data", *flags, FAKE_STEPPED="1") as (process, printed):
        yield Workers(process, url_in(printed), folder)


@contextmanager
def only(pid: int, *others: int) -> Iterator[None]:
    """Nobody but this worker runs: it answers whoever comes."""
    stopped = [other for other in others if other != pid]
    for other in stopped:
        os.kill(other, signal.SIGSTOP)
        until(lambda one=other: state_of(one) == "T", "the others are stopped")
    try:
        yield
    finally:
        for other in stopped:
            os.kill(other, signal.SIGCONT)


def state_of(pid: int) -> str:
    """As in /proc; "" for a process that is gone."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, f"still not: {what}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    """Over a real engine; the last test ends it."""
    folder = tmp_path_factory.mktemp("workers")
    model, adapters = tiny_model(folder / "tiny"), folder / "adapters"
    save_adapter(model, adapters / ".pool" / "1", 1, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    flags = ("--api-workers", "2", "--threads", "1", "--log-format", "json", "--hang-timeout", "2")
    with livery_serve(model, adapters, folder, *flags, ends_with=-signal.SIGKILL) as running:
        yield Workers(running.process, running.url, folder)


def test_what_each_worker_did_is_told_by_every_one(server: Workers) -> None:
    pids, before, texts = server.pids, server.series(), set()
    for pid in pids:
        with only(pid, *pids):
            answer = server.ask().json()
        assert answer["usage"]["completion_tokens"] == 3
        texts.add(answer["choices"][0]["text"])
    assert len(texts) == 1, "one engine computes for both"
    labels = f'{{engine="0",model_name="{server.status()["base"]["name"]}"}}'
    for pid in pids:
        found, told = server.series(), server.status()
        assert found[f"vllm:generation_tokens_total{labels}"] == before[f"vllm:generation_tokens_total{labels}"] + 6
        for name in ("vllm:e2e_request_latency_seconds_count", "vllm:time_to_first_token_seconds_count"):
            assert found[f"{name}{labels}"] == before[f"{name}{labels}"] + 2
        assert [one["generated_tokens"] for one in told["requests"][:2]] == [3, 3]
        with only(pid, *pids):
            assert server.status()["requests"][0]["id"] == told["requests"][0]["id"], "whichever is asked"
    assert found["livery_api_workers"] == 2
    lines = [json.loads(line) for line in server.log.read_text().splitlines() if "livery.access" in line]
    assert {line["worker"] for line in lines if line["route"] == "/v1/completions"} == {0, 1}


def test_an_adapter_added_by_one_worker_is_served_by_the_other(server: Workers) -> None:
    one, other = server.pids
    with only(one, one, other):
        put = httpx.put(f"{server.url}/v1/adapters/pirate", json={"source": ".pool/1"}, timeout=30)
        assert put.is_success, put.text
        digest = server.ask("pirate").headers["x-livery-adapter"]
    with only(other, one, other):
        until(lambda: server.ask("pirate").headers.get("x-livery-adapter") == digest, "the other serves it as well")
        assert httpx.delete(f"{server.url}/v1/adapters/pirate").is_success
    with only(one, one, other):
        until(lambda: server.ask("pirate").status_code == 404, "what is deleted is gone everywhere")


def test_room_and_limits_hold_over_all_workers(tmp_path: Path) -> None:
    with over_fake_engine(tmp_path, "--max-open", "3") as server:
        pids = server.pids
        with closing(TenantStore.open(DataFolder(server.data).tenants_url(None))) as tenants:
            made, key, _ = tenants.create_key("acme", limits={"concurrent_requests": 2}, occupied=lambda _: None)
            _, free, _ = tenants.create_key("other", occupied=lambda _: None)
            _, admin, _ = tenants.create_key("default", role="admin", occupied=lambda _: None)
            server.headers = {"authorization": f"Bearer {free}"}
            for pid in pids:
                with only(pid, *pids):
                    until(lambda: refused(server, "wrong") and not refused(server, free), "each knows the keys")
            streams = []
            for pid in pids:
                with only(pid, *pids):
                    streams.append(server.stream(key))
            for pid in pids:
                with only(pid, *pids), pytest.raises(openai.RateLimitError, match="concurrent_requests"):
                    server.stream(key)
            with only(pids[0], *pids):
                third = server.stream(free)
            with only(pids[1], *pids), pytest.raises(openai.APIStatusError) as full:
                server.stream(free)
            assert full.value.status_code in (429, 503), "three are open on the whole server"

            server.headers = {"authorization": f"Bearer {admin}"}
            assert server.status()["load"] == {**server.status()["load"], "open": 3, "running": 3}
            os.kill(pids[0], signal.SIGKILL)
            with pytest.raises((openai.APIError, httpx.HTTPError)):
                list(streams[0])
            until(lambda: server.status()["load"]["open"] == 1, "what it held is given back")
            until(lambda: server.status()["load"]["running"] == 1, "its requests are dropped by the engine")
            third.close()
            until(lambda: all(one["serving"] for one in server.status()["server"]["workers"]), "it is started anew")
            assert [one["restarts"] for one in server.status()["server"]["workers"]] == [1, 0]
            again = server.pids
            assert again[0] != pids[0] and again[1] == pids[1]
            with only(again[0], *again):
                streams[0] = server.stream(key)
            server.finish(*streams)
            tenants.revoke_key(made.id)
            for pid in again:
                with only(pid, *again):
                    until(lambda: refused(server, key), "a revoked key is known to each")
            server.headers = {"authorization": f"Bearer {free}"}
            drains(server, again, free)


def drains(server: Workers, pids: list[int], key: str) -> None:
    """Told to stop, it takes nothing new, lets every worker finish what it has, and ends well."""
    streams = []
    for pid in pids:
        with only(pid, *pids):
            streams.append(server.stream(key))
    server.process.send_signal(signal.SIGTERM)
    for pid in pids:
        with only(pid, *pids):
            until(lambda: server.ask().status_code == 503, "nothing new is taken")
    server.finish(*streams)
    assert server.process.wait(60) == 0
    until(lambda: all(state_of(pid) in ("", "Z") for pid in pids), "no worker is left")


def refused(server: Workers, key: str) -> bool:
    answer = httpx.get(f"{server.url}/v1/models", headers={"authorization": f"Bearer {key}"}, timeout=30)
    return answer.status_code == 401


def test_told_twice_a_server_ends_now(tmp_path: Path) -> None:
    with over_fake_engine(tmp_path) as server:
        pids, stream = server.pids, server.stream()
        server.process.send_signal(signal.SIGTERM)
        until(lambda: server.ask().status_code == 503, "it drains")
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises((openai.APIError, httpx.HTTPError)):
            list(stream)
        assert server.process.wait(60) == 128 + signal.SIGTERM
        until(lambda: [state_of(pid) for pid in pids] == ["", ""], "no worker is left")


def test_a_lost_engine_is_seen_by_all(server: Workers) -> None:
    pids, before = server.pids, server.ask().json()["choices"]
    os.kill(common.engine_of(server.process.pid), signal.SIGSTOP)
    with ThreadPoolExecutor(6) as aside:
        answers = list(aside.map(lambda _: server.ask(), range(6)))
    assert {(answer.status_code, answer.json()["error"]["code"]) for answer in answers} == {(503, "engine_restarting")}
    for pid in pids:
        with only(pid, *pids):
            until(lambda: httpx.get(f"{server.url}/ready", timeout=30).status_code == 200, "each is ready again")
            assert server.ask().json()["choices"] == before
    assert server.pids == pids
    assert server.series()["livery_engine_restarts_total"] == 1


def test_nothing_outlives_the_first_process(server: Workers) -> None:
    """The last one: it ends the server that the others here share."""
    pids = [*server.pids, common.engine_of(server.process.pid)]
    server.process.kill()
    until(lambda: all(state_of(pid) in ("", "Z") for pid in pids), "no process is left")
