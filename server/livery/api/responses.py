"""How data becomes the JSON of an HTTP answer."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import orjson
from fastapi import Response


def json_response(data: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """`data` as orjson writes it, or msgspec where whole numbers are longer than 64 bits, as in a profile's schema:
    plain values, no halves of surrogate pairs in its text.
    """
    try:
        written = orjson.dumps(data)
    except orjson.JSONEncodeError:
        written = msgspec.json.encode(data)
    return Response(written, status, headers=headers, media_type="application/json")
