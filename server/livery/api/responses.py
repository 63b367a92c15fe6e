"""How data becomes the JSON of an HTTP answer."""

from __future__ import annotations

from collections.abc import Mapping

import orjson
from fastapi import Response


def json_response(data: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """`data` as orjson writes it: plain values, no halves of surrogate pairs in its text."""
    return Response(orjson.dumps(data), status, headers=headers, media_type="application/json")
