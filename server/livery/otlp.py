"""Traces on their way to a collector: OTLP over HTTP, as protobuf, on a thread beside the event loop.

Importing it needs an extra (`pip install livery[otel]`), so nothing does without `--otlp-endpoint`. What requests left
behind waits in a bounded queue and goes out once a second, many at a time; a collector that doesn't answer is tried
again a few times, and costs traces, never requests.
"""

from __future__ import annotations

import logging
import os
import random
import re
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import unquote

import httpx
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

from livery import __version__
from livery.settings import SettingsError
from livery.spans import Timeline, Value, origin_of, parts

log = logging.getLogger("livery.otlp")

TRACES_PATH = "/v1/traces"
EVERY_S = 1.0
AT_ONCE = 64  # requests of one message
MOST_WAITING = 2048  # requests; the oldest go where there are more
TRIES = 5
FIRST_PAUSE_S = 1.0  # between tries, doubled each time
TIMEOUT_S = 10.0  # of one try
STOP_S = 5.0  # for what is left at the end
TRY_AGAIN = frozenset({429, 502, 503, 504})  # as OTLP's specification has it
HEADERS = ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS")  # the latter's win
MOST_PORT = 65535

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")  # of a header, by RFC 9110
_UNFIT = re.compile(r"[^\t -~]")  # in a header's value


class Tracing:
    """Sends what it is told. `close` sends what is left."""

    def __init__(self, endpoint: str) -> None:
        """`endpoint` is that of a collector, as http://127.0.0.1:4318.

        Raises SettingsError where nothing can be sent there, or with the headers that the environment adds.
        """
        self._address = address_of(endpoint)
        self._client = _client()
        self._waiting: deque[Timeline] = deque()
        self._dropped = 0  # requests of which too many waited; written by `tell` alone
        self._told = 0  # of these, those that the log knows; written by the thread alone, as what follows
        self._lost = 0  # requests whose traces were dropped since the collector last took some
        self._ending = threading.Event()
        # One pair of readings: perf_counter goes evenly, whatever is done to the wall clock.
        self._epoch_ns = time.time_ns() - int(time.perf_counter() * 1e9)
        self._thread = threading.Thread(target=self._run, name="livery-otlp", daemon=True)
        self._thread.start()

    def tell(self, line: Timeline) -> None:
        """A request is over. Costs an append."""
        self._waiting.append(line)
        if len(self._waiting) > MOST_WAITING:  # the thread takes some meanwhile, but never so many
            self._waiting.popleft()
            self._dropped += 1

    def close(self) -> None:
        """Send what waits; blocks, for STOP_S at most."""
        self._ending.set()
        self._thread.join(STOP_S)
        if left := len(self._waiting):
            log.warning("the traces of the last %d requests didn't reach %s", left, self._address)

    def _run(self) -> None:
        with self._client as client:
            while not self._ending.wait(EVERY_S):
                self._send_all(client)
            self._send_all(client)
        if self._lost:
            log.warning("the traces of %d requests didn't reach %s", self._lost, self._address)

    def _send_all(self, client: httpx.Client) -> None:
        while lines := self._take():
            if new := self._dropped - self._told:
                self._told += new
                self._lose(new, f"more than {MOST_WAITING} requests wait to be sent, the oldest go")
            try:
                body = encoded(lines, self._epoch_ns)
                why = self._refused(client, body) if body else ""
            except Exception as error:  # boundary: whatever is wrong with some, those that come later are sent
                log.exception("the traces of %d requests can't be sent", len(lines))
                why = f"{type(error).__name__}: {error}"
            if why:
                self._lose(len(lines), why)

    def _take(self) -> list[Timeline]:
        taken: list[Timeline] = []
        while self._waiting and len(taken) < AT_ONCE:
            taken.append(self._waiting.popleft())
        return taken

    def _refused(self, client: httpx.Client, body: bytes) -> str:
        """Post one message, again where that may help. Why it couldn't be, empty where it was taken."""
        pause, why = FIRST_PAUSE_S, ""
        for _ in range(TRIES):
            try:
                answer = client.post(self._address, content=body)
            except httpx.HTTPError as error:
                why, again = f"{type(error).__name__}: {error}", True
            else:
                if answer.is_success:
                    self._taken()
                    return ""
                why, again = f"HTTP {answer.status_code}", answer.status_code in TRY_AGAIN
            if not again or self._ending.wait(pause):
                break
            pause *= 2
        return why

    def _lose(self, requests: int, why: str) -> None:
        if not self._lost:
            log.warning("traces don't reach %s and are dropped until they do: %s", self._address, why)
        self._lost += requests

    def _taken(self) -> None:
        if self._lost:
            log.warning("traces reach %s again; those of %d requests were dropped", self._address, self._lost)
        self._lost = 0


