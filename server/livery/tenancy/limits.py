"""What a key and its tenant may ask per minute and at a time, kept in memory of one server (over several: levels).

    limiter = RateLimiter()
    claim = limiter.claim(principal, prompt_tokens=40, answer_tokens=256)    # LimitExceeded
    claim.resize(38, 256)       # once the prompt is counted: LimitExceeded
    claim.begun(38)             # an answer began: its prompt waits no longer
    claim.spend(100)            # tokens that were really used, as they come
    claim.release()             # what was reserved and not used is free again

Rates are leaky buckets (as in ITU-T I.371's generic cell rate algorithm, with amounts): a minute's worth may be used at
once, and leaks away evenly, so that in any stretch of time no more is used than the burst of one minute and the rate
times that time. The most that a request may use is reserved when it comes, and doesn't leak before it is used: so
nobody overdraws the bucket by answers that turn out long, and who asks for a long answer and gets a short one has the
rest back. A request that alone asks for more than a whole minute's tokens is let in by an empty bucket, and the next
one waits until it has leaked away.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from livery.tenancy.records import Limits, Principal

MINUTE_S = 60.0
FOREVER_S = 3600  # what those are told to wait who may have nothing at all
SLACK = 1e-6  # tokens that sums of floating-point numbers may be off by
SWEEP_FROM = 1024  # accounts below which idle ones are left where they are

Clock = Callable[[], float]


class LimitExceeded(Exception):
    """A request is over a limit of its own key or tenant; `retry_after` is in seconds."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Rate(NamedTuple):
    """How far one limit per minute is used. `reset_s`: seconds until nothing of it is."""

    limit: int
    remaining: int
    reset_s: float


class Used(NamedTuple):
    """What a key or tenant used since that was last told, and its limits per minute."""

    kind: str
    name: str
    requests: float
    tokens: float
    requests_per_minute: int | None
    tokens_per_minute: int | None


class Level(NamedTuple):
    """How much of a key's or tenant's minute is used, by whomever."""

    kind: str
    name: str
    requests: float
    tokens: float


Rates = dict[Literal["requests", "tokens"], Rate]


class Bucket:
    """What one key or tenant uses of something per minute. Amounts are in requests or tokens, times in seconds."""

    __slots__ = ("_at", "limit", "reserved", "untold", "used")

    def __init__(self) -> None:
        self.limit: int | None = None  # per minute; None: there is none
        self.used = 0.0  # and not leaked away
        self.untold = 0.0  # of what was used, whatever leaked away: see livery.tenancy.levels
        self.reserved = 0
        self._at = 0.0

    def leak(self, now: float) -> None:
        if self.limit is not None:
            self.used = max(0.0, self.used - (now - self._at) * self.limit / MINUTE_S)
        self._at = now

    def limit_to(self, limit: int | None) -> None:
        """From now on by this limit. One that comes finds nothing used, and one that goes leaves nothing to tell."""
        if (limit is None) != (self.limit is None):
            self.used = self.untold = 0.0
        self.limit = limit

    def use(self, amount: int) -> None:
        if self.limit is not None:
            self.used += amount
            self.untold += amount

    def hear(self, told: float, level: float) -> None:
        """So much was told, and so high is the level with it, as of now."""
        if self.limit is not None:
            self.untold = max(0.0, self.untold - told)
            self.used = level + self.untold

    def wait(self, amount: int) -> float:
        """Seconds until so much more fits, if what is reserved is used at once; 0: it fits now. Nothing always does."""
        if self.limit is None or not amount:
            return 0.0
        over = self.used + self.reserved + min(amount, self.limit) - self.limit
        if over <= SLACK and self.limit > 0:
            return 0.0
        return over * MINUTE_S / self.limit if self.limit > 0 else math.inf

    @property
    def remaining(self) -> int:
        return max(0, math.floor((self.limit or 0) - self.used - self.reserved + SLACK))

    @property
    def rate(self) -> Rate | None:
        """How far the limit is used, if what is reserved is used at once; None without one."""
        if self.limit is None:
            return None
        return Rate(self.limit, self.remaining, (self.used + self.reserved) * MINUTE_S / max(1, self.limit))

    @property
    def idle(self) -> bool:
        return self.used <= 0 and not self.reserved


