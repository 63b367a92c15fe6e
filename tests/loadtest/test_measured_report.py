"""A load test from its workload to its page: sent to real servers over real sockets, with known answers."""

from __future__ import annotations

import re
from pathlib import Path

from rich.console import Console

from livery_loadtest.build import build_script
from livery_loadtest.compare import Verdict, compare
from livery_loadtest.options import Options
from livery_loadtest.report.page import page
from livery_loadtest.report.result import Result, Server, make_result, read_result, write_result
from livery_loadtest.report.table import print_result
from livery_loadtest.spec import Workload, parse_workload
from livery_loadtest.target import Target
from loadtest.driving import drive
from loadtest.known_server import (
    BROKEN,
    CUT,
    FAILING,
    HANGING,
    MISNAMED,
    REFUSED,
    SILENT_USAGE,
    UNFINISHED,
    KnownServer,
)
from loadtest.test_report_page import self_contained
from loadtest.test_result_document import ORIGIN

TOKENS = 6


def load(**more: object) -> Workload:
    fields = {
        "name": "known answers",
        "arrivals": {"kind": "closed", "streams": 4},
        "requests": 24,
        "output": {"kind": "fixed", "tokens": TOKENS},
        **more,
    }
    return parse_workload(str(fields))


async def measured(workload: Workload, *servers: KnownServer, repeats: int = 1) -> Result:
    """Every repeat on each server in turn, as `livery bench run` does."""
    runs = []
    for repeat in range(repeats):
        for server in servers:
            script = build_script(workload, server.models[0], server.models[1:], repeat)
            target = Target(server.name, server.url)
            runs.append(await drive(script, target, Options.of(workload, repeat=repeat)))
    known = [Server(name=one.name, url=one.url, adapters=tuple(one.models[1:])) for one in servers]
    return make_result(workload, known, runs, ORIGIN)


async def test_known_answers_are_counted_exactly(pair: tuple[KnownServer, KnownServer], tmp_path: Path) -> None:
    result = await measured(load(), *pair, repeats=2)
    write_result(result, tmp_path / "result.json")
    result = read_result(tmp_path / "result.json")
    for one in result.summary:
        assert (one.requests, one.completed, one.failed) == (48, 48, 0)
        assert one.output_tokens == one.usage.told_tokens == one.usage.counted_events == 48 * TOKENS
        assert (one.usage.tokens_per_event, one.usage.without_usage, one.usage.off_length) == (1.0, 0, 0)
        assert one.itl_ms is not None and one.itl_ms.values == 48 * (TOKENS - 1)
        assert one.finish_reasons == {"length": 48}
        assert sum(group.requests for group in one.adapters) == 48
        assert {group.name for group in one.adapters} <= {"pirate", "json"}
    text = self_contained(page([result])).text
    assert "left" in text and "right" in text
    failed = next(one for one in compare(result, result, "left", "right").metrics if one.name == "failed requests")
    assert failed.verdict is Verdict.NOTHING


async def test_every_bad_answer_is_told_by_kind(faulty: KnownServer) -> None:
    kinds = {
        REFUSED: "http 404",
        BROKEN: "http 503",
        CUT: "stream cut",
        FAILING: "error event",
        UNFINISHED: "no finish reason",
        MISNAMED: "wrong model",
        HANGING: "silent",
    }
    faulty.models = ["base", "pirate", SILENT_USAGE, *kinds]
    each = 7
    requests = each * (len(faulty.models) - 1)
    together = {"arrivals": {"kind": "closed", "streams": requests}, "timeout_s": 2}  # those that hang do so at once
    result = await measured(load(requests=requests, popularity={"kind": "distinct"}, **together), faulty)
    (summary,) = result.summary
    by_adapter = {group.name: group for group in summary.adapters}
    assert by_adapter["pirate"].failed == by_adapter[SILENT_USAGE].failed == 0
    assert by_adapter[SILENT_USAGE].output_tokens == each * TOKENS  # by events
    assert summary.usage.without_usage == each
    assert {error.kind: error.count for error in summary.errors} == dict.fromkeys(kinds.values(), each)
    for name in kinds:
        assert by_adapter[name].failed == by_adapter[name].requests == each, name
    console = Console(width=160, record=True, quiet=False)
    print_result(result, console)
    told = console.export_text()
    text = self_contained(page([result])).text
    assert f"faulty: {each} answers came without usage; their events were counted as tokens" in told
    assert re.search(rf"answers without usage\W*{each}\b", text)
    for error in summary.errors:
        waited = ", told to wait 7.00 s" if error.kind == "http 503" else ""
        assert f"faulty: {each} × {error.kind}{waited}, such as: {error.example}"[:120] in told
        assert re.search(rf"{error.kind}\W*{each}\b", text), error.kind


async def test_structured_answers_are_read_also_where_no_text_is_kept(pair: tuple[KnownServer, KnownServer]) -> None:
    server, _ = pair
    result = await measured(load(endpoint="chat", structured={"share": 1.0}), server)
    (summary,) = result.summary
    assert summary.structured is not None
    assert (summary.structured.asked, summary.structured.parsed) == (24, 24)
