"""The clock and counts of one request, and of each of its sequences.

    meter = metrics.begin(usage, "pirate", digest)
    sequence = meter.sequence()          # the engine is asked now
    sequence.begun(times)                # with its first token or its vector
    sequence.tokens(1)                   # as they come
    sequence.finished("stop", 12)
    meter.finished()                     # all of them reached their end
    meter.close("abort")                 # in any case; says why it ended, where it didn't reach its end

What tokens cost is the price of all of it, so nothing is done per token but reading a clock and counting the time
since the one before. The rest is added up once a second, at a scrape and at the end.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from time import perf_counter
from typing import Literal, Protocol

from livery.activity import Activity, ActivityLog, Outcome, Work
from livery.engine.figures import RequestTimes
from livery.metrics.adapters import AdapterCounts
from livery.metrics.requests import BETWEEN_TOKENS, RequestSeries
from livery.metrics.tenants import TenantCounts
from livery.metrics.top import Top

Ending = Literal["stop", "length", "abort"]  # of one sequence


class Used(Protocol):
    """Tokens of a request, which grow as they come."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Books:
    """What requests are written into."""

    requests: RequestSeries
    adapters: Top[AdapterCounts]
    tenants: Top[TenantCounts]
    activity: Activity | ActivityLog
    open: set[RequestMeter] = field(default_factory=set)  # that the engine was asked for and that aren't over


class SequenceMeter:
    """The clock of one sequence, from when the engine is asked for it. Moments are those of time.perf_counter."""

    __slots__ = ("_gaps", "_request", "_told", "asked", "first", "last", "times")

    def __init__(self, request: RequestMeter, gaps: list[int]) -> None:
        self._request = request
        self._gaps = gaps  # what is counted of times between tokens
        self._told = 0.0  # up to which token times between them are in the sum
        self.asked = perf_counter()
        self.first = self.last = 0.0  # its first and newest token, or its vector; 0 before
        self.times: RequestTimes | None = None  # what the time before the first went to

    def begun(self, times: RequestTimes | None) -> None:
        """Its first token came, or its vector, after so much time in the engine."""
        if times is not None:
            self.times = times
            self._request.begun(times)

    def tokens(self, count: int) -> None:
        """So many new tokens have come, one at least."""
        now = perf_counter()
        if self.last:
            self._gaps[bisect_left(BETWEEN_TOKENS, (now - self.last) / count)] += count
        else:
            self.first = self._told = now
            self._request.answered(now)
        self.last = now

    def pooled(self) -> None:
        """Its vector has come."""
        self.first = self.last = self._told = perf_counter()

    def waited(self) -> float:
        """The time between tokens since the last time this was asked."""
        since, self._told = self._told, self.last
        return self.last - since

    def finished(self, reason: Ending, tokens: int) -> None:
        self._request.sequence_finished(self, reason, tokens)


class RequestMeter:
    """The clock and counts of one request; `close` writes what was not yet written."""

    def __init__(
        self,
        books: Books,
        used: Used,
        adapter: str | None,
        tenant: str,
        account: str,
        encoding: float | None,
        since: float | None,
    ) -> None:
        self._used = used
        self._tenant = tenant
        self._account = account
        self._books = books
        self._series = books.requests
        self._adapter = adapter
        self.encoded = perf_counter()
        self.started = self.encoded if since is None else since  # what a client waits for begins here
        self.encoding = encoding  # when its prompts began to be encoded, which ended at `encoded`
        self.sequences: list[SequenceMeter] = []
        self.first_token_s: float | None = None
        self.outcome: Outcome | None = None
        self._finish_reason: Outcome = "stop"
        self._longest = 0  # tokens
        self._accounted = 0, 0.0  # tokens, and when that was
        self._prefill_s = 0.0  # of the first sequence that began
        self.kind = ""  # what failed it, in one word
        self.error = ""  # why it failed, in words fit for whoever may see the adapter

    def sequence(self) -> SequenceMeter:
        """The engine is asked for one more now."""
        made = SequenceMeter(self, self._series.between_tokens.counts)
        self.sequences.append(made)
        self._books.open.add(self)
        return made

    def begun(self, times: RequestTimes) -> None:
        self._series.queued.observe(times.queue_s)
        self._series.prefill.observe(times.prefill_s)
        self._prefill_s = self._prefill_s or times.prefill_s

    def answered(self, now: float) -> None:
        """The first token of a sequence came."""
        if self.first_token_s is None:
            self.first_token_s = now - self.started
            self._series.first_token.observe(self.first_token_s)
            self._accounted = 0, now

    def catch_up(self) -> None:
        """Count what came since the last time."""
        told, since = self._accounted
        if new := self._used.completion_tokens - told:
            now = perf_counter()
            self._accounted = self._used.completion_tokens, now
            self._series.generation_tokens.value += new
            self._series.between_tokens.total += sum(one.waited() for one in self.sequences)
            self._books.activity.tokens(self._account, since, now, new)

    def sequence_finished(self, sequence: SequenceMeter, reason: Ending, tokens: int) -> None:
        self._series.success[reason] += 1
        self._series.answer_length.observe(tokens)
        self._finish_reason = reason
        self._longest = max(self._longest, tokens)
        if tokens > 1:
            self._series.per_token.observe((sequence.last - sequence.first) / (tokens - 1))

    def finished(self) -> None:
        """All sequences reached their end."""
        self.outcome = self._finish_reason
        self._series.longest_answer.observe(self._longest)
        if self.first_token_s is not None:
            decoding = max(one.last for one in self.sequences) - self.started - self.first_token_s
            self._series.decoding.observe(decoding)
            self._series.inference.observe(decoding + self._prefill_s)

    def pooled(self) -> None:
        """All vectors of a request came; there is no token to count."""
        self.outcome = "stop"
        self._series.success["stop"] += len(self.sequences)

    def close(self, unfinished: Literal["abort", "error"]) -> None:
        """The request is over; `unfinished` says why if its sequences didn't all reach their end."""
        self.catch_up()
        series, used = self._series, self._used
        if self.outcome is None:
            self.outcome = unfinished
            series.success[unfinished] += 1
        now = perf_counter()
        series.latency.observe(now - self.started)
        series.prompt_length.observe(used.prompt_tokens)
        series.prompt_tokens.value += used.prompt_tokens
        work = Work(
            self.outcome,
            self.first_token_s,
            used.prompt_tokens,
            used.completion_tokens,
            self.error,
            self.kind,
            used.cached_tokens,
        )
        self._books.activity.finished(self._account, self._adapter, work, now)
        if self._adapter is not None:
            self._books.adapters.ended(self._adapter, work)
        self._books.tenants.ended(self._tenant, work)
        self._books.open.discard(self)
