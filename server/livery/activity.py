"""What requests did lately, for people who look on: tokens a second, how each adapter does, the last requests.

    activity = Activity()
    activity.tokens("acme", since, now, 3)                             # as they came, by the account of whose they are
    activity.finished("acme", "pirate", Work(outcome="stop", first_token_s=0.2, prompt_tokens=9, generated=40), now)
    activity.note(Finished(...))                                       # one line of the list of recent requests
    activity.of("acme").adapter("pirate")                              # and activity.of(None) of all tenants together

Everything is bounded: the adapters used last, the last requests, the last minute; of the tenants seen last. Times are
time.perf_counter's, as the meters take them anyway. Use from one event loop.
"""

from __future__ import annotations

import math
import time
from array import array
from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal

import msgspec

Outcome = Literal["stop", "length", "abort", "error"]  # how a request ends

MAX_ADAPTERS = 2000  # whose doings are remembered of one tenant, and of all together: those used last
MAX_REQUESTS = 100  # that are remembered, likewise
MAX_TENANTS = 1000  # of which anything is remembered: those seen last
# What tenants have between them, in equal parts: about 10 MB and 4 MB.
ALL_ADAPTERS = 16_000
ALL_REQUESTS = 10_000
WINDOW_S = 60
RATE_S = 10  # complete seconds that a rate is the mean of
BASE = ""  # the name that the base model's requests are counted under

_FIRST_S, _GROWTH, _BUCKETS = 1e-3, 1.1, 128  # up to 180 s
_FORGET_AT = 1024


