"""A whole run of `livery bench http` with small numbers: every part, the document; no speed is judged."""

from __future__ import annotations

import io
import json
import sys
import time
from pathlib import Path

import pytest
import typer
from rich.console import Console

from livery.bench.http.hostile import hostile_requests
from livery.bench.http.measured import measured_server
from livery.bench.http.report import print_findings, write_report
from livery.bench.http.sampler import OTHER, part_of
from livery.bench.http.suite import Findings, Part, Sizes, Suite
from livery.commands.bench_http import PARTS, http
from livery.stops import StopBuffer, StopSearch
from livery.tenancy import TenantStore, UsageStore
from livery.tenancy.meter import Counts
from livery.tenancy.usage import Question
from livery_loadtest.lean import LoadFailed, post, run_load
from livery_loadtest.machine import describe_machine
from livery_loadtest.origin import Origin
from server.running import tiny_model

pytestmark = pytest.mark.bench

QUIET = Console(file=io.StringIO())
TINY = Sizes(
    rounds=2,
    streams=(1, 3),
    tokens=8,
    load_tokens=24,
    pair_tokens=24,
    requests=4,
    request_streams=2,
    request_tokens=3,
    tenant_streams=2,
    tenant_pairs=2,
    metrics_streams=2,
    metrics_pairs=2,
    scraped_adapters=12,
    shown_adapters=8,
    looks=2,
    profile_streams=2,
    profile_answers=20,
    text_streams=2,
    text_tokens=4,
    text_answers=2,
    hostile=lambda: tuple(one for one in hostile_requests() if one.name in ("deep lists", "many wrong messages")),
)


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> Findings:
    model = tiny_model(tmp_path_factory.mktemp("model"))
    return Suite(str(model), TINY, QUIET).run(frozenset(Part))


def test_every_part_is_measured(findings: Findings) -> None:
    assert [row.streams for row in findings.streams] == [1, 3]
    assert all(row.per_second.low > 0 for row in (*findings.streams, *findings.requests))
    assert [(row.streams, row.ratio.low > 0) for row in findings.tenants] == [(2, True)]
    (metrics,) = findings.metrics
    assert metrics.ratio.low > 0 and metrics.cpu > 0 and metrics.traced > 500
    assert [(row.name.split()[1].split("?")[0], row.adapters) for row in findings.looking] == [
        ("/v1/status,", 8),
        ("/v1/status,", 8),
        ("/metrics", 12),
    ]
    assert all(row.took_ms.low > 0 and row.worst_ms > 0 and row.size > 1000 for row in findings.looking)
    assert findings.profile and sum(row.share for row in findings.profile) == pytest.approx(1)
    assert [row.status for row in findings.hostile] == [400, 400]
    calls = {row.part: row.calls for row in findings.text}
    assert calls["templating and tokenising"] == 4
    assert calls["detokenising"] >= 16  # a call for each token but stop tokens, and two for each answer
    assert findings.text_share > 0
    assert findings.complete


def test_the_document_says_how_it_was_measured_and_no_paths(findings: Findings, tmp_path: Path) -> None:
    write_report(findings, TINY, Origin("livery bench http", "today", "0", describe_machine()), tmp_path / "out.json")
    text = (tmp_path / "out.json").read_text()
    read = json.loads(text)
    assert read["schema"] == "livery-bench-http/1"
    assert read["versions"]["uvicorn"] and read["versions"]["h11"]
    assert read["sizes"]["tokens"] == 8
    assert len(read["streams"]) == 2
    assert str(tmp_path.anchor + "tmp") not in text
    shown = io.StringIO()
    print_findings(findings, Console(file=shown, width=160))
    for title in ("where the server's time goes", "metrics and traces", "looking on"):
        assert title in shown.getvalue()


def test_answers_are_counted_by_the_servers_usage(tmp_path: Path) -> None:
    with measured_server("smollm2-135m-instruct", None, QUIET, fake=True) as server:
        load = server.load(3, 2, 17)
        assert [answer.tokens for answer in load.answers] == [17] * 6
        assert all(17 <= answer.events <= 21 for answer in load.answers)  # role, text, reason, usage, [DONE]
        assert all(0 < answer.first_s <= answer.seconds <= load.seconds for answer in load.answers)
        whole = server.load(2, 3, 17, stream=False)
        assert [answer.tokens for answer in whole.answers] == [17] * 6
        with pytest.raises(LoadFailed, match="404"):
            run_load(server.url, post(server.url, "/v1/nothing", b"{}"), 1, 1)


def test_what_keeps_tenants_apart_is_taken_away_and_put_back(tmp_path: Path) -> None:
    model = str(tiny_model(tmp_path))
    with measured_server(model, None, QUIET, fake=True, variant="limited") as server:
        store = TenantStore.open(server.data.tenants_url(None))
        try:
            server.turned(False).load(2, 1, 5)
            server.turned(True).load(3, 1, 5)
            latest, used = time.monotonic() + 60, Counts()
            while used.completion_tokens < 15 and time.monotonic() < latest:  # it is written once a second
                for line in UsageStore(store.database).report(Question(by=())):
                    used = line.counts
        finally:
            store.close()
    assert (used.requests, used.completion_tokens) == (3, 15)


def test_hostile_requests_are_as_large_as_a_body_may_be() -> None:
    sizes = [len(one.body) for one in hostile_requests()]
    assert len(sizes) > 25
    assert max(sizes) > 2_000_000


def test_a_sample_belongs_to_the_innermost_known_part() -> None:
    found: list[str] = []

    class Search(StopSearch):
        def may_begin_in(self, piece: str) -> bool:
            found.append(part_of(sys._getframe()))
            return super().may_begin_in(piece)

    StopBuffer(Search(["x"])).push("y")
    assert found == ["stop strings"]
    assert part_of(None) == OTHER


def test_unknown_parts_are_refused() -> None:
    assert tuple(Part) == PARTS
    with pytest.raises(typer.BadParameter, match="nonsense"):
        http(only=["nonsense"])
