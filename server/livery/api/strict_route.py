"""Routes of management refuse what their query holds beyond their parameters: a misspelt one would change what is
served without a word, as a misspelt field would.
"""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import Request, Response
from fastapi.dependencies.models import Dependant

from livery.api.reading import BodyRoute, Handler
from livery.refusals import InvalidParameter

MAX_NAME = 64  # characters shown of one


class StrictRoute(BodyRoute):
    """A route whose query holds its own parameters and nothing else."""

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()
        known = sorted(set(_query_names(self.dependant)))
        taken = f"takes {', '.join(known)}" if known else "takes none"

        async def checked(request: Request) -> Response:
            for name in request.query_params:
                if name not in known:
                    shown = name[:MAX_NAME]
                    raise InvalidParameter(f"{shown!r} is no parameter of this route, which {taken}.", shown)
            return await handle(request)

        return checked


def _query_names(dependant: Dependant) -> Iterator[str]:
    """Of a route and of all that it depends on."""
    for parameter in dependant.query_params:
        yield parameter.alias
    for inner in dependant.dependencies:
        yield from _query_names(inner)