@dataclass(slots=True)
class Account:
    """What one key or tenant has under way."""

    who: tuple[str, str]  # kind and name
    limits: Limits
    requests: Bucket = field(default_factory=Bucket)
    tokens: Bucket = field(default_factory=Bucket)
    concurrent: int = 0
    queued: int = 0  # prompt tokens of answers that haven't begun

    @property
    def whose(self) -> str:
        """In words for its owner."""
        kind, name = self.who
        return f"The {kind} '{name}'"

    def settle(self, limits: Limits, now: float) -> None:
        """Up to this moment, by the limits that held; from now on by these."""
        self.leak(now)
        self.limits = limits
        self.requests.limit_to(limits.requests_per_minute)
        self.tokens.limit_to(limits.tokens_per_minute)

    def leak(self, now: float) -> None:
        self.requests.leak(now)
        self.tokens.leak(now)

    def against_request(self) -> Iterator[LimitExceeded]:
        """What speaks against another request now."""
        most = self.limits.concurrent_requests
        if most is not None and self.concurrent >= most:
            yield _exceeded(f"{self.whose} may have {most} requests under way at once (concurrent_requests)", 1)
        if wait := self.requests.wait(1):
            most = self.limits.requests_per_minute
            yield _exceeded(f"{self.whose} may send {most} requests a minute (requests_per_minute)", wait)

    def against_tokens(self, prompt_tokens: int, answer_tokens: int) -> Iterator[LimitExceeded]:
        """What speaks against so many tokens more; against none nothing does."""
        most = self.limits.queued_tokens
        if most is not None and prompt_tokens and self.queued and self.queued + prompt_tokens > most:
            yield _exceeded(
                f"{self.whose} may have {most} prompt tokens waiting for answers to begin (queued_tokens), "
                f"{self.queued} are, and this request has {prompt_tokens}",
                1,
            )
        if wait := self.tokens.wait(prompt_tokens + answer_tokens):
            yield _exceeded(
                f"{self.whose} may use {self.limits.tokens_per_minute} tokens a minute (tokens_per_minute), of which "
                f"{self.tokens.remaining} are free, and this request asks for {prompt_tokens + answer_tokens} by its "
                "prompt and max_tokens",
                wait,
            )

    @property
    def idle(self) -> bool:
        return not self.concurrent and self.requests.idle and self.tokens.idle


