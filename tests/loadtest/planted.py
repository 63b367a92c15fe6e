"""`livery serve` with a planted bug, for the load test to find: `planted.py BUG serve …`.

Under load, when another adapter is at work, every third answer comes from that one (mixed), or every answer comes from
the base, its adapter silently left out (dropped).
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from itertools import count

import msgspec

from livery.cli import main
from livery.engine.base import AdapterRef, GenerationRequest, TokenDelta
from livery.engine.client import EngineClient
from livery.engine.figures import PromptRead

EVERY = 3
sound = EngineClient.generate
numbers = count(1)
under_way: list[AdapterRef] = []


def mixed(others: list[AdapterRef], own: AdapterRef) -> AdapterRef | None:
    """Every third request has another's adapter."""
    return own if next(numbers) % EVERY else others[0]


def dropped(others: list[AdapterRef], own: AdapterRef) -> AdapterRef | None:
    """No request has its adapter."""
    return None


BUGS = {"mixed": mixed, "dropped": dropped}


async def planted(
    self: EngineClient, request: GenerationRequest, read: PromptRead | None = None
) -> AsyncIterator[TokenDelta]:
    """As the engine's client, but for requests that find another adapter at work."""
    own = request.adapter
    others = [adapter for adapter in under_way if adapter != own]
    if own is not None:
        under_way.append(own)
    if own is not None and others:
        request = msgspec.structs.replace(request, adapter=bug(others, own))
    try:
        async for delta in sound(self, request, read):
            yield delta
    finally:
        if own is not None:
            under_way.remove(own)


if __name__ == "__main__":
    bug = BUGS[sys.argv.pop(1)]
    EngineClient.generate = planted  # type: ignore[method-assign]
    main()
