"""A small OTLP/HTTP collector: keeps the spans that are sent to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Queue
from threading import Thread

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collector(ThreadingHTTPServer):
    """Serves POST /v1/traces on a free port."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Take)
        self.spans: Queue[Span] = Queue()
        self.services: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def all(self) -> list[Span]:
        """What came so far, in order of time."""
        return sorted(self.spans.queue, key=lambda span: (span.start_time_unix_nano, -span.end_time_unix_nano))


class _Take(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        assert self.path == "/v1/traces"
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.server.services |= {
                one.value.string_value for one in resource.resource.attributes if one.key == "service.name"
            }
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.server.spans.put(span)
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def collecting() -> Iterator[Collector]:
    with Collector() as collector:
        thread = Thread(target=collector.serve_forever)
        thread.start()
        try:
            yield collector
        finally:
            collector.shutdown()
            thread.join(10)


def shown(spans: list[Span]) -> str:
    """A trace as a tree with milliseconds, for people."""
    begin = spans[0].start_time_unix_nano
    lines = []
    for span in spans:
        at, took = (
            (span.start_time_unix_nano - begin) / 1e6,
            (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6,
        )
        indent = "" if span.span_id == spans[0].span_id else "  "
        lines.append(f"{at:9.2f} ms {took:9.2f} ms  {indent}{span.name}")
    lines += [
        f"    {one.key} = {one.value.string_value or one.value.int_value}"
        for one in sorted(spans[0].attributes, key=str)
    ]
    return "\n".join(lines)
