"""What makes a run invalid is said in words, and what doesn't isn't."""

from __future__ import annotations

import asyncio
import time
from array import array

from livery_loadtest.health import TICK_S, Pulse, Vitals, judge
from livery_loadtest.precise import new_loop

GOOD = Vitals(1.0, 10.0, array("d", [0.001] * 100), array("d", [0.002] * 100))


def test_a_client_that_kept_up_is_valid() -> None:
    health = judge([GOOD, GOOD], open_loop=True)
    assert health.valid and health.reasons == ()
    assert (health.processes, health.cpu_share) == (2, 0.1)
    assert (health.loop_lag_ms, health.send_delay_ms) == ((1.0, 1.0, 1.0), (2.0, 2.0, 2.0))


def test_each_way_to_be_the_bottleneck_has_its_reason() -> None:
    late = array("d", [0.001] * 90 + [0.02] * 10)
    cases = {
        "used 95% of a core": Vitals(9.5, 10.0, GOOD.lags, GOOD.delays),
        "event loop lagged 20.0 ms": Vitals(1.0, 10.0, late, GOOD.delays),
        "requests left 20.0 ms late": Vitals(1.0, 10.0, GOOD.lags, late),
        "requests failed: why": Vitals(1.0, 10.0, GOOD.lags, GOOD.delays, ("requests failed: why",)),
    }
    for words, vitals in cases.items():
        health = judge([GOOD, vitals], open_loop=True)
        assert not health.valid
        assert words in health.reasons[0]
    assert judge([cases["requests left 20.0 ms late"]], open_loop=False).valid
    blink = judge([Vitals(0.1, 0.1)], open_loop=True)
    assert blink.valid and blink.cpu_share == 1.0
    assert judge([Vitals()], open_loop=True).valid


def test_a_standstill_counts_with_every_tick_it_swallowed() -> None:
    lags = array("d")

    async def stand_still() -> None:
        pulse = Pulse(lags)
        time.sleep(10 * TICK_S)
        pulse.stop()

    asyncio.run(stand_still())
    assert len(lags) >= 9
    assert lags[0] >= 8 * TICK_S
    assert list(lags) == sorted(lags, reverse=True)


def test_the_precise_loop_is_never_early_and_still_a_loop() -> None:
    async def wait() -> tuple[float, str]:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        await asyncio.sleep(0.0123)
        waited = loop.time() - begun
        server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            assert await reader.read() == b""
            writer.close()
        return waited, "done"

    with asyncio.Runner(loop_factory=new_loop) as runner:
        waited, done = runner.run(wait())
    assert waited >= 0.0123
    assert done == "done"
