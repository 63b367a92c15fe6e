"""What every request passes on its way in and out: an id, the doors, a bounded body, one log line, one border
at which nothing unexpected goes further. Knows no route's meaning.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from livery import logs
from livery.activity import Finished
from livery.admission import Admission
from livery.api.access import LOOKING, Access
from livery.api.errors import BodyTooLarge, BodyTooSlow, ClientGone, UnknownUrl, describe_at
from livery.api.routes import route_path
from livery.api.uploads import streams_upload
from livery.metrics import Metrics, RequestMeter
from livery.refusals import Draining
from livery.spans import MOST_SEQUENCES, Timeline, TraceSink
from livery.tenancy import OPERATOR, Doors, Principal, Purpose
from livery.tenancy.gate import Counted
from livery.tenancy.room import Part

log = logging.getLogger("livery.access")

MAX_BODY = 2 << 20  # bytes, unless a server takes more
MANY_TEXTS = frozenset({"/v1/embeddings", "/classify", "/v1/score", "/score"})  # clients send thousands at once
MANY = 4  # times as many bytes as others' bodies theirs may have
BODY_TIMEOUT_S = 30.0
# Whoever sends one of these speaks for somebody else, or is not to be believed about who it is.
FORWARDING_HEADERS = (
    "forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-forwarded-server", "x-real-ip",
)  # fmt: skip
PROBES: tuple[Purpose, ...] = ("open", "scrape")
COUNTED: tuple[Purpose, ...] = ("ask", "manage")  # among the requests that limits are about
CLIENT_GONE = 499

_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(slots=True)
class RequestRecord:
    """What one request leaves behind; routes fill in what they know. Never text of prompts or answers."""

    id: str
    started: float = field(default_factory=time.perf_counter)
    status: int = CLIENT_GONE
    responding: bool = False
    served_by: str = "-"  # NAME@DIGEST, the name in full
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_token_s: float | None = None
    outcome: str = "-"
    principal: Principal = OPERATOR  # whose key it brought
    admitted: bool = False  # whether that is known: one without a right key is nobody's
    purpose: Purpose = "ask"
    meter: RequestMeter | None = None  # its clock, once the engine is asked
    claim: Counted | None = None  # its part of its key's and tenant's limits
    body: Part | None = None  # the room that its body takes

    def release(self) -> None:
        """Give back what it holds from its door to its end."""
        if self.claim is not None:
            self.claim.release()
        if self.body is not None:
            self.body.leave()


class Boundary:
    """ASGI middleware around all routes."""

    def __init__(
        self,
        app: ASGIApp,
        doors: Doors,
        access: Access,
        metrics: Metrics,
        admission: Admission,
        root_path: str = "",
        tracing: TraceSink | None = None,
        max_body: int = MAX_BODY,
    ) -> None:
        self._app = app
        self._max_body = max_body
        self._tracing = tracing
        self._admission = admission
        self._doors = doors
        self._access = access
        self._metrics = metrics
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        _settle_path(scope, self._root_path)
        headers = Headers(scope=scope)
        record = RequestRecord(_request_id(headers))
        scope.setdefault("state", {})["record"] = record
        logs.request_id.set(record.id)

        async def reply(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status, record.responding = message["status"], True
                own = MutableHeaders(scope=message)
                # OpenAI's clients read the one, Anthropic's the other.
                own["x-request-id"] = own["request-id"] = record.id
                self._tell_rates(own, record.principal)
            await send(message)

        try:
            await self._pass(scope, headers, receive, reply)
        except ClientGone:
            return
        except asyncio.CancelledError:  # the server stops waiting; this answer is the last thing the task does
            await self._fail(Draining(), record, scope, receive, reply)
        except Exception as error:  # noqa: BLE001  (request boundary)
            await self._fail(error, record, scope, receive, reply)
        finally:
            record.release()
            self._close(record, scope)

    async def _pass(self, scope: Scope, headers: Headers, receive: Receive, reply: Send) -> None:
        path = route_path(scope)
        record, method = scope["state"]["record"], scope["method"]
        record.purpose = self._access.purpose(method, path)
        record.principal = self._doors.admit(record.purpose, _key(headers))
        record.admitted = True
        if not path.isprintable():  # a router may well drop a line end and take the rest for a name
            raise UnknownUrl(ascii(path)[1:-1])
        if self._admission.draining and record.purpose not in PROBES:
            raise Draining
        if _changes(method, record.purpose) and not record.principal.anywhere:
            client, host = scope.get("client"), headers.get("host", "")
            forwarded = any(name in headers for name in FORWARDING_HEADERS)
            self._doors.check_local(client[0] if client else None, host, forwarded=forwarded)
            self._doors.check_page(host, headers.get("origin"), headers.get("sec-fetch-site"))
        if record.purpose in COUNTED:
            record.claim = await self._admission.count(record.principal)
        streams = streams_upload(method, path, headers.get("content-type", ""))
        unread = streams or record.purpose in PROBES  # which have no bodies, and are asked without a key
        await self._app(scope, receive if unread else await self._with_body(record, path, headers, receive), reply)

    async def _with_body(self, record: RequestRecord, path: str, headers: Headers, receive: Receive) -> Receive:
        """Read the whole body first, within limits of size and time, and hand it on as one message."""
        most = most_bytes(path, self._max_body)
        size = announced(headers, most)
        if size > most:
            raise _too_large(path, most)
        if size:
            record.body = self._admission.hold_body(record.principal, size)
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                body = await _read(receive, path, most)
        except TimeoutError:
            raise BodyTooSlow(f"The request body didn't arrive within {BODY_TIMEOUT_S:.0f} seconds.") from None
        if record.body is not None and len(body) < size:
            record.body.hold(len(body))
        message: Message | None = {"type": "http.request", "body": body, "more_body": False}

        async def replay() -> Message:
            nonlocal message
            if message is not None:
                first, message = message, None
                return first
            return await receive()

        return replay

    async def _fail(self, error: Exception, record: RequestRecord, scope: Scope, receive: Receive, reply: Send) -> None:
        answer = describe_at(error, route_path(scope))
        record.outcome = "error"
        if not record.responding:
            await answer.response()(scope, receive, reply)

    def _tell_rates(self, headers: MutableHeaders, principal: Principal) -> None:
        """What is left of the caller's limits per minute, under OpenAI's names."""
        for kind, rate in self._admission.gate.rates(principal).items():
            headers[f"x-ratelimit-limit-{kind}"] = str(rate.limit)
            headers[f"x-ratelimit-remaining-{kind}"] = str(rate.remaining)
            headers[f"x-ratelimit-reset-{kind}"] = f"{rate.reset_s:.3f}s"

    def _trace(self, record: RequestRecord, scope: Scope, route: str) -> None:
        if self._tracing is not None:
            self._tracing.tell(_timeline(record, _method(scope), route, Headers(scope=scope)))

    def _close(self, record: RequestRecord, scope: Scope) -> None:
        route = getattr(scope.get("route"), "path", "unknown")
        self._metrics.http(route, _method(scope), record.status)
        if scope["method"] == "POST" and record.purpose == "ask":
            if record.admitted:
                self._metrics.activity.note(_finished(record, route))
            self._trace(record, scope, route)
        quiet = record.purpose in PROBES and record.status < 400  # every few seconds, with nothing to say
        level = logging.DEBUG if quiet else logging.INFO
        if not log.isEnabledFor(level):
            return
        total_s = time.perf_counter() - record.started
        log.log(
            level,
            "%s %s %s status=%d served_by=%s prompt=%d completion=%d outcome=%s first_token=%s total=%.3fs",
            record.id,
            _method(scope),
            route,
            record.status,
            record.served_by,
            record.prompt_tokens,
            record.completion_tokens,
            record.outcome,
            "-" if record.first_token_s is None else f"{record.first_token_s:.3f}s",
            total_s,
            extra={"fields": _fields(record, _method(scope), route, total_s)},
        )


def _timeline(record: RequestRecord, method: str, route: str, headers: Headers) -> Timeline:
    """What becomes the spans of a request that is over."""
    adapter, _, version = record.served_by.rpartition("@")
    meter = record.meter
    return Timeline(
        route,
        record.started,
        time.perf_counter(),
        record.status >= 500 or record.outcome == "error",
        {
            "http.route": route,
            "http.request.method": method,
            "http.response.status_code": record.status,
            "livery.request_id": record.id,
            "livery.tenant": record.principal.tenant,
            "livery.outcome": record.outcome,
            "livery.sequences": len(meter.sequences) if meter else 0,
            "gen_ai.response.model": adapter,
            "livery.version": version if adapter else "",
            "gen_ai.usage.input_tokens": record.prompt_tokens,
            "gen_ai.usage.output_tokens": record.completion_tokens,
        },
        None if meter is None or meter.encoding is None else (meter.encoding, meter.encoded),
        meter.sequences[:MOST_SEQUENCES] if meter else (),
        headers.get("traceparent", ""),
        headers.get("tracestate", ""),
    )


def _fields(record: RequestRecord, method: str, route: str, total_s: float) -> dict[str, object]:
    """A line of the access log as fields; nothing that a client wrote is among them but its own harmless id."""
    return {
        "request_id": record.id,
        "method": method,
        "route": route,
        "status": record.status,
        "tenant": record.principal.tenant,
        "key": record.principal.key,
        "model": record.served_by.rpartition("@")[0] or None,
        "served_by": None if record.served_by == "-" else record.served_by,
        "prompt_tokens": record.prompt_tokens,
        "completion_tokens": record.completion_tokens,
        "outcome": None if record.outcome == "-" else record.outcome,
        "first_token_s": None if record.first_token_s is None else round(record.first_token_s, 6),
        "total_s": round(total_s, 6),
    }


def _finished(record: RequestRecord, route: str) -> Finished:
    adapter, _, digest = record.served_by.rpartition("@")
    return Finished(
        record.id,
        route,
        adapter,
        digest if adapter else "",
        record.status,
        record.outcome,
        record.prompt_tokens,
        record.completion_tokens,
        record.first_token_s,
        time.perf_counter() - record.started,
        record.principal.account,
        record.principal.key,
    )


def _settle_path(scope: Scope, root_path: str) -> None:
    """Let the path begin with the prefix, whether the proxy in front took it off or not: so ASGI wants it."""
    if scope["path"] != root_path and not scope["path"].startswith(f"{root_path}/"):
        scope["path"] = root_path + scope["path"]
    scope["root_path"] = root_path


def _changes(method: str, purpose: Purpose) -> bool:
    """Whether a request changes what is served, or sees and changes who may come in."""
    return purpose == "operate" or (purpose == "manage" and method not in LOOKING)


def _request_id(headers: Headers) -> str:
    """The client's own id where it is harmless, or a new one."""
    given = headers.get("x-request-id", "")
    return given if _SANE_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"


