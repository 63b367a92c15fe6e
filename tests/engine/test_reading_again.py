"""What a lost engine's successor reads again counts among what its tenants may have in memory."""

from __future__ import annotations

import asyncio

from msgspec import structs

from engine.supervised import CEILING_S, greedy, tokens
from livery.engine.base import AdapterPart, AdapterRef, Asker, EngineConfig
from livery.engine.fake import FakeEngine
from livery.engine.supervisor import Lost, SupervisedEngine


async def test_what_is_read_again_counts_for_who_asked_for_it_last() -> None:
    engines: list[FakeEngine] = []

    def make(config: EngineConfig, lost: Lost) -> FakeEngine:
        engines.append(FakeEngine())
        return engines[-1]

    engine = SupervisedEngine(EngineConfig("any", restarts=3), make)
    await engine.start()
    try:
        read, used = (AdapterRef(name, (AdapterPart(name, f"/{name}"),)) for name in ("a1", "b2"))
        await engine.load_adapter(read, Asker("acme", 2.0, 99))
        await engine.load_adapter(used)
        await tokens(engine, structs.replace(greedy("r", used), tenant="zeta", resident_bytes=7))
        assert set((await engine.stats()).resident_adapters) == {"a1", "b2"}
        await engines[0].die()
        async with asyncio.timeout(CEILING_S):
            while len(engines) < 2 or len(engines[1].askers) < 2:
                await asyncio.sleep(0)
        again = dict(zip(engines[1].loaded, engines[1].askers, strict=True))
        assert again == {"a1": Asker("acme", 2.0, 99), "b2": Asker("zeta", 1.0, 7)}
    finally:
        await engine.stop()
