"""One request as OpenTelemetry spans: what it waited for and what was computed, exported over OTLP/HTTP.

An extra (`pip install livery[otel]`), off unless `--otlp-endpoint` is given, and then not imported. Spans carry ids,
names, versions and counts of tokens; never text. Times are the engine's own: no span is open while a request runs, all
of a request's are made at its end.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from livery import __version__
from livery.engine.figures import RequestTimes

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Tracer

TRACES_PATH = "/v1/traces"
REMEDY = "--otlp-endpoint needs OpenTelemetry's packages: pip install 'livery[otel]'"


class TracingUnavailable(Exception):
    """The extra isn't installed; the message says how to get it."""


@dataclass(slots=True)
class Timeline:
    """What is known of a request when it ends. Moments are those of time.perf_counter, in seconds."""

    started: float
    tokenised: tuple[float, float] | None = None
    submitted: float | None = None  # to the engine
    times: RequestTimes | None = None
    first_token: float | None = None
    ended: float = 0.0
    failed: bool = False
    attributes: dict[str, Any] = field(default_factory=dict)


class Tracing:
    """Where spans go. `close` sends what is left."""

    def __init__(self, endpoint: str) -> None:
        """`endpoint` is that of a collector, as http://127.0.0.1:4318. Raises TracingUnavailable."""
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError:
            raise TracingUnavailable(REMEDY) from None
        resource = Resource.create({"service.name": "livery", "service.version": __version__})
        self._provider = TracerProvider(resource=resource)
        address = endpoint if endpoint.endswith(TRACES_PATH) else endpoint.rstrip("/") + TRACES_PATH
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=address)))
        self._tracer: Tracer = self._provider.get_tracer("livery", __version__)
        # One pair of readings: perf_counter goes evenly, whatever is done to the wall clock.
        self._epoch_ns = time.time_ns() - int(time.perf_counter() * 1e9)

    def close(self) -> None:
        """Export what waits; blocks, at most for the exporter's own time limit."""
        self._provider.shutdown()

    def tell(self, line: Timeline, carrier: Mapping[str, str]) -> None:
        """A request is over. `carrier`: its headers, of which traceparent says whose part it is."""
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        parent = TraceContextTextMapPropagator().extract(dict(carrier))
        span = self._tracer.start_span(
            str(line.attributes.get("http.route", "request")),
            parent,
            trace.SpanKind.SERVER,
            line.attributes,
            start_time=self._at(line.started),
        )
        if line.failed:
            span.set_status(trace.StatusCode.ERROR)
        inside = trace.set_span_in_context(span, parent)
        for name, begin, end in parts(line):
            self._part(name, begin, end, inside)
        span.end(self._at(line.ended))

    def _part(self, name: str, begin: float, end: float, inside: Context) -> None:
        self._tracer.start_span(name, inside, start_time=self._at(begin)).end(self._at(end))

    def _at(self, moment: float) -> int:
        return self._epoch_ns + int(moment * 1e9)


def parts(line: Timeline) -> list[tuple[str, float, float]]:
    """The spans within a request: name, begin, end. What didn't happen, or isn't known, is left out.

    The engine tells durations, not moments of its own clock: they are laid end to end from when it was asked.
    """
    found = []
    if line.tokenised is not None:
        found.append(("tokenise", *line.tokenised))
    if line.submitted is None or line.times is None or line.first_token is None:
        return found
    times, at = line.times, line.submitted
    last = max(line.first_token, at)
    loaded = min(at + times.load_s, last)
    running = min(at + times.queue_s, last)
    if times.load_s:
        found.append(("load", at, loaded))
    found += [("queue", loaded, max(loaded, running)), ("prefill", max(loaded, running), last)]
    found.append(("decode", last, max(last, line.ended)))
    return found