def _key(headers: Headers) -> bytes:
    """The bytes of the Authorization header, or Anthropic's header of a bare key in its place."""
    given = headers.get("authorization")
    if given is None and "x-api-key" in headers:
        given = f"Bearer {headers['x-api-key']}"
    return (given or "").encode("latin-1")


def _method(scope: Scope) -> str:
    """The method as a label: clients may send any word."""
    method = str(scope["method"])
    return method if method in ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH") else "OTHER"


def most_bytes(path: str, max_body: int = MAX_BODY) -> int:
    """How many bytes a body may have that is sent to this path of a server that takes `max_body`."""
    return MANY * max_body if path in MANY_TEXTS else max_body


def announced(headers: Headers, most: int) -> int:
    """How many bytes a body is said to have: as many as one may have where that isn't said."""
    if "transfer-encoding" in headers:
        return most
    length = headers.get("content-length", "0")
    return int(length) if length.isdigit() else most


async def _read(receive: Receive, path: str, most: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most:
            raise _too_large(path, most)
        more = message.get("more_body", False)
    return b"".join(parts)


def _too_large(path: str, most: int) -> BodyTooLarge:
    remedy = "Send fewer inputs at once (the client's chunk or batch size)" if path in MANY_TEXTS else "Shorten it"
    return BodyTooLarge(
        f"The request body is over the limit of {most} bytes. {remedy}, or let the operator raise --max-body."
    )
