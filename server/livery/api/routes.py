"""Which routes there are, for a helpful word where a request meets none: the nearest one, the methods it takes."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import NamedTuple

from starlette.routing import BaseRoute, Route
from starlette.types import Scope

LIKENESS = 0.75  # of paths, as difflib measures it, from which on one is taken for the other misspelt
MAX_PATH = 128  # characters looked at and shown

# Beginnings of paths that other servers have, and what to use here.
INSTEAD = {
    "/api/generate": "use POST /v1/completions",
    "/api/chat": "use POST /v1/chat/completions",
    "/generate": "use POST /v1/completions",
    "/v1/rerank": "use POST /v1/score",
    "/rerank": "use POST /v1/score",
    "/pooling": "use POST /v1/embeddings",
    "/invocations": "use POST /v1/chat/completions",
    "/v1/engines": "use POST /v1/completions with the field model",
    "/v1/responses": "responses aren't stored; POST /v1/responses answers at once",
    "/v1/fine_tuning": "training isn't done here; PUT /v1/adapters/NAME adds an adapter that was trained elsewhere",
    "/v1/files": "files aren't kept here; PUT /v1/adapters/NAME adds an adapter",
    **{
        f"/v1/{family}": "this server generates text, by POST /v1/chat/completions and POST /v1/completions"
        for family in ("images", "audio", "videos", "realtime", "moderations")
    },
    **{
        f"/v1/{family}": "nothing is stored here; use POST /v1/chat/completions"
        for family in ("assistants", "threads", "conversations", "vector_stores", "batches")
    },
}
USUAL = "the API is under /v1: POST /v1/chat/completions, GET /v1/models; GET /openapi.json lists every route"


class _Known(NamedTuple):
    path: str  # with its parameters in braces
    fits: re.Pattern[str]
    methods: frozenset[str]
    shown: bool


class Routes:
    """The routes of one application."""

    def __init__(self, routes: Iterable[BaseRoute]) -> None:
        self._known = [
            _Known(route.path, route.path_regex, frozenset(route.methods or ()), route.include_in_schema)
            for route in routes
            if isinstance(route, Route)
        ]

    def allowed(self, path: str) -> list[str]:
        """Methods that some route takes at this path."""
        return sorted({method for known in self._known if known.fits.match(path) for method in known.methods})

    def hint(self, path: str) -> str:
        """What to do instead, where no route is at this path."""
        path = path[:MAX_PATH]
        plain = re.sub(r"/+", "/", path).rstrip("/")
        for guess in (plain, f"/v1{plain}", plain.removeprefix("/v1"), plain[max(0, plain.rfind("/v1/")) :]):
            if methods := self._exact(guess):
                return f"use {'|'.join(methods)} {guess}"
        served = {known.path: known for known in self._known if known.shown}
        for beginning, words in INSTEAD.items():
            if f"{plain}/".startswith(f"{beginning}/"):
                return words
        for close in difflib.get_close_matches(plain, served, n=1, cutoff=LIKENESS):
            return f"did you mean {'|'.join(self.allowed(close))} {close}?"
        return USUAL

    def _exact(self, path: str) -> list[str]:
        """Methods at this path, where it is one without parameters: those take anything."""
        return sorted({method for known in self._known if known.path == path for method in known.methods})


def route_path(scope: Scope) -> str:
    """The path that the router goes by: without the prefix under which a proxy shows this server."""
    return str(scope["path"])[len(scope.get("root_path", "")) :]
