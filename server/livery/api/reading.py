"""How a body becomes what its route is given: long ones beside the event loop, and none of more parts than a limit.

Parsing and validating take the framework's place, because it does both on the loop: a body within the limit of bytes
can take them a long time.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Coroutine
from email.message import Message
from typing import Annotated, Any, TypeVar

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException

from livery.api.boundary import CLIENT_GONE, RequestRecord
from livery.api.plain_json import check_count
from livery.api.sse import unless_gone
from livery.beside import READING, beside
from livery.foreign_json import MAX_DEPTH

T = TypeVar("T")
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class BodyRoute(APIRoute):
    """A route whose body, if it has one, is a model, or one of several that are told apart as models too."""

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle
        info = self.body_field.field_info
        # As the framework makes it; no type checker can say what it is.
        model: TypeAdapter[BaseModel] = TypeAdapter(Annotated[info.annotation, info])  # type: ignore[arg-type]

        async def read_first(plain: Request) -> Response:
            request = _ReadRequest(plain.scope, plain.receive)
            await request.read(model)
            return await self.carried_out(plain, handle(request))

        return read_first

    async def carried_out(self, request: Request, work: Coroutine[Any, Any, Response]) -> Response:
        """What becomes of a request whose body has been read: it is finished, whoever still waits for the answer."""
        return await work


class AnswerRoute(BodyRoute):
    """A route that does nothing but answer: for a client that has left it stops, whatever it waits for."""

    async def carried_out(self, request: Request, work: Coroutine[Any, Any, Response]) -> Response:
        answer = await unless_gone(request, work)
        return Response(status_code=CLIENT_GONE) if answer is None else answer


async def beside_body(request: Request, work: Callable[[], T]) -> T:
    """Do work on what a body holds where the body was read: here if it is short."""
    return await beside(READING, _tenant_of(request), len(await request.body()), work)


def _tenant_of(request: Request) -> str:
    record: RequestRecord = request.state.record
    return record.principal.tenant


class _ReadRequest(Request):
    """A request whose JSON has been read: to the framework it is the model that the route wants."""

    async def read(self, model: TypeAdapter[BaseModel]) -> None:
        """Raises RequestValidationError, InvalidParameter or HTTPException."""
        content = await self.body()
        self._read: object = None
        if content and _is_json(self.headers.get("content-type", "")):
            _check_encoding(self.headers.get("content-encoding", ""))
            self._read = await beside(READING, _tenant_of(self), len(content), _parse, content, model)

    async def json(self) -> Any:  # noqa: ANN401 - as in the framework
        return self._read


def _parse(content: bytes, model: TypeAdapter[BaseModel]) -> BaseModel | None:
    check_count(content)
    try:
        # As UTF-8 and nothing else, or the parts that were counted would be others. Half of a surrogate pair gets a
        # refusal that names its field.
        value = json.loads(content.decode("utf-8-sig", "surrogatepass"))
    except UnicodeDecodeError as error:
        raise StarletteHTTPException(
            400, f"The request body is not UTF-8 (byte {error.start}); send JSON as UTF-8."
        ) from None
    except json.JSONDecodeError as error:
        issue = {"type": "json_invalid", "loc": ("body", error.pos), "msg": "JSON decode error", "input": {}}
        raise RequestValidationError([issue]) from None
    except RecursionError:
        raise StarletteHTTPException(400, f"The request body is nested deeper than {MAX_DEPTH} levels.") from None
    except ValueError:
        most = sys.get_int_max_str_digits()
        raise StarletteHTTPException(
            400, f"The request body has a whole number of more than {most} digits; send it as text."
        ) from None
    if value is None:
        return None
    try:
        return model.validate_python(value)
    except ValidationError as error:
        issues = error.errors(include_url=False, include_context=False, include_input=False)
        raise RequestValidationError([{**issue, "loc": ("body", *issue["loc"])} for issue in issues]) from None


def _check_encoding(encoding: str) -> None:
    """Raises HTTPException for a body that is compressed."""
    if encoding.strip().lower() not in ("", "identity"):
        raise StarletteHTTPException(
            415, f"content-encoding is {encoding[:64]!r}, and bodies are read as they come; send the JSON uncompressed."
        )


def _is_json(content_type: str) -> bool:
    message = Message()
    message["content-type"] = content_type
    subtype = message.get_content_subtype()
    return message.get_content_maintype() == "application" and (subtype == "json" or subtype.endswith("+json"))
