"""`livery serve` with a planted bug, for the load test to find.

Under load, now and then, an answer comes from the adapter of a request that runs beside it.
"""

from __future__ import annotations

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


async def mixed_up(
    self: EngineClient, request: GenerationRequest, read: PromptRead | None = None
) -> AsyncIterator[TokenDelta]:
    """As the engine's client, but for every third request that finds another adapter at work."""
    own = request.adapter
    others = [adapter for adapter in under_way if adapter != own]
    if own is not None:
        under_way.append(own)
    if own is not None and others and not next(numbers) % EVERY:
        request = msgspec.structs.replace(request, adapter=others[0])
    try:
        async for delta in sound(self, request, read):
            yield delta
    finally:
        if own is not None:
            under_way.remove(own)


if __name__ == "__main__":
    EngineClient.generate = mixed_up  # type: ignore[method-assign]
    main()
