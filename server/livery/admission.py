"""The one way in for every kind of request: the room there is, its key's and tenant's limits, and what serves it.

    claim = await admission.count(principal)           # before its body is read, as is
    body = admission.hold_body(principal, 2048)
    admitted = await admission.admit(model, caller, Asked(sequences=1, prompt_tokens=40, answer_tokens=256))
    try:
        await admitted.encoded(38, 256)    # once the prompts are encoded
        admitted.answered("pirate", digest, principal, usage)    # from here on what grows in `usage` is counted
        admitted.begun(38)           # an answer to a prompt of 38 tokens began
    finally:
        admitted.release()

What is refused costs no more than these counters: no prompt is encoded, no adapter is held and no database asked
before. Knows no HTTP and no engine.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Literal, Protocol

from livery.beside import weight
from livery.jobs import BareText, ChatPrompt, Job, Prompt
from livery.lease import Caller, Lease
from livery.refusals import Draining, InvalidParameter, Overloaded
from livery.tenancy import Principal
from livery.tenancy.gate import Counted, Entered, Gatekeeper, Wish
from livery.tenancy.limits import LimitExceeded, bound_of, guessed_answer
from livery.tenancy.meter import Counts, Meter, Payer
from livery.tenancy.room import OverShare, Part, Space

BODY_BYTES = 256 << 20  # of all requests under way: what was made of a body is kept as long as its request
CHARACTERS_PER_TOKEN = 4  # as a guess, before a prompt is encoded

Asked = Wish  # by a request
Throttled = Callable[[str, Literal["limit", "room"]], None]
FindLease = Callable[[str, Caller], Awaitable[Lease | None]]


class Used(Protocol):
    """Tokens of a request under way, which grow as they come."""

    cached_tokens: int
    completion_tokens: int


class Refusals:
    """Around what may refuse a tenant's request: tells of it."""

    __slots__ = ("_tell", "_tenant")

    def __init__(self, tenant: str, tell: Throttled) -> None:
        self._tenant = tenant
        self._tell = tell

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, LimitExceeded):
            self._tell(self._tenant, "limit")
        elif isinstance(error, Overloaded | OverShare):
            self._tell(self._tenant, "room")


class Admitted:
    """What an admitted request holds: room, its part of limits, and a lease (None for the base). Release it.

    `refusals` stands around what may refuse it still.
    """

    def __init__(self, entry: Entered, meter: Meter, ended: Callable[[Admitted], None], refusals: Refusals) -> None:
        self.lease: Lease | None = None
        self.refusals = refusals
        self._entry = entry
        self._meter = meter
        self._ended = ended
        self._begun = 0  # prompt tokens
        self._answer: tuple[Payer, Used] | None = None
        self._counted = Counts()

    async def encoded(self, prompt_tokens: int, answer_tokens: int) -> None:
        """So many tokens it really is. Raises LimitExceeded, Overloaded or OverShare where these don't fit."""
        with self.refusals:
            await self._entry.resize(prompt_tokens, answer_tokens)

    def answered(self, adapter: str, digest: str, principal: Principal, used: Used) -> None:
        """It goes to the engine now: count it, and from here on what it uses, for a version of an adapter."""
        self._answer = Payer(principal.account, principal.key or "", adapter, digest), used
        self._meter.count(self._answer[0], Counts(requests=1))

    def begun(self, prompt_tokens: int) -> None:
        """The answer to a prompt of so many tokens has begun: it was computed and waits no longer."""
        self._begun += prompt_tokens
        self._entry.begun(prompt_tokens)

    def account(self) -> None:
        """Count what was used since the last time."""
        if self._answer is None:
            return
        payer, used = self._answer
        last = self._counted
        new = Counts(
            0,
            self._begun - last.prompt_tokens,
            used.cached_tokens - last.cached_tokens,
            used.completion_tokens - last.completion_tokens,
        )
        if new:
            last.add(new)
            self._entry.spend(new.prompt_tokens + new.completion_tokens)
            self._meter.count(payer, new)

    def release(self) -> None:
        """Let go of everything; more calls do nothing."""
        self.account()
        self._entry.leave()
        if self.lease is not None:
            self.lease.release()
        self._ended(self)


