"""A real Prometheus scrapes a live server under load, and answers what its clients counted themselves."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx
import openai
import pytest

from api.live_server import BASE, LiveServer, Serve, Setup
from api.peft_files import make_adapter
from observability.board import queries
from observability.parts import Prometheus, program, prometheus

pytestmark = pytest.mark.observability
SCRAPER, KEY = "scraper", "operator"
REQUESTS, STREAMS, WRONG = 60, 6, 7


@dataclass
class Counted:
    """What the clients saw."""

    requests: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    errors: int = 0


@dataclass
class Observed:
    server: LiveServer
    watcher: Prometheus
    counted: Counted


@pytest.fixture(scope="module")
def observed(module_serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    program("prometheus")
    folder = tmp_path_factory.mktemp("observed")
    make_adapter(folder / "adapters" / "pirate", seed=1)
    server = module_serve(Setup(api_key=KEY, metrics_key=SCRAPER), folder)
    with prometheus(server.url.removeprefix("http://"), SCRAPER, tmp_path_factory.mktemp("prometheus")) as watcher:
        watcher.wait_for("livery_ready == 1")  # counters are seen at zero before they grow
        warm(server)
        watcher.wait_for('livery_adapter_requests_total{adapter="pirate", outcome="length"} == 1')
        counted = loaded(server)
        done = f'livery_adapter_requests_total{{adapter="pirate", outcome="length"}} == {counted.requests + 1}'
        watcher.wait_for(done)
        watcher.wait_for(f'livery_http_requests_total{{status="404"}} == {counted.errors}')
        yield Observed(server, watcher, counted)


def warm(server: LiveServer) -> None:
    """One request, so that every series exists before anything is counted."""
    server.client(KEY).completions.create(model="pirate", prompt=[5, 6], max_tokens=2)


def loaded(server: LiveServer) -> Counted:
    """Requests on several threads, streamed and not, and some that name nothing that is served."""

    def ask(number: int) -> tuple[int, int]:
        client = server.client(KEY)
        prompt, tokens = list(range(100, 100 + 3 + number % 7)), 2 + number % 9
        if number % 2:
            usage = client.completions.create(model="pirate", prompt=prompt, max_tokens=tokens).usage
        else:
            options = {"include_usage": True}
            with client.completions.create(
                model="pirate", prompt=prompt, max_tokens=tokens, stream=True, stream_options=options
            ) as stream:
                usage = [chunk.usage for chunk in stream][-1]
        assert usage is not None
        return usage.prompt_tokens, usage.completion_tokens

    counted = Counted()
    with ThreadPoolExecutor(STREAMS) as pool:
        for prompt_tokens, answer_tokens in pool.map(ask, range(REQUESTS)):
            counted.requests += 1
            counted.prompt_tokens += prompt_tokens
            counted.answer_tokens += answer_tokens
    for _ in range(WRONG):
        with pytest.raises(openai.NotFoundError):
            server.client(KEY).completions.create(model="nobody", prompt=[1], max_tokens=1)
        counted.errors += 1
    return counted


def test_its_answers_are_what_the_clients_counted(observed: Observed) -> None:
    ask, counted = observed.watcher.number, observed.counted
    assert counted.requests == REQUESTS
    warm_prompt, warm_answer = 2, 2
    assert ask('sum(livery_adapter_requests_total{adapter="pirate"})') == counted.requests + 1
    assert ask("sum(vllm:request_success_total)") == counted.requests + 1
    assert ask("vllm:generation_tokens_total") == counted.answer_tokens + warm_answer
    assert ask('livery_adapter_generation_tokens_total{adapter="pirate"}') == counted.answer_tokens + warm_answer
    assert ask('livery_tenant_generation_tokens_total{tenant="default"}') == counted.answer_tokens + warm_answer
    assert ask("vllm:prompt_tokens_total") == counted.prompt_tokens + warm_prompt
    assert ask("vllm:e2e_request_latency_seconds_count") == counted.requests + 1
    assert ask('sum(livery_http_requests_total{status="404"})') == counted.errors == WRONG
    assert ask('sum(livery_http_requests_total{route="/v1/completions", status="200"})') == counted.requests + 1


def test_the_scrape_takes_its_own_key_and_no_other(observed: Observed) -> None:
    (target,) = httpx.get(f"{observed.watcher.url}/api/v1/targets", timeout=30).json()["data"]["activeTargets"]
    assert target["health"] == "up", target["lastError"]
    assert httpx.get(f"{observed.server.url}/metrics", timeout=30).status_code == 401


def test_promtool_finds_no_fault_with_our_own_series(observed: Observed) -> None:
    text = httpx.get(f"{observed.server.url}/metrics", headers={"authorization": f"Bearer {SCRAPER}"}, timeout=30).text
    own = "".join(f"{line}\n" for line in text.splitlines() if "vllm:" not in line)
    assert own.count("# TYPE livery_") > 40
    done = subprocess.run(
        [program("promtool"), "check", "metrics"], input=own, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_answers_every_query_of_the_dashboard(observed: Observed) -> None:
    for title, promql in queries():
        answer = observed.watcher.query(promql)
        assert answer or "Errors by adapter" in title, f"{title}: {promql} has no answer"


def test_the_recording_rules_record(observed: Observed) -> None:
    for name in ("instance:livery_generation_tokens:rate5m", "instance:livery_open_sequences:ratio"):
        observed.watcher.wait_for(name)
    assert observed.watcher.query("ALERTS") == []


def test_the_base_is_told_apart_in_build_info(observed: Observed) -> None:
    (sample,) = observed.watcher.query("livery_build_info")
    assert sample["metric"]["base"] == BASE
