"""GET /metrics of a live server: what is gone has no series, one sample says where adapters are, tokens show early."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from queue import Queue

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from api.live_server import BASE, LiveServer, Serve, Setup
from api.peft_files import make_adapter
from chaos.common import until
from livery import scrape
from livery.engine.fake import Behaviour
from livery.lease import Caller, Lease
from livery.metrics import OTHER, meter
from livery.spans import Timeline, parts
from livery.survey import House

SCRAPER = "scraper"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    for seed, name in enumerate(("one", "two")):
        make_adapter(folder / name, seed=seed)
    return folder


@pytest.fixture
def live(serve: Serve, saved: Path, tmp_path: Path) -> LiveServer:
    shutil.copytree(saved, tmp_path / "adapters" / ".pool")
    return serve(Setup(api_key="sk-operator", metrics_key=SCRAPER), tmp_path)


def scraped(server: LiveServer) -> list[Sample]:
    answer = httpx.get(f"{server.url}/metrics", headers={"authorization": f"Bearer {SCRAPER}"}, timeout=30)
    assert answer.status_code == 200
    return [sample for family in text_string_to_metric_families(answer.text) for sample in family.samples]


def labelled(samples: list[Sample], label: str) -> set[str]:
    return {sample.labels[label] for sample in samples if label in sample.labels}


def put(server: LiveServer, name: str, which: str) -> None:
    from livery.adding import AddOptions

    server.call(server.management.put(name, f".pool/{which}", AddOptions()))


def test_what_is_deleted_has_no_series(live: LiveServer) -> None:
    key = live.make_key("acme")
    for name, which in (("pirate", "one"), ("poet", "two")):
        put(live, name, which)
        live.client(key).completions.create(model=name, prompt=[5, 6], max_tokens=2)
    live.client("sk-operator").completions.create(model="1*pirate+2*poet", prompt=[5, 6], max_tokens=2)
    found = scraped(live)
    assert labelled(found, "adapter") == {"pirate", "poet", OTHER}  # what is composed has no name of its own
    assert labelled(found, "tenant") == {"acme", "default"}
    live.call(live.management.retire("pirate"))
    live.tenants.delete_tenant("acme", occupied=lambda _: None)
    live.call(live.keys.refresh())
    found = scraped(live)
    assert labelled(found, "adapter") == {"poet", OTHER}
    assert labelled(found, "tenant") == {"default"}


def test_what_is_deleted_is_forgotten_where_nobody_scrapes(
    serve: Serve, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrape, "EVERY_S", 0.01)
    shutil.copytree(saved, tmp_path / "adapters" / ".pool")
    live = serve(folder=tmp_path)
    counted = live.service.metrics.adapters
    for name, which in (("pirate", "one"), ("poet", "two")):
        put(live, name, which)
        live.client().completions.create(model=name, prompt=[5, 6], max_tokens=2)
    assert set(counted.names()) == {"pirate", "poet"}
    live.call(live.management.retire("pirate"))
    assert until(lambda: counted.names() == ["poet"], 30) is not None
    assert [name for name, _ in live.service.metrics.told().adapters] == ["poet"]


def test_one_sample_says_where_adapters_are(live: LiveServer) -> None:
    for name, which in (("pirate", "one"), ("copy", "one"), ("poet", "two")):
        put(live, name, which)
    for asked in ("pirate", "poet"):
        live.client("sk-operator").completions.create(model=asked, prompt=[5, 6], max_tokens=2)
    (sample,) = [one for one in scraped(live) if one.name == "vllm:lora_requests_info"]
    assert sample.labels["max_lora"] == "8"
    assert sample.labels["running_lora_adapters"] == "copy,pirate,poet"  # the first two are the same files
    assert sample.labels["waiting_lora_adapters"] == ""
    assert [one.value for one in scraped(live) if one.name == "livery_adapters_registered"] == [3]


def test_what_any_process_heard_of_the_engine_is_what_each_tells(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(Setup(metrics_key=SCRAPER))

    async def house() -> House:
        return House(engine_answered=time.monotonic() - 1000, engine_restarts=3)

    monkeypatch.setattr(server.service.survey, "house", house)
    told = {one.name: one.value for one in scraped(server)}
    assert told["livery_engine_restarts_total"] == 3
    assert told["livery_engine_heartbeat_age_seconds"] >= 1000


class Traces:
    """A trace sink that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: Queue[Timeline] = Queue()

    def tell(self, line: Timeline) -> None:
        self.lines.put(line)

    def close(self) -> None:
        pass


def test_a_wait_for_an_adapters_files_is_part_of_what_a_client_waits(
    serve: Serve, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(saved, tmp_path / "adapters" / ".pool")
    traces = Traces()
    server = serve(Setup(metrics_key=SCRAPER, tracing=traces), tmp_path)
    put(server, "pirate", "one")
    adapters, now, late = server.service.adapters, time.perf_counter, 0.0
    lease = adapters.lease

    async def fetched(name: str, caller: Caller) -> Lease:
        """As if its files had taken so long to come."""
        nonlocal late
        late += 1000
        return await lease(name, caller)

    monkeypatch.setattr(adapters, "lease", fetched)
    for module, name in ((time, "perf_counter"), (meter, "perf_counter")):
        monkeypatch.setattr(module, name, lambda: now() + late)
    server.client().completions.create(model="pirate", prompt=[5, 6], max_tokens=2)
    told = {one.name: one.value for one in scraped(server)}
    assert told["vllm:time_to_first_token_seconds_sum"] >= 1000
    assert told["vllm:e2e_request_latency_seconds_sum"] >= told["vllm:time_to_first_token_seconds_sum"]
    admit, tokenise, *_ = parts(traces.lines.get(timeout=30))
    assert (admit.name, tokenise.name) == ("admit", "tokenise")
    assert admit.end - admit.begin >= 1000


def test_tokens_of_a_stream_show_while_it_runs(serve: Serve) -> None:
    server = serve(Setup(behaviour=Behaviour(stepped=True), metrics_key=SCRAPER, keep_alive_s=0.02))

    def told(count: int) -> bool:
        """Whether a scrape says so many tokens, soon."""
        for _ in range(1000):
            if sum(one.value for one in scraped(server) if one.name == "vllm:generation_tokens_total") == count:
                return True
        return False

    stream = server.client().completions.create(model=BASE, prompt=[5, 6], max_tokens=9, stream=True)
    server.step(4)
    assert told(4)
    server.step(5)
    list(stream)
    assert told(9)
