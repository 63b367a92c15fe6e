"""What a run of `livery bench http` amounts to: a JSON document and tables. Measures nothing."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from livery.bench.http.looking import POLL_MS, SCRAPE_MS
from livery.bench.http.suite import (
    DELAY_MS,
    METRICS_RATIO,
    TENANTS_RATIO,
    TEXT_SHARE,
    TOKENS_A_SECOND,
    Findings,
    LoadRow,
    Sizes,
)
from livery_loadtest.bars import COLOURS, Bar
from livery_loadtest.measures import Spread
from livery_loadtest.origin import Origin, installed, write_json

SCHEMA = "livery-bench-http/1"
PACKAGES = ("fastapi", "starlette", "uvicorn", "h11", "pydantic", "orjson", "msgspec", "tokenizers", "jinja2")


def write_report(findings: Findings, sizes: Sizes, origin: Origin, path: Path) -> None:
    """Write everything measured as indented JSON, creating the folder."""
    amounts = {name: getattr(sizes, name) for name in sizes.__slots__ if name != "hostile"}
    measured = {name: getattr(findings, name) for name in findings.__slots__}
    head: dict[str, Any] = {"schema": SCHEMA, "origin": origin, "versions": installed(PACKAGES), "sizes": amounts}
    bars = {
        "tokens_per_second": TOKENS_A_SECOND,
        "tenants_ratio": TENANTS_RATIO,
        "metrics_ratio": METRICS_RATIO,
        "scrape_ms": SCRAPE_MS,
        "poll_ms": POLL_MS,
        "text_share": TEXT_SHARE,
        "delay_ms": DELAY_MS,
    }
    write_json({**head, "bars": {name: asdict(bar) for name, bar in bars.items()}, **measured}, path)


def print_findings(findings: Findings, console: Console) -> None:
    """A table for each part that was measured."""
    cores = findings.cores
    if findings.streams or findings.requests or findings.tenants or findings.metrics or findings.profile:
        apart = "one core each" if cores.server != cores.client else "ONE CORE FOR BOTH: numbers are too low"
        console.print(f"server with a fake engine, client in another process, {apart}", highlight=False)
    if findings.streams:
        console.print(_loads("tokens streamed as events", "tokens/s", findings.streams, TOKENS_A_SECOND))
    if findings.requests:
        console.print(_loads("answers in one piece", "requests/s", findings.requests, None))
    if findings.tenants:
        console.print(_tenants(findings))
    if findings.metrics:
        console.print(_metrics(findings))
    if findings.looking:
        console.print(_looking(findings))
    if findings.profile:
        console.print(_profile(findings))
    if findings.hostile:
        console.print(_hostile(findings))
    if findings.text:
        console.print(_text(findings))


def _loads(title: str, unit: str, rows: list[LoadRow], bar: Bar | None) -> Table:
    table = _table(title, "streams", unit, "", "CPU µs each", "first, ms (p50, p99)")
    for row in rows:
        verdict = _verdict(bar, row.per_second.median) if bar else ""
        first = f"{row.first_ms.p50:.2f}, {row.first_ms.p99:.2f}"
        table.add_row(str(row.streams), _spread(row.per_second), verdict, f"{row.cpu_us.median:.1f}", first)
    return table


def _tenants(findings: Findings) -> Table:
    title = "keys, limits and metering, tokens/s in turn"
    table = _table(title, "streams", "with", "without", "ratio", "CPU per token", "")
    for row in findings.tenants:
        verdict = _verdict(TENANTS_RATIO, row.ratio.median)
        cells = (str(row.streams), _spread(row.on), _spread(row.off), _ratio(row.ratio), f"{row.cpu:.3f}")
        table.add_row(*cells, verdict)
    return table


def _metrics(findings: Findings) -> Table:
    title = "metrics and traces, tokens/s in turn"
    table = _table(title, "streams", "with", "without", "ratio", "CPU per token", "traces")
    for row in findings.metrics:
        verdict = _verdict(METRICS_RATIO, row.ratio.median)
        traces = f"{row.traced:.0f} bytes a request"
        table.add_row(
            str(row.streams),
            _spread(row.on),
            _spread(row.off),
            f"{_ratio(row.ratio)} {verdict}",
            f"{row.cpu:.3f}",
            traces,
        )
    return table


def _looking(findings: Findings) -> Table:
    table = _table("looking on", "what", "adapters", "takes, ms", "server's time, ms", "others wait, ms", "KB")
    for row in findings.looking:
        verdict = _verdict(row.bar, row.judged_ms)
        table.add_row(
            f"{row.name} {verdict}",
            f"{row.adapters:,}",
            f"{row.took_ms.median:.1f} ({row.took_ms.low:.1f}..{row.took_ms.high:.1f})",
            f"{row.server_ms:.1f}",
            f"{row.worst_ms:.1f} {_verdict(DELAY_MS, row.worst_ms)}",
            f"{row.size / 1e3:.0f}",
        )
    return table


def _profile(findings: Findings) -> Table:
    table = _table(f"where the server's time goes ({findings.busy:.0%} busy)", "part", "share", "µs per token")
    for row in findings.profile:
        table.add_row(row.part, f"{row.share:.1%}", f"{row.us_per_token:.1f}")
    return table


def _hostile(findings: Findings) -> Table:
    table = _table("longest wait of others for a ping", "beside", "answer", "its seconds", "wait, ms", "")
    for row in findings.hostile:
        verdict = _verdict(DELAY_MS, row.worst_ms)
        table.add_row(row.name, str(row.status), f"{row.seconds:.2f}", f"{row.worst_ms:.1f}", verdict)
    return table


def _text(findings: Findings) -> Table:
    rate = f"{findings.text_tokens_per_second:.0f} tokens/s"
    table = _table(f"between text and tokens, of the time a real engine took ({rate})", "part", "share", "µs per call")
    for row in findings.text:
        table.add_row(f"{row.part} ({row.calls} calls)", f"{row.share:.3%}", f"{row.us_per_call:.1f}")
    table.add_row(f"all {_verdict(TEXT_SHARE, findings.text_share)}", f"{findings.text_share:.3%}", "")
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for at, name in enumerate(columns):
        table.add_column(name, justify="right" if at else "left")
    return table


def _verdict(bar: Bar, value: float) -> str:
    verdict = bar.verdict(value)
    return f"[{COLOURS[verdict]}]{verdict}[/] ({bar})"


def _spread(value: Spread) -> str:
    return f"{value.median:.0f} ({value.low:.0f}..{value.high:.0f})"


def _ratio(value: Spread) -> str:
    return f"{value.median:.3f} ({value.low:.3f}..{value.high:.3f})"
