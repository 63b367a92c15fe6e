"""What workers are told of the server that they are part of: its processes, and its engine."""

from __future__ import annotations

import asyncio

import pytest

from livery.engine.base import EngineError, EngineStats
from livery.survey import House
from livery.workers import messages
from workers.scenes import Scene, scene

__all__ = ["scene"]


async def test_whoever_waits_for_the_house_is_told_when_it_cannot_be_asked(scene: Scene) -> None:
    def broken() -> House:
        raise LookupError("no such series")

    scene.one.desk._hub.house = broken
    async with asyncio.timeout(10):
        with pytest.raises(EngineError, match="its log has the rest"):
            await scene.one.link.ask(lambda call: messages.AskHouse(call=call))
    assert await scene.one.gate.held() is not None, "and it goes on"


async def test_what_cannot_be_said_to_another_process_is_not_waited_for(scene: Scene) -> None:
    with pytest.raises(OverflowError):
        await scene.one.link.ask(lambda call: messages.AskHouse(call=10**20))
    assert not scene.one.link._asked
    assert await scene.one.gate.held() is not None, "and it goes on"


async def test_what_one_worker_heard_of_the_engine_is_the_others_too(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is scraped tells the same: a count that fell from one worker to the next would look like a new engine."""

    async def told() -> EngineStats:
        return EngineStats(restarts=2)

    before = await scene.other.survey.house()
    monkeypatch.setattr(scene.engine, "stats", told)
    await scene.one.engine.stats()
    for worker in (scene.one, scene.other):
        house = await worker.survey.house()
        assert house.engine_restarts == 2 and before.engine_restarts == 0
        assert house.engine_answered is not None and before.engine_answered is not None
        assert house.engine_answered > before.engine_answered