class Latencies:
    """Quantiles of the last thousand times or so, in seconds, each within 5 %.

    Counts in buckets that grow by a tenth, as in Masson, Rim and Lee, "DDSketch" (VLDB 2019), with a fixed number of
    them. All counts are halved when there are too many, so that what was long ago weighs little.
    """

    __slots__ = ("_counts", "_quantiles", "_total")

    def __init__(self) -> None:
        self._counts = array("H", bytes(2 * _BUCKETS))
        self._total = 0
        self._quantiles: dict[float, float] = {}  # worked out since the last time was added

    def add(self, seconds: float) -> None:
        place = math.ceil(math.log(max(seconds, _FIRST_S) / _FIRST_S) / math.log(_GROWTH))
        self._counts[min(place, _BUCKETS - 1)] += 1
        self._total += 1
        self._quantiles.clear()
        if self._total >= _FORGET_AT:
            self._counts = array("H", (count // 2 for count in self._counts))
            self._total = sum(self._counts)

    def quantile(self, share: float) -> float | None:
        """The time that this share of them (0 to 1) doesn't exceed, None where there are none."""
        if not self._total:
            return None
        if share not in self._quantiles:
            place = bisect_left(list(accumulate(self._counts)), max(1, math.ceil(share * self._total)))
            self._quantiles[share] = _FIRST_S * _GROWTH ** (place - 0.5)
        return self._quantiles[share]


class Throughput:
    """Tokens by second, of the last minute."""

    def __init__(self, now: float) -> None:
        self._second = math.floor(now)
        self._generated = deque([0.0] * (WINDOW_S + 1), WINDOW_S + 1)  # the last one is of the second that passes
        self._prompt = deque([0.0] * (WINDOW_S + 1), WINDOW_S + 1)

    def add(self, since: float, now: float, generated: int, prompt: int = 0) -> None:
        """So many tokens came between two moments, evenly as far as anybody knows.

        What others told already may be later: several processes tell in turns what each did since it told last.
        """
        self._roll(now)
        last = math.floor(now)
        if last < self._second - WINDOW_S:  # nobody asks for it any more
            return
        if generated:
            self._spread(since, now, last, generated)
        self._prompt[last - self._second - 1] += prompt

    def by_second(self, now: float) -> tuple[list[int], list[int]]:
        """Generated tokens and prompt tokens of each complete second, oldest first."""
        self._roll(now)
        return [round(count) for count in self._generated][:-1], [round(count) for count in self._prompt][:-1]

    def _spread(self, since: float, now: float, last: int, generated: int) -> None:
        first = max(math.floor(since), self._second - WINDOW_S)
        if first >= last:
            self._generated[last - self._second - 1] += generated
            return
        begin, rate = max(since, first), generated / (now - max(since, first))
        for second in range(first, last + 1):
            share = min(now, second + 1) - max(begin, second)
            self._generated[second - self._second - 1] += rate * share

    def _roll(self, now: float) -> None:
        passed = math.floor(now) - self._second
        if passed > 0:
            empty = [0.0] * min(passed, WINDOW_S + 1)
            self._generated.extend(empty)
            self._prompt.extend(empty)
            self._second += passed


@dataclass(frozen=True, slots=True)
class Work:
    """What one request came to. Where it failed, `error` says why in words without anything of its content, and `kind`
    in one.
    """

    outcome: Outcome
    first_token_s: float | None
    prompt_tokens: int
    generated: int
    error: str = ""
    kind: str = ""
    cached_tokens: int = 0  # of the prompts', found in the prefix cache


@dataclass(slots=True)
class AdapterActivity:
    """What the requests of one adapter came to. `last_used` and `error_at` as time.perf_counter has them."""

    requests: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    generated: int = 0
    last_used: float = 0.0
    error: str = ""
    error_at: float = 0.0
    first_token: Latencies = field(default_factory=Latencies)

    def told(self) -> AdapterFigures:
        return AdapterFigures(
            *(self.requests, self.errors, self.prompt_tokens, self.generated),
            *(self.last_used, self.error, self.error_at),
            *(self.first_token.quantile(0.5), self.first_token.quantile(0.95)),
        )


@dataclass(frozen=True, slots=True)
class Finished:
    """One request that is over, without what it said. `adapter` is the name in full, "" where none was reached;
    `account` whose request it was (Principal).
    """

    id: str
    route: str
    adapter: str
    digest: str
    status: int
    outcome: str
    prompt_tokens: int
    generated: int
    first_token_s: float | None
    duration_s: float
    account: str
    key: str | None
    at: float = field(default_factory=time.perf_counter)


class Doings:
    """What the requests of one tenant did, or those of all."""

    def __init__(self, now: float) -> None:
        self.throughput = Throughput(now)
        self._adapters: OrderedDict[str, AdapterActivity] = OrderedDict()  # longest unused first
        self._recent: deque[Finished] = deque()  # oldest first
        self._room = MAX_ADAPTERS, MAX_REQUESTS

    def keep(self, adapters: int, requests: int) -> None:
        """Remember at most so many from now on."""
        self._room = adapters, requests
        while len(self._adapters) > adapters:
            self._adapters.popitem(last=False)
        while len(self._recent) > requests:
            self._recent.popleft()

    def finished(self, adapter: str | None, work: Work, now: float) -> None:
        """A request of an adapter, or of the base (None), is over."""
        self.throughput.add(now, now, 0, work.prompt_tokens)
        name = adapter or BASE
        done = self._adapters.get(name)
        if done is None:
            done = self._adapters[name] = AdapterActivity()
            self.keep(*self._room)
        else:
            self._adapters.move_to_end(name)
        done.requests += 1
        done.prompt_tokens += work.prompt_tokens
        done.generated += work.generated
        done.last_used = now
        if work.first_token_s is not None:
            done.first_token.add(work.first_token_s)
        if work.outcome == "error":
            done.errors += 1
            done.error, done.error_at = work.error, now

    def note(self, request: Finished) -> None:
        self._recent.append(request)
        self.keep(*self._room)

    def recent(self) -> list[Finished]:
        """The last requests, newest first."""
        return list(reversed(self._recent))

    def adapter(self, name: str) -> AdapterActivity | None:
        """What an adapter did, BASE for the base; None where it did nothing that is remembered."""
        return self._adapters.get(name)

    def told(self, now: float, running: dict[str, int]) -> Lately:
        """All of it at this moment."""
        generated, prompt = self.throughput.by_second(now)
        adapters = {name: done.told() for name, done in self._adapters.items()}
        return Lately(generated, prompt, adapters, self.recent(), running)


class AdapterFigures(msgspec.Struct, frozen=True, array_like=True):
    """AdapterActivity as it is told."""

    requests: int
    errors: int
    prompt_tokens: int
    generated: int
    last_used: float
    error: str
    error_at: float
    ttft_p50_s: float | None
    ttft_p95_s: float | None


class Lately(msgspec.Struct, frozen=True):
    """What requests did lately, as it is told: tokens by second, what became of each adapter's, those that are over
    (newest first), and how many run on each adapter.
    """

    generated: list[int] = []
    prompt: list[int] = []
    adapters: dict[str, AdapterFigures] = {}
    recent: list[Finished] = []
    running: dict[str, int] = {}


class TokensCame(msgspec.Struct, frozen=True, array_like=True, tag=True):
    account: str
    since: float
    now: float
    count: int


class WorkDone(msgspec.Struct, frozen=True, array_like=True, tag=True):
    account: str
    adapter: str | None
    work: Work
    now: float


class Noted(msgspec.Struct, frozen=True, array_like=True, tag=True):
    request: Finished


Event = TokensCame | WorkDone | Noted
MOST_EVENTS = 50_000  # that are kept for whoever takes them; the oldest go


class ActivityLog:
    """What is to be written into another process's Activity, in order."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque(maxlen=MOST_EVENTS)

    def tokens(self, account: str, since: float, now: float, count: int) -> None:
        self._events.append(TokensCame(account, since, now, count))

    def finished(self, account: str, adapter: str | None, work: Work, now: float) -> None:
        self._events.append(WorkDone(account, adapter, work, now))

    def note(self, request: Finished) -> None:
        self._events.append(Noted(request))

    def take(self) -> list[Event]:
        """All since the last time."""
        taken = list(self._events)
        self._events.clear()
        return taken


class Activity:
    """Of one server: what all requests did, and apart from that each tenant's, who sees nothing of the others'."""

    def __init__(self) -> None:
        self._all = Doings(time.perf_counter())
        self._by_account: OrderedDict[str, Doings] = OrderedDict()  # longest unseen first

    def tokens(self, account: str, since: float, now: float, count: int) -> None:
        """So many tokens were generated for a tenant between two moments."""
        self._all.throughput.add(since, now, count)
        self._own(account, now).throughput.add(since, now, count)

    def finished(self, account: str, adapter: str | None, work: Work, now: float) -> None:
        """A tenant's request of an adapter, or of the base (None), is over."""
        self._all.finished(adapter, work, now)
        self._own(account, now).finished(adapter, work, now)

    def note(self, request: Finished) -> None:
        """A request whose tenant is known is over, whatever it reached."""
        self._all.note(request)
        self._own(request.account, request.at).note(request)

    def replay(self, events: Iterable[Event]) -> None:
        """Write down what an ActivityLog of another process of this machine has; their clocks are one."""
        for event in events:
            match event:
                case TokensCame(account, since, now, count):
                    self.tokens(account, since, now, count)
                case WorkDone(account, adapter, work, now):
                    self.finished(account, adapter, work, now)
                case Noted(request):
                    self.note(request)

    def of(self, account: str | None) -> Doings:
        """What a tenant's requests did, or (None) those of all."""
        if account is None:
            return self._all
        return self._by_account.get(account) or Doings(time.perf_counter())

    def _own(self, account: str, now: float) -> Doings:
        """Where a tenant's are written down; one that comes anew takes its part of what there is room for."""
        found = self._by_account.get(account)
        if found is None:
            full = len(self._by_account) == MAX_TENANTS
            if full:
                self._by_account.popitem(last=False)
            found = self._by_account[account] = Doings(now)
            tenants = len(self._by_account)
            for one in [found] if full else self._by_account.values():
                one.keep(min(MAX_ADAPTERS, ALL_ADAPTERS // tenants), min(MAX_REQUESTS, ALL_REQUESTS // tenants))
        else:
            self._by_account.move_to_end(account)
        return found
