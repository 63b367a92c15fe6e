"""The console: a static page and its parts, under /ui. They hold nothing; what they show they ask the API for."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from importlib.resources import files

from fastapi import APIRouter, Request, Response

router = APIRouter()

_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
# Nothing from elsewhere, nothing inline, in nobody's frame: markup that got into the page could neither run nor send.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "form-action 'none'",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}


@router.get("/ui", include_in_schema=False)
@router.head("/ui", include_in_schema=False)
async def without_slash() -> Response:
    """The page names its parts beside itself, so it has to lie in a folder, whatever prefix a proxy shows it under."""
    return Response(status_code=307, headers={**HEADERS, "location": "ui/"})


def _part(content: bytes, kind: str) -> Callable[[Request], Awaitable[Response]]:
    headers = {**HEADERS, "content-type": f"{_TYPES[kind]}; charset=utf-8"}
    headers["etag"] = f'"{hashlib.sha256(content).hexdigest()[:32]}"'

    async def part(request: Request) -> Response:
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers)

    return part


def _add_parts() -> None:
    """A route for each file, read once: no path that a client sends leads to a file."""
    for file in sorted(files("livery.api").joinpath("ui").iterdir(), key=lambda file: file.name):
        name, _, kind = file.name.rpartition(".")
        if kind in _TYPES:
            path = "/ui/" if file.name == "index.html" else f"/ui/{file.name}"
            endpoint = _part(file.read_bytes(), kind)
            for method in ("GET", "HEAD"):
                router.add_api_route(path, endpoint, methods=[method], include_in_schema=False, name=f"ui_{name}")


_add_parts()
