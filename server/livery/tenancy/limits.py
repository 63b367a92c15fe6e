"""What a key and its tenant may ask per minute and at a time, kept in memory of one server (over several: levels).

    limiter = RateLimiter()
    claim = limiter.claim(principal, prompt_tokens=40, answer_tokens=256)    # LimitExceeded
    claim.resize(38, 256)       # once the prompt is counted: LimitExceeded
    claim.begun(38)             # an answer began: its prompt waits no longer
    claim.spend(100)            # tokens that were really used, as they come
    claim.release()             # what was reserved and not used is free again

Rates are leaky buckets (as in ITU-T I.371's generic cell rate algorithm, with amounts): a minute's worth may be used at
once, and leaks away evenly. What a request may use is reserved when it comes, and doesn't leak before it is used; who
asks for a long answer and gets a short one has the rest back. Of an answer whose length its client named all of it is
reserved, so that in any stretch of time no more is used than the burst of one minute and the rate times that time.
Other answers may have all that the context leaves and mostly end long before: a guess is reserved (`guessed_answer`),
and what they use beyond it is owed, as nothing more is let in before it has leaked away. A request that alone asks for
more than a whole minute's tokens is let in by an empty bucket, and the next one waits until it has leaked away.

A refusal tells the wait for what was really used. Where only what others reserved is in the way, that is a moment:
most of it comes back unused.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from livery.tenancy.bucket import Bucket, Rate
from livery.tenancy.records import Limits, Principal
from livery.tenancy.room import LONGEST_WAIT_S

GUESSED_ANSWER = 1024  # tokens of an answer whose length nobody named, and
GUESSED_AT_ONCE = 8  # of such answers fit a minute's tokens
SWEEP_FROM = 1024  # accounts below which idle ones are left where they are

Clock = Callable[[], float]


class LimitExceeded(Exception):
    """A request is over a limit of its own key or tenant; `retry_after` is in seconds, as clients honour them."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


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
            wait = 1 if most else math.inf
            yield _exceeded(f"{self.whose} may have {most} requests under way at once (concurrent_requests)", wait)
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
            reserved = self.tokens.reserved
            aside = f" and {reserved} set aside for requests under way" if reserved else ""
            remedy = ", send a smaller max_tokens (so much is set aside until an answer ends)"
            yield _exceeded(
                f"{self.whose} may use {self.limits.tokens_per_minute} tokens a minute (tokens_per_minute), of which "
                f"{self.tokens.remaining} are free{aside}, and this request asks for {prompt_tokens + answer_tokens} "
                "with its prompt and answer",
                wait,
                remedy if reserved or answer_tokens else "",
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


def guessed_answer(principal: Principal) -> int:
    """Tokens to reserve for an answer whose length its client didn't name, where it may have as many."""
    minutes = [limits.tokens_per_minute for _, _, limits in _owners(principal) if limits.tokens_per_minute is not None]
    return max(1, min([GUESSED_ANSWER, *(minute // GUESSED_AT_ONCE for minute in minutes)]))


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


def _exceeded(what: str, wait: float, remedy: str = "") -> LimitExceeded:
    """The words say how long it takes; clients are told no longer than they honour, or they'd come back at once."""
    if math.isinf(wait):
        return LimitExceeded(f"{what}, however long you wait. Ask the operator for a higher limit.", LONGEST_WAIT_S)
    seconds = max(1, math.ceil(wait))
    words = f"{what}. Please retry in {seconds} s{remedy}, or ask the operator for a higher limit."
    return LimitExceeded(words, min(seconds, LONGEST_WAIT_S))
