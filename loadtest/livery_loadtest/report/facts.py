"""What a result tells beside its main numbers: sentences, and a table of what is worth a row only where it happened."""

from __future__ import annotations

from collections.abc import Sequence

from livery_loadtest.figures import Summary
from livery_loadtest.report.plots import Numbers
from livery_loadtest.report.result import Result
from livery_loadtest.report.words import NOTHING, count, duration, number, share, with_bounds


def fairness(summaries: Sequence[Summary]) -> list[str]:
    """A sentence for each target with several tenants."""
    said = []
    for one in summaries:
        if one.fairness is None:
            continue
        between = one.fairness.between
        who = f" ({between[0]} ahead of {between[1]})" if between else ""
        lag = number(one.fairness.largest_lag_tokens)
        said.append(
            f"{one.target}: Jain's index {number(one.fairness.jain)} of what each tenant got by what it was due (1 is "
            "even; due is the max-min fair part by the workload's `share`, which isn't how much a tenant asks for); "
            f"two tenants' services drew apart by {lag} tokens at most while both waited{who}."
        )
    return said


def facts(result: Result) -> Numbers | None:
    """What isn't in any other part, a row for each fact and a column for each target."""
    rows: list[list[str]] = []

    def row(what: str, told: Sequence[str]) -> None:
        if any(told):
            rows.append([what, *(one or NOTHING for one in told)])

    each = result.summary
    row("cold time to first token, p50 / p99", [_cold(one) for one in each])
    row(
        "prompt tokens from the server's cache",
        [share(one.cached_share) if one.cached_share is not None else "" for one in each],
    )
    row("structured answers that are JSON", [_structured(one) for one in each])
    row("clients that left as planned", [_left(one) for one in each])
    row("tokens per event", [number(one.usage.tokens_per_event) if one.usage.tokens_per_event else "" for one in each])
    row("answers without usage", [count(one.usage.without_usage) if one.usage.without_usage else "" for one in each])
    row(
        "answers with more events than tokens",
        [count(one.usage.more_events_than_tokens) if one.usage.more_events_than_tokens else "" for one in each],
    )
    row(
        "answers of another length than asked",
        [count(one.usage.off_length) if one.usage.off_length else "" for one in each],
    )
    row(
        "finish reasons",
        [", ".join(f"{name} {count(many)}" for name, many in one.finish_reasons.items()) for one in each],
    )
    row(
        "requests sent twice, as a kept connection was just closed",
        [count(one.retried) if one.retried else "" for one in each],
    )
    row("measured anew", ["; ".join(result.anew_of(one.target)) for one in each])
    row("the server's own metrics", [_unsampled(result, one.target) for one in each])
    row("checked answers", [_checked(result, one.target) for one in each])
    for of in dict.fromkeys(line.what for one in each for line in one.growth):
        row(f"growth an hour: {of}", [_grown(one, of) for one in each])
    return Numbers(["what", *(one.target for one in each)], rows, words=1 + len(each)) if rows else None


def _cold(one: Summary) -> str:
    cold = one.cold_starts
    if cold is None:
        return ""
    return (
        f"{duration(cold.cold_p50_ms)} / {duration(cold.cold_p99_ms)} of {count(cold.cold)}; "
        f"warm {duration(cold.warm_p50_ms)} / {duration(cold.warm_p99_ms)}"
    )


def _structured(one: Summary) -> str:
    if one.structured is None:
        return ""
    cut = f", {count(one.structured.cut)} cut by length" if one.structured.cut else ""
    return f"{count(one.structured.parsed)} of {count(one.structured.asked)}{cut}"


def _left(one: Summary) -> str:
    return f"{count(one.disconnects.left)} of {count(one.disconnects.planned)}" if one.disconnects else ""


def _checked(result: Result, target: str) -> str:
    found = result.verified.get(target)
    if found is None:
        return ""
    wrong, failed = count(len(found.wrong)), f", {count(len(found.failed))} failed" if found.failed else ""
    left = f", {count(found.not_looked_into)} that differ not looked into" if found.not_looked_into else ""
    return f"{wrong} of {count(len(found.compared))} by another model{failed}{left}, against {found.reference}"


def _unsampled(result: Result, target: str) -> str:
    why = next((one.unsampled for one in result.repeats_of(target) if one.unsampled), "")
    return f"not sampled: {why}" if why else ""


def _grown(one: Summary, what: str) -> str:
    line = next((line for line in one.growth if line.what == what), None)
    if line is None:
        return ""
    if line.missing:
        return "nothing to judge it by"
    allowed = "" if line.allowed is None else f"; allowed {number(line.allowed)} %"
    judged = "; too steep" if line.too_steep else "" if line.shown else "; none shown"
    return f"{with_bounds(line.per_hour, line.unit)}, {number(line.percent_per_hour)} %{allowed}{judged}"
