"""The load test's pages for the browser to look at: every part of them, over made-up runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec

from livery_loadtest.capacity import Capacity, Trial
from livery_loadtest.compare import compare
from livery_loadtest.record import Hooked, Run
from livery_loadtest.report.comparison import write_comparison_page
from livery_loadtest.report.page import write_page
from livery_loadtest.report.result import Result, Server, make_result
from livery_loadtest.verify import Compared, Finding, Verification
from loadtest.made_runs import BUSY, GOOD, Making, made_run, workload
from loadtest.test_result_document import ORIGIN

PEERS = ("livery", "vllm", "llama.cpp", "peft", "peft-merged", "sixth", "seventh", "eighth")


def reports(folder: Path) -> dict[str, str]:
    """Write them; each page's name -> its address."""
    write_page(_suite(), folder / "suite.html", "A suite")
    write_page([_peers()], folder / "peers.html", "Peers")
    write_page([_troubled()], folder / "troubled.html")
    write_page([_searched(), *_rates()], folder / "capacity.html", "Capacity")
    both = (("a", 0.08), ("b", 0.2))
    ours, theirs = (_result(name, Making(requests=150, ttft_s=ttft), repeats=8) for name, ttft in both)
    write_comparison_page(compare(ours, theirs), folder / "compared.html")
    return {path.stem: path.resolve().as_uri() for path in sorted(folder.glob("*.html"))}


def _result(name: str, making: Making, repeats: int = 1, load: str = "made") -> Result:
    runs = [made_run(making, name, repeat) for repeat in range(repeats)]
    return make_result(workload(name=load), [Server(name=name, url="http://host:1", version="1.0")], runs, ORIGIN)


def _suite() -> list[Result]:
    """Several workloads on one server, one with cold starts, clients that leave, loads and a command."""
    busy = Making(requests=200, failing=0.05, leaving=0.1, cold=8, adapters=30)
    run = replace(made_run(busy, "server"), hooked=[Hooked(3.0, "kill the engine", 0.5, 0, "done")])
    everything = make_result(workload(name="everything"), [Server(name="server", url="http://host:1")], [run], ORIGIN)
    return [everything, _result("server", Making(requests=120, adapters=1), load="one-adapter")]


def _peers() -> Result:
    """More targets than most will compare, each with its settings."""
    runs = [
        made_run(Making(requests=60, ttft_s=0.05 * (place + 1), gap_s=0.01 + 0.004 * place), name, repeat)
        for repeat in range(3)
        for place, name in enumerate(PEERS)
    ]
    settings = {"command": "server --with many --arguments here", "why": "the best of what was tried"}
    servers = [Server(name=name, url=f"http://host:{port}", settings=settings) for port, name in enumerate(PEERS)]
    return make_result(workload(name="mixed", tenants=[]), servers, runs, ORIGIN)


def _troubled() -> Result:
    """A client that was too busy, an interrupt, metrics that couldn't be sampled, answers of a wrong adapter."""
    run = made_run(Making(requests=80, failing=0.3), "server", 0, BUSY)
    cut = Run(
        "server", 0, run.started, run.seconds, run.records, BUSY, interrupted=True, unsampled="/metrics answers 401"
    )
    wrong = (Compared(0, "adapter-1", Finding.WRONG_ADAPTER, 0, "adapter-2", "under load", "when quiet"),)
    servers = [Server(name="server", url="http://host:1")]
    return make_result(workload(name="troubled"), servers, [cut], ORIGIN, {"server": Verification("quiet", 1, wrong)})


def _rates() -> list[Result]:
    return [
        make_result(
            workload(name=f"made-{rate}", arrivals={"kind": "poisson", "rate": rate}),
            [Server(name="server", url="http://host:1")],
            [made_run(Making(requests=100, rate=rate, ttft_s=0.01 * rate), "server", 0, GOOD)],
            ORIGIN,
        )
        for rate in (5, 10, 40)
    ]


def _searched() -> Result:
    trials = (Trial(5, 1.0, True), Trial(10, 0.99, True), Trial(40, 0.2, False, "20 % of the requests met the SLO"))
    found = Capacity(20, 40, True, (*trials, Trial(20, 0.97, True)))
    made = make_result(
        workload(name="made-20", arrivals={"kind": "poisson", "rate": 20}),
        [Server(name="server", url="http://host:1")],
        [made_run(Making(requests=100), "server")],
        ORIGIN,
    )
    return msgspec.structs.replace(made, capacity=found)
