"""The clock and counts of one request."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

from livery.activity import Activity, Work
from livery.engine.figures import RequestTimes
from livery.metrics.adapters import AdapterCounts
from livery.metrics.outcomes import FAILED, KINDS, Outcome
from livery.metrics.requests import RequestSeries
from livery.metrics.tenants import TenantCounts
from livery.metrics.top import Top


@dataclass(frozen=True, slots=True)
class Books:
    """What requests are written into."""

    requests: RequestSeries
    adapters: Top[AdapterCounts]
    tenants: Top[TenantCounts]
    activity: Activity


class RequestMeter:
    """The clock and counts of one request; `close` writes what was not yet written."""

    def __init__(self, books: Books, adapter: str | None, tenant: str, account: str, encoding: float | None) -> None:
        self._tenant = tenant
        self._account = account
        self._books = books
        self._series = books.requests
        self._adapter = adapter
        self.started = time.perf_counter()
        self.encoding = encoding  # when its prompts began to be encoded, which ended as this started
        self._last: dict[int, float] = {}  # sequence -> time of its newest token
        self.first_token_s: float | None = None
        self.outcome: Outcome | None = None
        self._finish_reason: Outcome = "stop"
        self._longest = 0  # tokens
        self.times: RequestTimes | None = None  # of the first sequence that began
        self.kind = ""  # what failed it, in one word
        self.error = ""  # why it failed, in words fit for whoever may see the adapter

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self.started

    def tokens(self, sequence: int, count: int) -> None:
        """So many new tokens of a sequence have come."""
        if not count:
            return
        now = time.perf_counter()
        if self.first_token_s is None:
            self.first_token_s = now - self.started
            self._series.first_token.observe(self.first_token_s)
        if (last := self._last.get(sequence)) is not None:
            self._series.between_tokens.observe((now - last) / count)
        self._last[sequence] = now
        self._series.generation_tokens.value += count
        self._books.activity.tokens(self._account, now, count)

    def begun(self, times: RequestTimes | None) -> None:
        """A sequence's first token came, or its vector, after so much time in the engine."""
        if times is not None:
            self._series.queued.observe(times.queue_s)
            self._series.prefill.observe(times.prefill_s)
            self.times = self.times or times

    def sequence_finished(self, reason: Literal["stop", "length"], tokens: int) -> None:
        self._series.success[reason] += 1
        self._series.answer_length.observe(tokens)
        self._finish_reason = reason
        self._longest = max(self._longest, tokens)
        if tokens > 1 and self.first_token_s is not None:
            self._series.per_token.observe((self.elapsed_s - self.first_token_s) / (tokens - 1))

    def finished(self) -> None:
        """All sequences reached their end."""
        self.outcome = self._finish_reason
        self._series.longest_answer.observe(self._longest)
        if self.first_token_s is not None:
            last = max(self._last.values())
            decoding = last - self.started - self.first_token_s
            self._series.decoding.observe(decoding)
            self._series.inference.observe(decoding + (self.times.prefill_s if self.times else 0.0))

    def pooled(self, sequences: int) -> None:
        """All vectors of a request came; there is no token to count."""
        self.outcome = "stop"
        self._series.success["stop"] += sequences

    def close(
        self, prompt_tokens: int, generated: int, unfinished: Literal["abort", "error"], cached_tokens: int = 0
    ) -> None:
        """The request is over; `unfinished` says why if its sequences didn't all reach their end."""
        series = self._series
        if self.outcome is None:
            self.outcome = unfinished
            series.success[unfinished] += 1
        series.latency.observe(self.elapsed_s)
        series.prompt_length.observe(prompt_tokens)
        series.prompt_tokens.inc(prompt_tokens)
        work = Work(self.outcome, self.first_token_s, prompt_tokens, generated, self.error)
        self._books.activity.finished(self._account, self._adapter, work, time.perf_counter())
        if self._adapter is not None:
            counts = AdapterCounts(prompt_tokens, generated, cached_tokens, last_use=time.time())
            counts.requests[self.outcome] = 1
            if self.outcome == "error":
                counts.errors[self.kind if self.kind in KINDS else FAILED] = 1
            self._books.adapters.record(self._adapter, counts)
        own = TenantCounts(prompt_tokens, generated)
        own.requests[self.outcome] = 1
        self._books.tenants.record(self._tenant, own)
