"""What makes a run invalid is said in words, and what doesn't isn't."""

from __future__ import annotations

import asyncio
import time
from array import array
from dataclasses import replace

from livery_loadtest.health import TICK_S, Pulse, Vitals, judge
from livery_loadtest.precise import new_loop
from livery_loadtest.record import Record
from livery_loadtest.script import Planned

GOOD = Vitals(1.0, 10.0, array("d", [0.001] * 100), array("d", [0.002] * 100))


def test_a_client_that_kept_up_is_valid() -> None:
    health = judge([GOOD, GOOD], [])
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
    remedies = ("was busy itself", "waited for a core", "waited for a core", "requests failed")
    for (words, vitals), remedy in zip(cases.items(), remedies, strict=True):
        health = judge([GOOD, vitals], [])
        assert not health.valid
        assert words in health.reasons[0]
        assert remedy in health.reasons[-1]
    blink = judge([Vitals(0.1, 0.1)], [])
    assert blink.valid and blink.cpu_share == 1.0
    assert judge([Vitals()], []).valid


def made_record(index: int, first_s: float) -> Record:
    planned = Planned(index, None, "m", "text", 3)
    return Record(planned, 10.0, 10.0, finished=12.0, events=array("d", [10.0 + first_s]))


def test_being_late_by_little_of_what_the_server_takes_does_not_matter() -> None:
    late = Vitals(1.0, 10.0, array("d", [0.012] * 10), array("d", [0.007] * 10))
    answers = [made_record(index, first_s) for index, first_s in enumerate((0.1, 0.25, 0.9))]
    assert judge([late], answers).valid
    quick = [made_record(index, 0.1) for index in range(3)]
    assert [reason.split(" at p99")[0] for reason in judge([late], quick).reasons[:2]] == [
        "the client's event loop lagged 12.0 ms",
        "requests left 7.0 ms late",
    ]
    assert not judge([Vitals(9.5, 10.0)], answers).valid


def test_a_late_look_is_measured_by_the_time_between_tokens() -> None:
    """First tokens after 10 s leave half a second for sending; the same clock stamps all tokens after them."""
    late = Vitals(1.0, 10.0, array("d", [0.012] * 10), array("d", [0.4] * 10))

    def answered(gap_s: float, *, folded: bool = False, told: bool = True) -> Record:
        record = made_record(0, 10.0)
        record.planned = replace(record.planned, max_tokens=33)
        record.events = array("d", [20.0 + gap_s * index for index in range(33)])
        record.output_tokens = 33 if told else None
        if folded:
            record.events = array("d", [record.events[0], record.events[-1]])
        return record

    assert judge([late], [answered(0.25)] * 3).valid
    quick = (answered(0.1), answered(0.1, folded=True), answered(0.1, folded=True, told=False))
    for one in quick:
        (reason, _) = judge([late], [one] * 3).reasons
        assert reason == "the client's event loop lagged 12.0 ms at p99 (at most 10.0 ms)"


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
