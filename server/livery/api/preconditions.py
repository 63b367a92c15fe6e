"""If-Match: a change that is made only while an adapter is as its client last saw it.

The tag of an adapter (`ETag`) is its generation in quotes; a change that brings it back as `If-Match` is a
compare-and-set, as with `expected_generation`, and loses with 412.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import Request, Response

from livery.adapter_views import Json
from livery.api.responses import json_response
from livery.refusals import InvalidParameter, PreconditionFailed
from livery_adapters.registry import GenerationMismatch

HEADER = "if-match"
TAG = re.compile(r'"([0-9]{1,18})"')


def with_tag(adapter: Json) -> Response:
    """An adapter and its tag."""
    return json_response(adapter, headers={"etag": f'"{adapter["generation"]}"'})


def if_match(request: Request) -> int | None:
    """The generation that a change expects; None where it expects nothing. Raises InvalidParameter."""
    given = request.headers.get(HEADER)
    if given is None:
        return None
    found = TAG.fullmatch(given.strip())
    if found is None:
        raise InvalidParameter(
            'If-Match is to be the ETag of an answer about this adapter: its generation in quotes, as in "7".', HEADER
        )
    return int(found[1])


@contextmanager
def met(request: Request) -> Iterator[None]:
    """Around the change. Raises PreconditionFailed where what If-Match expects isn't so."""
    try:
        yield
    except GenerationMismatch as mismatch:
        if HEADER not in request.headers:
            raise
        raise PreconditionFailed(str(mismatch)) from mismatch
