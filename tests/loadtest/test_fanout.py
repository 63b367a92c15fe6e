"""A client that one process is too slow for measures anew from more, and says so; what can't be done twice isn't."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from io import StringIO
from typing import Any

import pytest
from rich.console import Console
from starlette.requests import Request
from starlette.responses import Response

from livery_loadtest import health
from livery_loadtest.commands.options import fanout
from livery_loadtest.drive import Glance, Observer
from livery_loadtest.fanout import TOKENS_A_PROCESS, Fanout, offered
from livery_loadtest.health import BUSY
from livery_loadtest.kinds import Closed, Fixed, Poisson
from livery_loadtest.options import Options
from livery_loadtest.record import Health, Run
from livery_loadtest.report.page import page
from livery_loadtest.report.result import Server, make_result, read_result, write_result
from livery_loadtest.report.table import print_result
from livery_loadtest.script import Planned, Script
from livery_loadtest.session import Manner, find_served, run_session
from livery_loadtest.spec import Churn, ColdArrivals, Hook, Workload
from livery_loadtest.target import Target
from loadtest.known_server import KnownServer, serving
from loadtest.test_report_page import self_contained
from loadtest.test_result_document import ORIGIN


def load(name: str = "some", **fields: Any) -> Workload:
    given = {"requests": 8, "warm_up": 2, "arrivals": Closed(streams=8), "output": Fixed(tokens=4), **fields}
    return Workload(name=name, **given)


class Begun:
    """What a session says that it begins."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def __call__(self, what: str, total: int) -> Observer:
        self.said.append(what)
        return self._look

    def _look(self, glance: Glance) -> None:
        pass


