"""How everything that can go wrong looks to a client: one table, one shape.

    {"error": {"message", "type", "param", "code"}}

Whatever is not in the table is our fault: a 500 without details. What goes out are the words of refusals made for
clients, and fixed sentences with the request's id, under which the log has the rest. Knows how errors look, not when
they happen.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException as StarletteHTTPException

from livery import descriptors, logs, refusals, tenancy
from livery.api.responses import json_response
from livery.api.routes import MAX_PATH, USUAL, Routes, route_path
from livery.chat_template import InvalidMessages
from livery.engine import base as engine
from livery_adapters import registry
from livery_adapters.refusal import AdapterRefused

log = logging.getLogger("livery.api")

INVALID = "invalid_request_error"
LIMITED = "rate_limit_error"
SERVER = "server_error"
# A client's own input comes back in validation messages; both bounds keep the answer small.
MAX_ISSUES = 5
MAX_MESSAGE = 300
RETRY_AFTER_S = 1


class ErrorFacts(BaseModel):
    """What went wrong: for people, by kind, the field at fault (its dotted path), and for programs."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorAnswer(BaseModel):
    """The body of every answer that isn't a success."""

    error: ErrorFacts


class UnknownUrl(Exception):
    """No route at this path; `hint` says what to do instead."""

    def __init__(self, path: str, hint: str = USUAL) -> None:
        super().__init__(f"Unknown URL {path[:MAX_PATH]}; {hint.removesuffix('?')}{'?' if hint.endswith('?') else '.'}")


class MethodNotAllowed(Exception):
    """The route exists and takes only the methods `allowed`."""

    def __init__(self, method: str, path: str, allowed: Sequence[str]) -> None:
        super().__init__(f"{path[:MAX_PATH]} doesn't take {method[:16]}; it takes {' and '.join(allowed)}.")
        self.allowed = allowed


class BodyTooLarge(Exception):
    """The request body is over the limit."""


class BodyTooSlow(Exception):
    """The request body didn't arrive in time."""


class ClientGone(Exception):
    """The client left before its request was read."""


@dataclass(frozen=True, slots=True)
class Failure:
    """How one class of errors is answered."""

    status: int
    type: str
    code: str
    message: str | None = None  # instead of the exception's own words, where those could say too much


