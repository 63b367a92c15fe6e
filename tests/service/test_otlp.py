"""Traces on their way: whose part a request is, what a collector costs that isn't well, what is added to messages."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from livery import otlp
from livery.engine.figures import RequestTimes
from livery.generation import Usage
from livery.metrics import Metrics, SequenceMeter
from livery.otlp import Tracing, encoded, headers_of
from livery.settings import SettingsError
from livery.spans import Timeline, origin_of, parts
from service.test_metrics import INFO

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def line(name: str = "/v1/completions", **more: object) -> Timeline:
    return Timeline(name, 1.0, 2.0, False, {"livery.request_id": "mine"}, **more)  # type: ignore[arg-type]


def sequence(asked: float, first: float, last: float, times: RequestTimes | None) -> SequenceMeter:
    one = Metrics("base", INFO).begin(Usage()).sequence()
    one.asked, one.first, one.last, one.times = asked, first, last, times
    return one


class Taking(ThreadingHTTPServer):
    """A collector that answers what it is told to, then 200; `bodies` are those that it took."""

    def __init__(self, *statuses: int) -> None:
        super().__init__(("127.0.0.1", 0), _Take)
        self.statuses = list(statuses)
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.asked = threading.Semaphore(0)


class _Take(BaseHTTPRequestHandler):
    server: Taking

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        status = self.server.statuses.pop(0) if self.server.statuses else 200
        if status == 200:
            self.server.bodies.append(body)
            self.server.headers.append({name.lower(): value for name, value in self.headers.items()})
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()
        self.server.asked.release()

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def taking(*statuses: int) -> Iterator[tuple[Taking, str]]:
    with Taking(*statuses) as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        try:
            yield collector, f"http://127.0.0.1:{collector.server_address[1]}"
        finally:
            collector.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp, "EVERY_S", 0.01)
    monkeypatch.setattr(otlp, "FIRST_PAUSE_S", 0.01)


def names(body: bytes) -> list[str]:
    (resource,) = ExportTraceServiceRequest.FromString(body).resource_spans
    return [span.name for scope in resource.scope_spans for span in scope.spans]


def test_whose_part_a_request_is() -> None:
    own = origin_of(f"00-{TRACE}-{PARENT}-01", "vendor=1")
    assert (own.trace_id.hex(), own.parent_id.hex(), own.sampled, own.state) == (TRACE, PARENT, True, "vendor=1")
    assert not origin_of(f"00-{TRACE}-{PARENT}-00").sampled
    assert origin_of(f"cc-{TRACE}-{PARENT}-01-more").parent_id.hex() == PARENT  # a later version may say more
    for malformed in (
        "",
        "nonsense",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01-more",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
    ):
        found = origin_of(malformed, "vendor=1")
        assert (found.parent_id, found.sampled, found.state) == (b"", True, ""), malformed
        assert found.trace_id.hex() != TRACE and len(found.trace_id) == 16
    assert origin_of(f"00-{TRACE}-{PARENT}-01", "x" * 513).state == ""


def test_what_did_not_happen_has_no_span() -> None:
    waited = RequestTimes(2.0, 1.5, 0.5)
    whole = line(tokenised=(1.25, 1.5), sequences=[sequence(1.0, 4.0, 6.0, waited)])
    told = [(part.name, part.begin, part.end, dict(part.attributes)) for part in parts(whole)]
    assert told == [
        ("admit", 1.0, 1.25, {}),
        ("tokenise", 1.25, 1.5, {}),
        ("load", 1.0, 2.5, {}),
        ("queue", 2.5, 3.0, {}),
        ("prefill", 3.0, 4.0, {}),
        ("decode", 4.0, 6.0, {}),
    ]
    assert parts(line(sequences=[sequence(1.0, 0.0, 0.0, None)])) == []  # it never began
    vector = line(sequences=[sequence(1.0, 4.0, 4.0, RequestTimes(2.0, 0.0, 0.5))])
    assert [part.name for part in parts(vector)] == ["queue", "prefill"]
    late = line(sequences=[sequence(1.0, 1.5, 1.5, RequestTimes(9.0, 7.0, 0.5))])  # clocks of two processes
    first = parts(late)[0]
    assert (first.name, first.begin, first.end) == ("load", 1.0, 1.5)


def test_a_collector_that_is_not_well_is_tried_again() -> None:
    with taking(503, 429) as (collector, url):
        tracing = Tracing(url)
        tracing.tell(line())
        for _ in range(3):
            assert collector.asked.acquire(timeout=30)
        tracing.close()
        assert [names(body) for body in collector.bodies] == [["/v1/completions"]]


def test_what_a_collector_refuses_is_dropped_with_a_word(caplog: pytest.LogCaptureFixture) -> None:
    with taking(400, 400) as (collector, url), caplog.at_level(logging.WARNING, "livery.otlp"):
        tracing = Tracing(f"{url}/v1/traces")
        for name in ("first", "second", "third"):
            tracing.tell(line(name))
            assert collector.asked.acquire(timeout=30)
        tracing.close()
    assert [names(body) for body in collector.bodies] == [["third"]]
    refused, again = (record.getMessage() for record in caplog.records)
    assert "are dropped until they do: HTTP 400" in refused
    assert "reach" in again and "those of 2 requests were dropped" in again


def test_what_waits_is_bounded_and_the_rest_is_told_at_the_end(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(otlp, "EVERY_S", 3600.0)
    monkeypatch.setattr(otlp, "MOST_WAITING", 100)
    with taking() as (collector, url):
        tracing = Tracing(url)
        for number in range(250):
            tracing.tell(line(str(number)))
        tracing.close()
    assert [len(names(body)) for body in collector.bodies] == [64, 36]
    assert names(collector.bodies[0])[0] == "150"  # the oldest went
    full, again = (record.getMessage() for record in caplog.records)
    assert "more than 100 requests wait to be sent" in full
    assert "those of 150 requests were dropped" in again
    tracing = Tracing("http://127.0.0.1:9")
    tracing.tell(line())
    with caplog.at_level(logging.WARNING, "livery.otlp"):
        tracing.close()
    assert "ConnectError" in caplog.text


def test_messages_carry_the_headers_of_opentelemetrys_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {
        "OTEL_EXPORTER_OTLP_HEADERS": "Authorization=Basic%20abc, x-tenant = one,broken",
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "x-tenant=two",
    }
    assert headers_of(variables) == {"authorization": "Basic abc", "x-tenant": "two"}
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Basic%20abc")
    with taking() as (collector, url):
        tracing = Tracing(url)
        tracing.tell(line())
        tracing.close()
    (headers,) = collector.headers
    assert (headers["authorization"], headers["content-type"]) == ("Basic abc", "application/x-protobuf")


@pytest.mark.parametrize(
    ("endpoint", "words"),
    [
        ("http://collector:4318x", "Invalid port: '4318x'"),
        ("http://collector:431800", "no port 431800|Invalid port"),
        ("http:///v1/traces", "names no host"),
        ("http://[::1", "no address"),
    ],
)
def test_an_endpoint_that_is_no_address_is_told_at_the_start(endpoint: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words) as refused:
        Tracing(endpoint)
    assert f"--otlp-endpoint {endpoint} " in str(refused.value)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ("x-team=caf%C3%A9", "the value of x-team has 'é'"),
        ("authorization=Bearer%20secret%0Ax", r"the value of authorization has '\\n'"),
        ("a%20name=1", "'a name' is no name of a header"),
    ],
)
@pytest.mark.parametrize("variable", otlp.HEADERS)
def test_what_no_header_can_hold_is_told_at_the_start(
    variable: str, told: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, told)
    with pytest.raises(SettingsError, match=f"{variable}: {words}") as refused:
        Tracing("http://127.0.0.1:4318")
    assert "secret" not in str(refused.value)


def test_a_proxy_that_is_no_address_is_told_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy:80x")
    with pytest.raises(SettingsError, match="HTTP_PROXY"):
        Tracing("http://collector:4318")


def test_what_cannot_be_encoded_costs_itself_and_nothing_that_comes_later(caplog: pytest.LogCaptureFixture) -> None:
    with taking() as (collector, url), caplog.at_level(logging.WARNING, "livery.otlp"):
        tracing = Tracing(url)
        broken = line("broken")
        broken.attributes["livery.request_id"] = "\ud800"  # no UTF-8
        tracing.tell(broken)
        while not any(record.levelno == logging.WARNING for record in list(caplog.records)):
            assert tracing._thread.is_alive()
        tracing.tell(line("later"))
        assert collector.asked.acquire(timeout=30)
        tracing.close()
    assert [names(body) for body in collector.bodies] == [["later"]]
    assert "those of 1 requests were dropped" in caplog.text


def test_nothing_is_sent_for_what_nobody_wants() -> None:
    assert encoded([line(traceparent=f"00-{TRACE}-{PARENT}-00")], 0) == b""
