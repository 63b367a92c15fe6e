"""How long a request may take: its own word, in its body or in a header, and the server's."""

from __future__ import annotations

import math

from fastapi import Request

from livery.api.boundary import RequestRecord
from livery.refusals import InvalidParameter

HEADER = "x-request-timeout"  # seconds
MAX_TIMEOUT_S = 86_400


def until(request: Request, wanted: float | None, most: float) -> float:
    """When a request has to be done, by time.perf_counter(): the first of what body, header and server say.

    `wanted` is the body's word in seconds from the request's arrival, `most` the server's, 0 for none. Raises
    InvalidParameter.
    """
    record: RequestRecord = request.state.record
    allowed = [seconds for seconds in (wanted, _header(request.headers.get(HEADER)), most) if seconds]
    return record.started + min(allowed, default=math.inf)


def _header(value: str | None) -> float | None:
    if value is None:
        return None
    try:
        seconds = float(value[:32])
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= MAX_TIMEOUT_S:
        raise InvalidParameter(
            f"The header {HEADER} is {value[:32]!r}; it takes seconds above 0, at most {MAX_TIMEOUT_S}.", HEADER
        )
    return seconds
