"""Limits per minute and at a time, on a clock of the test's own: never passed, given back, and told truly."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from livery.tenancy import LimitExceeded, Limits, Principal, RateLimiter
from livery.tenancy.limits import GUESSED_ANSWER, SWEEP_FROM, Claim, bound_of, guessed_answer
from livery.tenancy.room import LONGEST_WAIT_S


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def principal(tenant: str = "acme", key: str = "k1", of_key: Limits = Limits(), **limits: int) -> Principal:  # noqa: B008
    return Principal(tenant, "user", key, limits=of_key, tenant_limits=Limits(**limits))


def refusal(limiter: RateLimiter, whose: Principal, prompt: int = 0, answer: int = 0) -> LimitExceeded:
    with pytest.raises(LimitExceeded) as caught:
        limiter.claim(whose, prompt, answer)
    return caught.value


@dataclass
class Running:
    """A request of the test's, and what of its bound isn't used."""

    claim: Claim
    left: int
    waiting: int
    used: list[int] = field(default_factory=list)


REQUESTS, TOKENS = 7, 100  # per minute of the tenant
OF_KEY = Limits(requests_per_minute=5, tokens_per_minute=60, concurrent_requests=3, queued_tokens=50)


class Limited(RuleBasedStateMachine):
    """Two keys of one tenant ask, use, and leave at any time; what was used is written down beside the limiter."""

    running = Bundle("running")

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.limiter = RateLimiter(self.clock)
        self.requests: list[tuple[float, str]] = []
        self.spent: list[tuple[float, str, int]] = []
        self.open = 0

    def whose(self, key: str) -> Principal:
        limits = OF_KEY if key == "k1" else Limits()
        return principal(key=key, of_key=limits, requests_per_minute=REQUESTS, tokens_per_minute=TOKENS)

    @rule(target=running, key=st.sampled_from(["k1", "k2"]), prompt=st.integers(0, 30), answer=st.integers(0, 30))
    def ask(self, key: str, prompt: int, answer: int) -> object:
        try:
            claim = self.limiter.claim(self.whose(key), prompt, answer)
        except LimitExceeded as refused:
            assert refused.retry_after >= 1
            return None
        self.requests.append((self.clock.now, key))
        self.open += 1
        return key, Running(claim, prompt + answer, prompt)

    @rule(request=running, share=st.floats(0, 1))
    def use(self, request: tuple[str, Running] | None, share: float) -> None:
        if request is None or request[1].claim is None:
            return
        key, one = request
        tokens = int(one.left * share)
        one.left -= tokens
        one.claim.spend(tokens)
        self.spent.append((self.clock.now, key, tokens))

    @rule(request=running)
    def begin(self, request: tuple[str, Running] | None) -> None:
        if request is not None:
            request[1].claim.begun(request[1].waiting)
            request[1].waiting = 0

    # Together no more than a whole minute's, of which more is let in alone and then is more than a burst.
    @rule(request=running, prompt=st.integers(0, 30), answer=st.integers(0, 30))
    def count(self, request: tuple[str, Running] | None, prompt: int, answer: int) -> None:
        if request is None or request[1].used or not request[1].waiting:
            return
        one = request[1]
        try:
            one.claim.resize(prompt, answer)
        except LimitExceeded:
            return
        one.left, one.waiting = prompt + answer, prompt

    @rule(request=consumes(running))
    def leave(self, request: tuple[str, Running] | None) -> None:
        if request is not None:
            request[1].claim.release()
            request[1].claim.release()
            self.open -= 1

    @rule(seconds=st.floats(0, 90))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @invariant()
    def nobody_used_more_than_a_burst_and_the_rate(self) -> None:
        for key, most_requests, most_tokens in ((None, REQUESTS, TOKENS), ("k1", 5, 60)):
            _check_windows([(at, 1) for at, who in self.requests if key in (None, who)], most_requests)
            _check_windows([(at, tokens) for at, who, tokens in self.spent if key in (None, who)], most_tokens)


def _check_windows(events: list[tuple[float, int]], limit: int) -> None:
    """From any event to now (every earlier end was checked when it was now)."""
    total = 0
    for at, amount in reversed(events):
        total += amount
        assert total <= limit + (events[-1][0] - at) * limit / 60 + 1e-3


TestLimited = Limited.TestCase


@given(
    requests=st.integers(1, 100),
    tokens=st.integers(1, 1000),
    before=st.lists(st.tuples(st.integers(0, 300), st.floats(0, 20)), max_size=20),
    asked=st.integers(0, 1500),
)
def test_who_waits_as_long_as_told_is_let_in_and_a_second_less_is_too_short(
    requests: int, tokens: int, before: list[tuple[int, float]], asked: int
) -> None:
    clock = Clock()
    limiter = RateLimiter(clock)
    whose = principal(requests_per_minute=requests, of_key=Limits(tokens_per_minute=tokens))
    for amount, pause in before:
        try:
            claim = limiter.claim(whose, amount)
        except LimitExceeded:
            continue
        finally:
            clock.now += pause
        claim.spend(amount)
        claim.release()
    wait = 60
    while wait == 60:  # the longest that clients honour: more is told in words, and again in a minute
        try:
            limiter.claim(whose, asked)
        except LimitExceeded as refused:
            wait = refused.retry_after
        else:
            return
        start = clock.now
        if wait > 1:
            clock.now = start + wait - 1.01
            refusal(limiter, whose, asked)
        clock.now = start + wait
    limiter.claim(whose, asked)


def test_tokens_that_were_reserved_and_not_used_are_free_at_once() -> None:
    limiter = RateLimiter(Clock())
    whose = principal(tokens_per_minute=1000)
    for _ in range(50):  # each asks for a fifth, and uses a hundredth
        claim = limiter.claim(whose, 10, 200)
        claim.spend(15)
        claim.release()
    assert limiter.rates(whose)["tokens"].remaining == 250
    assert "1000 tokens a minute (tokens_per_minute), of which 250 are free" in str(refusal(limiter, whose, 10, 900))


def test_what_is_reserved_does_not_leak_before_it_is_used() -> None:
    clock = Clock()
    limiter = RateLimiter(clock)
    whose = principal(tokens_per_minute=100)
    first = limiter.claim(whose, 0, 100)
    clock.now += 600
    refusal(limiter, whose, 0, 1)
    first.spend(100)
    first.release()
    assert refusal(limiter, whose, 0, 50).retry_after == 30


def test_what_is_only_reserved_is_waited_for_a_moment_and_what_was_used_until_it_leaked() -> None:
    limiter = RateLimiter(Clock())
    whose = principal(tokens_per_minute=100)
    open_answer = limiter.claim(whose, 10, 80)
    told = [refusal(limiter, whose, 10, 40) for _ in range(100)]
    assert {one.retry_after for one in told} == {1, 2}, "not all who are refused come back at once"
    assert "of which 10 are free and 90 set aside for requests under way, and this request asks for 50" in str(told[0])
    assert "send a smaller max_tokens" in str(told[0])
    open_answer.spend(70)
    assert refusal(limiter, whose, 10, 40).retry_after == 12, "20 of the 70, whatever is reserved"
    open_answer.release()
    assert refusal(limiter, whose, 10, 40).retry_after == 12


def test_what_is_used_beyond_a_guess_is_owed() -> None:
    clock = Clock()
    limiter = RateLimiter(clock)
    whose = principal(tokens_per_minute=800)
    guess = guessed_answer(whose)
    assert guess == 100, "eight at once fit"
    claims = [limiter.claim(whose, 0, guess) for _ in range(8)]
    assert refusal(limiter, whose, 0, guess).retry_after <= 2
    for claim in claims:
        claim.spend(200)
        claim.release()
    told = refusal(limiter, whose, 0, guess)
    assert (told.retry_after, "Please retry in 68 s, send a smaller max_tokens" in str(told)) == (60, True)
    clock.now += 67
    refusal(limiter, whose, 0, guess)
    clock.now += 1
    limiter.claim(whose, 0, guess)


def test_an_answer_of_unnamed_length_is_guessed_by_the_lower_limit() -> None:
    assert guessed_answer(principal()) == guessed_answer(principal(tokens_per_minute=10**6)) == GUESSED_ANSWER
    both = principal(of_key=Limits(tokens_per_minute=4000), tokens_per_minute=8000)
    assert guessed_answer(both) == 500
    assert guessed_answer(principal(tokens_per_minute=3)) == 1


def test_a_request_larger_than_a_minute_waits_for_an_empty_bucket_and_the_next_for_it() -> None:
    clock = Clock()
    limiter = RateLimiter(clock)
    whose = principal(tokens_per_minute=100)
    claim = limiter.claim(whose, 0, 250)
    claim.spend(250)
    claim.release()
    for asked in (100, 500):
        told = refusal(limiter, whose, 0, asked)
        assert (told.retry_after, "Please retry in 150 s" in str(told)) == (60, True)
    clock.now += 150
    limiter.claim(whose, 0, 500)


def test_what_uses_no_tokens_waits_for_none() -> None:
    limiter = RateLimiter(Clock())
    whose = principal(tokens_per_minute=100, queued_tokens=10)
    claim = limiter.claim(whose, 300)
    limiter.claim(whose).release()  # while it is under way: all that is free is set aside, all that may wait waits
    claim.begun(300)
    claim.spend(300)
    claim.release()
    limiter.claim(whose).release()
    late = limiter.claim(whose)
    with pytest.raises(LimitExceeded, match="tokens_per_minute"):
        late.resize(1, 0)
    late.resize(0, 0)


def test_requests_at_a_time_and_waiting_tokens_are_counted_until_they_end_or_begin() -> None:
    limiter = RateLimiter(Clock())
    whose = principal(concurrent_requests=2, queued_tokens=100)
    first, second = limiter.claim(whose, 60), limiter.claim(whose, 40)
    assert "2 requests under way at once (concurrent_requests)" in str(refusal(limiter, whose))
    second.release()
    assert "100 prompt tokens waiting" in str(refusal(limiter, whose, 41))
    first.begun(60)
    third = limiter.claim(whose, 100)
    first.release()
    with pytest.raises(LimitExceeded, match="queued_tokens"):
        limiter.claim(whose, 10)
    third.release()
    limiter.claim(whose, 1000)  # a prompt longer than the limit waits alone


@pytest.mark.parametrize("limit", ["concurrent_requests", "requests_per_minute", "tokens_per_minute"])
def test_whoever_may_have_nothing_is_not_told_to_come_back(limit: str) -> None:
    refused = refusal(RateLimiter(Clock()), principal(**{limit: 0}), 10)
    assert limit in str(refused) and "however long you wait" in str(refused)
    assert refused.retry_after == LONGEST_WAIT_S


def test_a_changed_limit_holds_for_the_next_request() -> None:
    limiter = RateLimiter(Clock())
    for _ in range(3):
        limiter.claim(principal(requests_per_minute=3)).release()
    assert refusal(limiter, principal(requests_per_minute=3)).retry_after == 20
    limiter.claim(principal(requests_per_minute=60)).release()
    limiter.claim(principal()).release()
    never = refusal(limiter, principal(requests_per_minute=0))
    assert (never.retry_after, "however long you wait. Ask the operator" in str(never)) == (60, True)
    limiter.claim(principal(tenant="other", requests_per_minute=1))


def test_whose_limit_it_is_is_said_and_the_longest_wait_counts() -> None:
    limiter = RateLimiter(Clock())
    whose = principal(of_key=Limits(requests_per_minute=60), requests_per_minute=1)
    limiter.claim(whose).release()
    told = refusal(limiter, whose)
    assert (str(told), told.retry_after) == (
        "The tenant 'acme' may send 1 requests a minute (requests_per_minute). Please retry in 60 s, or ask the "
        "operator for a higher limit.",
        60,
    )
    limiter.claim(replace(whose, key="k2", tenant_limits=Limits()))
    assert limiter.rates(whose)["requests"] == (1, 0, 60.0)


def test_accounts_that_are_full_again_are_forgotten() -> None:
    clock = Clock()
    limiter = RateLimiter(clock)
    kept = limiter.claim(principal(tenant="kept", concurrent_requests=1))
    for number in range(5 * SWEEP_FROM):
        limiter.claim(principal(tenant=f"t{number}", requests_per_minute=60)).release()
        clock.now += 0.01
    assert len(limiter) <= SWEEP_FROM + 1
    refusal(limiter, principal(tenant="kept", concurrent_requests=1))
    kept.release()


def test_the_lower_limit_on_one_request_counts() -> None:
    assert bound_of(principal(), "n") is None
    assert bound_of(principal(of_key=Limits(n=4), n=2), "n") == ("the tenant 'acme'", 2)
    assert bound_of(principal(of_key=Limits(max_tokens=4)), "max_tokens") == ("the key 'k1'", 4)
