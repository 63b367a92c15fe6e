"""Several workloads in few words: a line for each of them and each target, before the pages of numbers."""

from __future__ import annotations

from collections.abc import Sequence

from livery_loadtest.figures import Latency, Summary
from livery_loadtest.report.plots import Numbers
from livery_loadtest.report.result import Result
from livery_loadtest.report.words import NOTHING, count, duration, number, share
from livery_loadtest.spec import Slo

WORDS = ["workload", "target"]
NUMBERS = ["tok/s", "req/s", "TTFT p50", "TTFT p99", "ITL p50", "ITL p99", "E2E p50", "good", "failed"]


def overview(results: Sequence[Result]) -> Numbers | None:
    """None for a single workload, whose page says it all."""
    if len(results) < 2:
        return None
    rows = [_row(result, one) for result in results for one in result.summary]
    names = list(dict.fromkeys(server.name for result in results for server in result.targets))
    return Numbers([*WORDS, *NUMBERS], rows, words=len(WORDS), colours=[names.index(row[1]) for row in rows])


def _row(result: Result, one: Summary) -> list[str]:
    return [
        result.workload.name,
        one.target,
        number(one.tokens_per_second.value),
        number(one.requests_per_second.value),
        *_waits(one.ttft_ms),
        *_waits(one.itl_ms),
        duration(one.e2e_ms.p50.value) if one.e2e_ms else NOTHING,
        share(one.good_share.value) if result.workload.slo != Slo() else NOTHING,
        count(one.failed),
    ]


def _waits(latency: Latency | None) -> list[str]:
    return [duration(latency.p50.value), duration(latency.p99.value)] if latency else [NOTHING, NOTHING]