TABLE: dict[type[Exception], Failure] = {
    refusals.ServiceRefusal: Failure(500, SERVER, "internal_error"),
    refusals.UnknownModel: Failure(404, INVALID, "model_not_found"),
    refusals.InvalidParameter: Failure(400, INVALID, "invalid_value"),
    refusals.UnsupportedParameter: Failure(400, INVALID, "unsupported_parameter"),
    refusals.UnknownParameter: Failure(400, INVALID, "unrecognized_request_argument"),
    refusals.ContextLengthExceeded: Failure(400, INVALID, "context_length_exceeded"),
    refusals.Overloaded: Failure(503, SERVER, "engine_overloaded"),
    refusals.OutOfDescriptors: Failure(503, SERVER, "engine_overloaded"),
    refusals.ReplicaLost: Failure(503, SERVER, "replica_lost"),
    refusals.GrammarUntried: Failure(503, SERVER, "grammar_untried"),
    refusals.Draining: Failure(503, SERVER, "engine_overloaded"),
    refusals.TooManyIntakes: Failure(503, SERVER, "too_many_intakes"),
    refusals.NotReady: Failure(503, SERVER, "not_ready"),
    refusals.GenerationFailed: Failure(500, SERVER, "generation_failed"),
    refusals.DeadlineExceeded: Failure(504, SERVER, "deadline_exceeded"),
    refusals.AdapterReplaced: Failure(503, SERVER, "adapter_replaced"),
    refusals.AdapterTooLarge: Failure(400, INVALID, "resident_bytes_exceeded"),
    refusals.AdapterUnusable: Failure(400, INVALID, "adapter_load_failed"),
    refusals.AdapterNotReady: Failure(503, SERVER, "adapter_loading"),
    refusals.AdapterNotFetched: Failure(503, SERVER, "blobs_unavailable"),
    refusals.PreconditionFailed: Failure(412, INVALID, "generation_mismatch"),
    # vLLM's own types, which clients of its management routes know.
    refusals.AdapterExists: Failure(400, "InvalidUserInput", "adapter_exists"),
    refusals.AdapterNotFound: Failure(404, "NotFoundError", "model_not_found"),
    refusals.AdapterFieldEmpty: Failure(400, "InvalidUserInput", "invalid_value"),
    refusals.AdapterPathNotFound: Failure(404, "NotFoundError", "adapter_not_found"),
    InvalidMessages: Failure(400, INVALID, "invalid_value"),
    AdapterRefused: Failure(422, INVALID, "adapter_load_failed"),
    registry.RegistryError: Failure(409, INVALID, "conflict"),
    registry.UnknownAdapter: Failure(404, INVALID, "unknown_adapter"),
    registry.UnknownAlias: Failure(404, INVALID, "unknown_alias"),
    registry.UnknownVersion: Failure(404, INVALID, "unknown_version"),
    registry.InvalidAlias: Failure(400, INVALID, "invalid_alias"),
    registry.InvalidShare: Failure(400, INVALID, "invalid_share"),
    registry.QuotaExceeded: Failure(403, "permission_error", "quota_exceeded"),
    # Their own words say where the database is, and as whom it is asked.
    registry.RegistryUnavailable: Failure(
        503, SERVER, "registry_unavailable", "The server's database doesn't answer at the moment. Please retry."
    ),
    registry.RegistryUnreadable: Failure(
        500, SERVER, "registry_unreadable", "The server's database can't be read; the server's log says why."
    ),
    registry.RegistryTooNew: Failure(
        500, SERVER, "registry_too_new", "The server's database can't be read; the server's log says why."
    ),
    tenancy.InvalidApiKey: Failure(401, INVALID, "invalid_api_key"),
    tenancy.LimitExceeded: Failure(429, LIMITED, "rate_limit_exceeded"),
    tenancy.OverShare: Failure(429, LIMITED, "rate_limit_exceeded"),
    tenancy.NotLocal: Failure(403, "permission_error", "loopback_only"),
    tenancy.RoleNotAllowed: Failure(403, "permission_error", "role_not_allowed"),
    # Each has a code of its own.
    tenancy.TenancyError: Failure(400, INVALID, "invalid_value"),
    tenancy.InvalidTenancy: Failure(400, INVALID, "invalid_value"),
    tenancy.Conflict: Failure(409, INVALID, "conflict"),
    tenancy.UnknownTenant: Failure(404, INVALID, "unknown_tenant"),
    tenancy.UnknownKey: Failure(404, INVALID, "unknown_key"),
    engine.EngineError: Failure(500, SERVER, "internal_error", "The engine failed."),
    engine.ModelRefused: Failure(500, SERVER, "internal_error", "The engine failed."),
    engine.RequestRefused: Failure(400, INVALID, "invalid_value"),
    engine.AdapterLoadFailed: Failure(400, INVALID, "adapter_load_failed"),
    engine.EngineRestarting: Failure(503, SERVER, "engine_restarting"),
    engine.EngineDead: Failure(500, SERVER, "internal_error", "The engine stopped; the server must be restarted."),
    UnknownUrl: Failure(404, INVALID, "unknown_url"),
    MethodNotAllowed: Failure(405, INVALID, "method_not_allowed"),
    BodyTooLarge: Failure(413, INVALID, "request_too_large"),
    BodyTooSlow: Failure(408, INVALID, "request_timeout"),
}
# How an adapter is refused where 422 would be wrong: it is about the request, the source or this machine.
ADAPTER_STATUS = {
    "invalid_name": 400,
    "bad_source": 400,
    "bad_composition": 400,
    "not_additive": 400,
    "source_not_allowed": 403,
    "source_forbidden": 403,
    "source_not_found": 404,
    "too_large": 413,
    "source_unreachable": 502,
    "format_untried": 503,
    "blobs_unavailable": 503,
    "blobs_of_another": 503,
    "blobs_elsewhere": 503,
    "storage_failed": 507,
    "storage_full": 507,
}
UNEXPECTED = Failure(500, SERVER, "internal_error", "The server had an internal error.")


@dataclass(frozen=True, slots=True)
class ApiError:
    """One error ready to send."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)

    def response(self) -> Response:
        return json_response(self.body, self.status, self.headers)


# What Anthropic calls the kinds of errors, by status.
ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
ANTHROPIC_PATH = "/v1/messages"


def in_anthropic_words(error: ApiError) -> ApiError:
    """The same error in the shape that Anthropic's clients read, which has no place for the field but the message."""
    facts = error.body["error"]
    kind = ANTHROPIC_TYPES.get(error.status, "api_error" if error.status >= 500 else INVALID)
    message = str(facts["message"])
    if facts["param"] and not message.startswith(f"{facts['param']}: "):
        message = f"{facts['param']}: {message}"
    return ApiError(error.status, {"type": "error", "error": {"type": kind, "message": message}}, error.headers)


def describe_at(error: Exception, path: str) -> ApiError:
    """The answer for any exception in the words of the API that has this path."""
    told = describe(error)
    return in_anthropic_words(told) if path == ANTHROPIC_PATH or path.startswith(f"{ANTHROPIC_PATH}/") else told


