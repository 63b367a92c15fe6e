"""If-Match: a change that is made only while an adapter or alias is as its client last saw it.

The tag (`ETag`) is its generation in quotes; a change that brings it back as `If-Match` is a compare-and-set, as with
`expected_generation`, and loses with 412.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request, Response

from livery.adapter_views import Json
from livery.api.responses import json_response
from livery.refusals import InvalidParameter, PreconditionFailed
from livery_adapters.registry import GenerationMismatch

HEADER = "if-match"
TAG = re.compile(r'"([0-9]{1,18})"')


def with_tag(shown: Json) -> Response:
    """An adapter, profile or alias, and its tag."""
    return json_response(shown, headers={"etag": f'"{shown["generation"]}"'})


@dataclass(frozen=True, slots=True)
class Precondition:
    """What a request's If-Match expects: a generation, or None without one."""

    tag: int | None

    @contextmanager
    def expecting(self, generation: int | None) -> Iterator[int | None]:
        """Around a change: what it is to expect, where the request may say so with `expected_generation` as well.

        Raises PreconditionFailed where what If-Match expects isn't so, InvalidParameter where the two differ.
        """
        if self.tag is not None and generation not in (None, self.tag):
            raise InvalidParameter(
                f"If-Match expects generation {self.tag}, and expected_generation {generation}; send one of them.",
                "expected_generation",
            )
        try:
            yield generation if self.tag is None else self.tag
        except GenerationMismatch as mismatch:
            if self.tag is None:
                raise
            raise PreconditionFailed(str(mismatch)) from mismatch


async def _precondition(request: Request) -> Precondition:
    """Raises InvalidParameter."""
    given = request.headers.get(HEADER)
    if given is None:
        return Precondition(None)
    found = TAG.fullmatch(given.strip())
    if found is None:
        raise InvalidParameter(
            'If-Match is to be the ETag of an answer about this name: its generation in quotes, as in "7".', HEADER
        )
    return Precondition(int(found[1]))


PreconditionDep = Annotated[Precondition, Depends(_precondition)]


async def _unconditional(request: Request) -> None:
    """For changes that a generation doesn't count. Raises InvalidParameter."""
    if HEADER in request.headers:
        raise InvalidParameter(
            "If-Match is not taken here: this change is made whatever the generation; leave the header out.", HEADER
        )


UNCONDITIONAL = Depends(_unconditional)