class RateLimiter:
    """Everybody's accounts. Use from one event loop."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._accounts: dict[tuple[str, str], Account] = {}
        self._active: dict[tuple[str, str], Account] = {}  # that may have something to tell
        self._swept = 0  # accounts that were left at the last sweep

    def __len__(self) -> int:
        return len(self._accounts)

    def claim(self, principal: Principal, prompt_tokens: int = 0, answer_tokens: int = 0) -> Claim:
        """Count a request for its key and its tenant, and reserve the most tokens it may use. Raises LimitExceeded."""
        accounts, refusals = self._of(principal), list[LimitExceeded]()
        for account in accounts:
            refusals += [*account.against_request(), *account.against_tokens(prompt_tokens, answer_tokens)]
        _raise_longest(refusals)
        for account in accounts:
            account.requests.use(1)
            account.concurrent += 1
            self._active[account.who] = account
        return Claim(accounts, prompt_tokens, answer_tokens, self._clock)

    def rates(self, principal: Principal) -> Rates:
        """How far limits per minute are used, for each the one of key and tenant that leaves less."""
        found: Rates = {}
        for account in self._of(principal):
            if rate := account.requests.rate:
                found["requests"] = min(rate, found.get("requests", rate), key=lambda one: one.remaining)
            if rate := account.tokens.rate:
                found["tokens"] = min(rate, found.get("tokens", rate), key=lambda one: one.remaining)
        return found

    def used(self) -> list[Used]:
        """What was used and not told yet, of those limits that count per minute."""
        found = []
        for who, account in list(self._active.items()):
            requests, tokens = account.requests.untold, account.tokens.untold
            if requests or tokens:
                found.append(Used(*who, requests, tokens, account.requests.limit, account.tokens.limit))
            elif not account.concurrent:
                del self._active[who]
        return found

    def hear(self, told: Sequence[Used], heard: Sequence[Level]) -> None:
        """These levels answer what was told, in its order."""
        now = self._clock()
        for one, level in zip(told, heard, strict=True):
            if account := self._active.get((one.kind, one.name)):
                account.leak(now)
                account.requests.hear(one.requests, level.requests)
                account.tokens.hear(one.tokens, level.tokens)

    def _of(self, principal: Principal) -> list[Account]:
        """Its accounts as of now: where nothing is limited, none."""
        self._sweep()
        found = []
        for kind, name, limits in _owners(principal):
            if name is None or not _counted(limits):
                continue
            account = self._accounts.get((kind, name))
            if account is None:
                account = self._accounts[kind, name] = Account((kind, name), limits)
            account.settle(limits, self._clock())
            found.append(account)
        return found

    def _sweep(self) -> None:
        """Forget who has nothing under way and used nothing lately, each time their number has doubled."""
        if len(self._accounts) < max(SWEEP_FROM, 2 * self._swept):
            return
        now = self._clock()
        for account in self._accounts.values():
            account.leak(now)
        self._accounts = {who: account for who, account in self._accounts.items() if not account.idle}
        self._active = {who: account for who, account in self._active.items() if who in self._accounts}
        self._swept = len(self._accounts)


class Claim:
    """What one request holds of its key's and its tenant's limits."""

    __slots__ = ("_accounts", "_clock", "_queued", "_reserved")

    def __init__(self, accounts: list[Account], prompt_tokens: int, answer_tokens: int, clock: Clock) -> None:
        self._accounts = accounts
        self._clock = clock
        self._queued = self._reserved = 0
        self._hold(prompt_tokens, answer_tokens)

    def resize(self, prompt_tokens: int, answer_tokens: int) -> None:
        """So many tokens it is, as is known by now. Raises LimitExceeded where these don't fit."""
        queued, reserved, now = self._queued, self._reserved, self._clock()
        self._hold(0, 0)
        refusals = list[LimitExceeded]()
        for account in self._accounts:
            account.leak(now)
            refusals += account.against_tokens(prompt_tokens, answer_tokens)
        if refusals:
            self._hold(queued, reserved - queued)
        _raise_longest(refusals)
        self._hold(prompt_tokens, answer_tokens)

    def begun(self, prompt_tokens: int) -> None:
        """So many of its prompt tokens wait no longer."""
        self._queued -= prompt_tokens
        for account in self._accounts:
            account.queued -= prompt_tokens

    def spend(self, tokens: int) -> None:
        """So many more tokens were used of those reserved, or beyond."""
        if not tokens or not self._accounts:
            return
        now = self._clock()
        kept = min(tokens, self._reserved)
        self._reserved -= kept
        for account in self._accounts:
            account.tokens.leak(now)
            account.tokens.reserved -= kept
            account.tokens.use(tokens)

    def release(self) -> None:
        """The request is over; more calls do nothing."""
        self._hold(0, 0)
        for account in self._accounts:
            account.concurrent -= 1
        self._accounts = []

    def _hold(self, prompt_tokens: int, answer_tokens: int) -> None:
        for account in self._accounts:
            account.queued += prompt_tokens - self._queued
            account.tokens.reserved += prompt_tokens + answer_tokens - self._reserved
        self._queued, self._reserved = prompt_tokens, prompt_tokens + answer_tokens


class Bound(NamedTuple):
    """The most that one request may ask for of something, and whose limit that is."""

    whose: str
    most: int


def bound_of(principal: Principal, name: Literal["max_tokens", "n"]) -> Bound | None:
    """The lower of a key's and its tenant's limits on the shape of a request; None where there is none."""
    found = [
        Bound(f"the {kind} '{owner}'", limit)
        for kind, owner, limits in _owners(principal)
        if (limit := getattr(limits, name)) is not None
    ]
    return min(found, key=lambda bound: bound.most, default=None)


def _owners(principal: Principal) -> tuple[tuple[str, str | None, Limits], ...]:
    return (("key", principal.key, principal.limits), ("tenant", principal.tenant, principal.tenant_limits))


def is_counted(principal: Principal) -> bool:
    """Is anything of its key or its tenant limited that has to be counted?"""
    return any(name is not None and _counted(limits) for _, name, limits in _owners(principal))


def _counted(limits: Limits) -> bool:
    """Is anything limited that has to be counted?"""
    return any(
        limit is not None
        for limit in (
            *(limits.requests_per_minute, limits.tokens_per_minute),
            *(limits.concurrent_requests, limits.queued_tokens),
        )
    )


def _raise_longest(refusals: Sequence[LimitExceeded]) -> None:
    """Of several reasons the one that lasts: who waits for it meets no other."""
    if refusals:
        raise max(refusals, key=lambda refusal: refusal.retry_after)


def _exceeded(what: str, wait: float) -> LimitExceeded:
    seconds = FOREVER_S if math.isinf(wait) else max(1, math.ceil(wait))
    return LimitExceeded(f"{what}. Please retry in {seconds} s, or ask the operator for a higher limit.", seconds)