@pytest.fixture
def always_busy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Any processor time at all is too much."""
    monkeypatch.setattr(health, "MOST_CPU_SHARE", -1.0)
    monkeypatch.setattr(health, "LEAST_S", 0.0)
    yield


async def measured(server: KnownServer, workloads: Sequence[Workload], manner: Manner, begun: Begun) -> list[list[Run]]:
    subject = await find_served(Target(server.name, server.url))
    return [one.runs for one in await run_session(workloads, [subject], manner, begun)]


@pytest.mark.usefixtures("always_busy")
async def test_a_busy_client_measures_anew_from_twice_as_many_processes(
    pair: tuple[KnownServer, KnownServer], tmp_path: Any
) -> None:
    server, begun = pair[0], Begun()
    first, second = load(), load("other")
    (one,), (other,) = await measured(server, [first, second], Manner(processes=Fanout(cores=3)), begun)
    assert begun.said == [
        "left, some, warm-up",
        "left, some, 1 of 1",
        "left, some, 1 of 1, anew from 2 processes",
        "left, some, 1 of 1, anew from 3 processes",
        "left, other, warm-up",
        "left, other, 1 of 1",
    ]
    assert (one.health.processes, other.health.processes) == (3, 3), "what one turned out to need the next begins with"
    assert [told.partition(" used ")[0] for told in one.health.anew] == [
        "the client's one process",
        "one of 2 client processes",
    ]
    assert other.health.anew == ()
    assert BUSY in one.health.reasons, "there is no fourth core, so it is still doubtful"
    asked = [str(seen["prompt"]) for seen in server.seen]
    assert len(asked) == len(set(asked)) == 3 * 8 + 8 + 2 * 2, "nothing is asked twice, which a cache would answer"

    result = make_result(first, [Server(name="left", url=server.url)], [one], ORIGIN)
    write_result(result, tmp_path / "some.json")
    result = read_result(tmp_path / "some.json")
    said = "repeat 1 from 3 processes, since the client's one process used "
    console = Console(width=400, record=True, file=StringIO())
    print_result(result, console)
    assert f"left: measured anew: {said}" in console.export_text()
    assert said in self_contained(page([result])).text


@pytest.mark.usefixtures("always_busy")
@pytest.mark.parametrize(
    "fields",
    [
        {"cold": ColdArrivals(share=0.5, reserved=1)},
        {"hooks": (Hook(at_s=0, run="true"),)},
        {"churn": Churn(every_s=0.1, adapters=1, source="/srv"), "arrivals": Poisson(rate=40)},
        {"arrivals": Closed(streams=1)},
    ],
    ids=["cold", "hooks", "churn", "one stream"],
)
async def test_what_cannot_be_done_again_or_shared_out_counts_as_it_is(
    pair: tuple[KnownServer, KnownServer], fields: dict[str, Any]
) -> None:
    begun = Begun()
    manner = Manner(processes=Fanout(cores=4), allow_hooks=True)
    ((run,),) = await measured(pair[0], [load(warm_up=0, **fields)], manner, begun)
    assert begun.said == ["left, some, 1 of 1"]
    assert (run.health.processes, run.health.anew) == (1, ())
    assert BUSY in run.health.reasons


class Interrupting(KnownServer):
    """Interrupts whoever asks for more than so much, once, and answers no more."""

    answered = 2 + 8 + 3

    async def complete(self, request: Request) -> Response:
        if len(self.seen) < self.answered:
            return await super().complete(request)
        if not self.changes:
            self.changes.append(("interrupted", {}))
            os.kill(os.getpid(), signal.SIGINT)
        while (await request.receive())["type"] != "http.disconnect":
            continue
        return Response()


@pytest.mark.usefixtures("always_busy")
async def test_what_was_there_before_an_interrupt_is_kept(tmp_path: Any) -> None:
    server, begun = Interrupting("stuck", ["base", "pirate"]), Begun()
    with serving(server):
        ((run,),) = await measured(server, [load()], Manner(processes=Fanout(cores=2), repeats=2), begun)
    assert begun.said[-1] == "stuck, some, 1 of 2, anew from 2 processes"
    assert run.interrupted
    assert [record.error for record in run.records] == [None] * 8
    assert run.health.processes == 1 and BUSY in run.health.reasons


def made(health: Health, *, interrupted: bool = False) -> Run:
    return Run("t", 0, 0.0, 1.0, [], health, interrupted=interrupted)


def healthy(processes: int, *reasons: str) -> Health:
    return Health(processes, 0.5, (0.0, 0.0, 0.0), (0.0, 0.0, 0.0), reasons)


def test_it_is_for_want_of_processor_time_alone_and_as_asked_that_a_client_measures_anew() -> None:
    script, options = Script([Planned(index, None, "m", "x", 4) for index in range(9)]), Options(streams=6)
    auto = Fanout(cores=16)
    assert auto.first(script, options) == 1
    assert auto.more(script, options, made(healthy(1))) == 0
    assert auto.more(script, options, made(healthy(1, health.WAITED))) == 0
    assert auto.more(script, options, made(healthy(1, BUSY), interrupted=True)) == 0
    assert auto.more(script, options, made(healthy(1, "93 %", BUSY))) == 2
    assert auto.more(script, options, made(healthy(4, BUSY))) == 6, "as many as there are streams"
    assert auto.more(script, options, made(healthy(6, BUSY))) == 0
    assert auto.first(script, options) == 6
    assert auto.more(script, Options(streams=6, fold=True), made(healthy(4, BUSY))) == 0, "it took hours"
    two = fanout("2")
    assert two.first(script, options) == 2
    assert two.more(script, options, made(healthy(2, BUSY))) == 0


def test_an_open_loop_begins_with_as_many_as_its_rate_asks_for() -> None:
    tokens = TOKENS_A_PROCESS // 100
    script = Script([Planned(index, index / 250, "m", "x", tokens) for index in range(501)])  # 250 a second, for 2 s
    assert offered(script, Options()) == pytest.approx(2.5 * TOKENS_A_PROCESS, rel=0.01)
    assert offered(script, Options(duration_s=4)) == pytest.approx(1.25 * TOKENS_A_PROCESS, rel=0.01)
    assert offered(script, Options(streams=4)) == offered(Script([]), Options()) == 0
    assert Fanout(cores=8).first(script, Options()) == 3
    assert Fanout(cores=2).first(script, Options()) == 2
    assert Fanout(1).first(script, Options()) == 1


@pytest.mark.parametrize("said", ["0", "-1", "two", "", "9999"])
def test_a_number_of_processes_that_cannot_be_is_refused(said: str) -> None:
    with pytest.raises(ValueError, match=r"--processes .*: give a number from 1 to 1024, or auto"):
        fanout(said)