def describe(error: Exception) -> ApiError:
    """The answer for any exception; one that nobody expected is logged here with its traceback."""
    if isinstance(error, RequestValidationError):
        return _invalid_body(error.errors())
    if isinstance(error, StarletteHTTPException):
        return _http_error(error)
    if descriptors.used_up(error):
        error = refusals.OutOfDescriptors()
    failure = next((TABLE[kind] for kind in type(error).__mro__ if kind in TABLE), UNEXPECTED)
    if isinstance(error, AdapterRefused):  # each reason has a code of its own
        failure = Failure(ADAPTER_STATUS.get(error.code, failure.status), INVALID, error.code)
    elif isinstance(error, tenancy.TenancyError):
        failure = Failure(failure.status, failure.type, error.code)
    elif isinstance(error, registry.RegistryError):
        failure = Failure(failure.status, failure.type, error.code, failure.message)
    message = str(error) if failure.message is None else _withheld(error, failure)
    body = error_body(message, failure, getattr(error, "param", None))
    return ApiError(failure.status, body, _headers(error, failure))


def _withheld(error: Exception, failure: Failure) -> str:
    """What is said in place of an error's own words, which the log has under the same request id."""
    request = logs.request_id.get()
    trace = error if failure is UNEXPECTED else None
    log.error("request %s failed: %s: %s", request or "-", type(error).__name__, error, exc_info=trace)
    return f"{failure.message} (request id {request})" if request else str(failure.message)


def error_body(message: str, failure: Failure, param: str | None = None) -> dict[str, Any]:
    shown = param if param is None else _writable(param)
    return {"error": {"message": _writable(message), "type": failure.type, "param": shown, "code": failure.code}}


def install(app: FastAPI, routes: Routes) -> None:
    """Make every error of the application, which has these routes, take this module's shape."""

    async def answer(request: Request, error: Exception) -> Response:
        path = route_path(request.scope)
        if isinstance(error, StarletteHTTPException) and error.status_code == 404:
            error = UnknownUrl(request.url.path, routes.hint(path))
        elif isinstance(error, StarletteHTTPException) and error.status_code == 405:
            error = MethodNotAllowed(request.method, request.url.path, routes.allowed(path))
        return describe_at(error, path).response()

    for kind in (RequestValidationError, StarletteHTTPException, *TABLE):
        app.add_exception_handler(kind, answer)


def _writable(text: str) -> str:
    """Messages repeat what clients sent, which may hold halves of surrogate pairs."""
    return text.encode("utf-8", "replace").decode()


def _headers(error: Exception, failure: Failure) -> dict[str, str]:
    if failure.status == 401:
        return {"www-authenticate": "Bearer"}
    if isinstance(error, MethodNotAllowed):
        return {"allow": ", ".join(error.allowed)}
    # The official client repeats these, and the answer would stay the same, or the time be up again.
    if failure.status in (409, 412, 504):
        return {"x-should-retry": "false"}
    if failure.status in (429, 503):
        return {"retry-after": str(getattr(error, "retry_after", RETRY_AFTER_S))}
    return {}


def _http_error(error: StarletteHTTPException) -> ApiError:
    """What the framework raises by itself, as for bodies that aren't JSON."""
    failure = Failure(error.status_code, INVALID, "invalid_request")
    message = str(error.detail)[:MAX_MESSAGE]
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    return ApiError(failure.status, error_body(message, failure), headers)


def _invalid_body(issues: Sequence[Any]) -> ApiError:
    """A body that doesn't fit the schema; the first issue names the field."""
    first = issues[0]
    missing = first["type"] == "missing"
    code = "missing_required_parameter" if missing else "invalid_value"
    if first["type"] == "json_invalid":
        message = "The request body is not valid JSON."
    elif _param(first) is None:
        message = "The request body must be a JSON object; send it with the header content-type: application/json."
    else:
        message = "; ".join(f"{_param(issue)}: {issue['msg']}"[:MAX_MESSAGE] for issue in issues[:MAX_ISSUES])
    return ApiError(400, error_body(message, Failure(400, INVALID, code), _param(first)))


def _param(issue: Mapping[str, Any]) -> str | None:
    """The dotted path of a field, without the framework's own first part and without union branches."""
    path = [str(part) for part in issue["loc"][1:] if isinstance(part, int) or is_field(part)]
    return ".".join(path)[:MAX_MESSAGE] or None


def is_field(part: str) -> bool:
    """Whether a word of a path that doesn't fit a schema is a field's, not a branch of a union."""
    return part.isidentifier() and part not in ("str", "int", "float", "bool")