class Admission:
    """Who comes in, and who is told to come later. Use from one event loop."""

    def __init__(
        self, find: FindLease, gate: Gatekeeper, meter: Meter, throttled: Throttled, body_bytes: int = BODY_BYTES
    ) -> None:
        """`find` gives a hold on what a name stands for, None for the base; `throttled` is told who is refused why.

        Bodies of requests may hold `body_bytes` in this process.
        """
        self._throttled = throttled
        self.gate = gate
        self.bodies = Space("bytes of request bodies", body_bytes)
        self.meter = meter
        self.draining = False
        self._find = find
        self._open: set[Admitted] = set()

    def drain(self) -> None:
        """Take nothing new from now on; what is open runs to its end."""
        self.draining = True

    def account(self) -> None:
        """Count what open requests used since the last time."""
        for admitted in self._open:
            admitted.account()

    async def count(self, principal: Principal) -> Counted:
        """One of the requests that a key and its tenant may send, whatever it asks for. Raises LimitExceeded."""
        with Refusals(principal.tenant, self._throttled):
            return await self.gate.count(principal)

    def hold_body(self, principal: Principal, size: int) -> Part:
        """Room for a request's body of so many bytes. Raises Overloaded, OverShare."""
        with Refusals(principal.tenant, self._throttled):
            return self.bodies.enter(principal.tenant, principal.weight, size, alone=principal.key is None)

    async def admit(self, model: str, caller: Caller, asked: Asked) -> Admitted:
        """Take room and hold what serves the request.

        Raises Draining, Overloaded, OverShare, LimitExceeded, and what finding the lease raises.
        """
        if self.draining:
            raise Draining
        principal = caller.principal
        refusals = Refusals(principal.tenant, self._throttled)
        with refusals:
            entry = await self.gate.enter(principal, asked, caller.claim)
        admitted = Admitted(entry, self.meter, self._open.discard, refusals)
        self._open.add(admitted)
        try:
            admitted.lease = await self._find(model, caller)
        except BaseException:
            admitted.release()
            raise
        return admitted

    @asynccontextmanager
    async def visit(self, model: str, caller: Caller) -> AsyncIterator[Lease | None]:
        """Around a request that the engine has no part in: it takes a place while it lasts. Raises as `admit` does."""
        admitted = await self.admit(model, caller, Asked())
        try:
            yield admitted.lease
        finally:
            admitted.release()


def asked_by(job: Job, max_model_len: int) -> Asked:
    """What a request takes, its prompts guessed. Raises InvalidParameter over its own limits."""
    options = job.options
    _check(job.caller.principal, "max_tokens", "max_tokens", options.max_tokens)
    _check(job.caller.principal, "n", "best_of" if options.best_of else "n", options.answers_made)
    answers = len(job.prompts) * options.answers_made
    return Asked(answers, guessed_tokens(job.prompts, max_model_len), (options.max_tokens or 0) * answers)


def within_limits(job: Job) -> Job:
    """The request with no longer answers by default than its key and tenant may ask for."""
    bound, usual = bound_of(job.caller.principal, "max_tokens"), job.options.default_max_tokens
    if bound is None:
        return job
    most = bound.most if usual is None else min(usual, bound.most)
    return replace(job, options=replace(job.options, default_max_tokens=most))


def set_aside(job: Job, most: Iterable[int]) -> int:
    """What to set aside for answers that may have so many tokens each: all of it where the client named their length.

    Else it is what their context leaves, or a default: most end long before.
    """
    if job.options.max_tokens is not None:
        return sum(most)
    guess = guessed_answer(job.caller.principal)
    return sum(min(one, guess) for one in most)


def guessed_tokens(prompts: Sequence[Prompt], max_model_len: int) -> int:
    """About how many tokens prompts have; none is longer than the model's context, or it is refused."""
    return sum(min(_guessed(prompt, max_model_len), max_model_len) for prompt in prompts)


def guessed_pairs(texts: Sequence[str], pairs: Sequence[tuple[int, int]], max_model_len: int) -> int:
    """As `guessed_tokens`, where each pair of texts, by their places, is a prompt of its own."""
    sizes = [len(texts[one]) + len(texts[other]) for one, other in pairs]
    return sum(min(1 + size // CHARACTERS_PER_TOKEN, max_model_len) for size in sizes)


def _guessed(prompt: Prompt, most: int) -> int:
    """About how many tokens a prompt has, or some number over `most`."""
    if isinstance(prompt, list):
        return len(prompt)
    if isinstance(prompt, ChatPrompt):
        size = weight((prompt.messages, prompt.tools, prompt.documents), most * CHARACTERS_PER_TOKEN)
    else:
        size = len(prompt.text if isinstance(prompt, BareText) else prompt)
    return 1 + size // CHARACTERS_PER_TOKEN


def _check(principal: Principal, name: Literal["max_tokens", "n"], param: str, value: int | None) -> None:
    """Is one request within what its key and tenant may ask of one? Raises InvalidParameter."""
    bound = bound_of(principal, name)
    if bound is not None and value is not None and value > bound.most:
        raise InvalidParameter(
            f"{param} is {value}, and requests of {bound.whose} may ask for at most {bound.most} (its limit {name}): "
            "ask for less, or ask the operator for a higher limit.",
            param,
        )