def address_of(endpoint: str) -> str:
    """Where a collector takes traces. Raises SettingsError for what is no address."""
    address = endpoint if endpoint.endswith(TRACES_PATH) else endpoint.rstrip("/") + TRACES_PATH
    try:
        url = httpx.URL(address)
        why = "" if url.host else "it names no host"
        if url.port is not None and not 0 < url.port <= MOST_PORT:
            why = f"there is no port {url.port}"
    except httpx.InvalidURL as error:
        why = str(error)
    if why:
        raise SettingsError(f"--otlp-endpoint {endpoint} is no address ({why}); give one as http://127.0.0.1:4318")
    return address


def _client() -> httpx.Client:
    """Its proxies and certificates are the environment's. Raises SettingsError for what these can't be."""
    headers = {"content-type": "application/x-protobuf", **headers_of(os.environ)}
    try:
        return httpx.Client(headers=headers, timeout=TIMEOUT_S)
    except (httpx.InvalidURL, ValueError, ImportError, OSError) as error:
        raise SettingsError(
            f"--otlp-endpoint: the environment's proxies or certificates can't be used: {error}; mend HTTP_PROXY, "
            "HTTPS_PROXY, ALL_PROXY or SSL_CERT_FILE, or leave them out"
        ) from None


def headers_of(environment: Mapping[str, str]) -> dict[str, str]:
    """What OpenTelemetry's variables add to each message: NAME=VALUE, by commas, percent-encoded.

    Raises SettingsError for what no header can hold, which is told without the value around it: that may be a secret.
    """
    found: dict[str, str] = {}
    for variable in HEADERS:
        for pair in environment.get(variable, "").split(","):
            name, sign, value = pair.partition("=")
            if not sign or not name.strip():
                continue
            header, text = unquote(name.strip()).lower(), unquote(value.strip())
            if not _NAME.fullmatch(header):
                raise SettingsError(f"{variable}: {header!r} is no name of a header; give NAME=VALUE,NAME=VALUE")
            if unfit := _UNFIT.search(text):
                raise SettingsError(
                    f"{variable}: the value of {header} has {unfit.group()!r}, which no header can hold; "
                    "write it in ASCII, without line ends"
                )
            found[header] = text
    return found


def encoded(lines: Sequence[Timeline], epoch_ns: int) -> bytes:
    """One message with the spans of these requests, empty where none is asked for.

    `epoch_ns`: the Unix time of moment 0.
    """
    spans = [span for line in lines for span in _spans(line, epoch_ns)]
    if not spans:
        return b""
    scope = ScopeSpans(scope=InstrumentationScope(name="livery", version=__version__), spans=spans)
    resource = Resource(attributes=_attributes({"service.name": "livery", "service.version": __version__}))
    message = ExportTraceServiceRequest(resource_spans=[ResourceSpans(resource=resource, scope_spans=[scope])])
    body: bytes = message.SerializeToString()
    return body


def _spans(line: Timeline, epoch_ns: int) -> Iterator[Span]:
    """The request's own first, then what lies within it; none where its client's trace isn't recorded."""
    origin = origin_of(line.traceparent, line.tracestate)
    if not origin.sampled:
        return

    def at(moment: float) -> int:
        return epoch_ns + int(moment * 1e9)

    own = random.randbytes(8)
    yield Span(
        trace_id=origin.trace_id,
        span_id=own,
        parent_span_id=origin.parent_id,
        trace_state=origin.state,
        name=line.name,
        kind=Span.SPAN_KIND_SERVER,
        start_time_unix_nano=at(line.started),
        end_time_unix_nano=at(line.ended),
        attributes=_attributes(line.attributes),
        status=Status(code=Status.STATUS_CODE_ERROR) if line.failed else None,
    )
    for part in parts(line):
        yield Span(
            trace_id=origin.trace_id,
            span_id=random.randbytes(8),
            parent_span_id=own,
            trace_state=origin.state,
            name=part.name,
            kind=Span.SPAN_KIND_INTERNAL,
            start_time_unix_nano=at(part.begin),
            end_time_unix_nano=at(part.end),
            attributes=_attributes(part.attributes),
        )


def _attributes(values: Mapping[str, Value]) -> list[KeyValue]:
    return [
        KeyValue(key=key, value=AnyValue(int_value=value) if isinstance(value, int) else AnyValue(string_value=value))
        for key, value in values.items()
    ]
