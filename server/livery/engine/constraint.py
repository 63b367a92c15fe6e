"""Answers held to grammars: which tokens may come next is worked out beside the step loop, while the step computes.

A sequence's matcher takes its newest token and computes the mask for the next one on a thread of its own pool
(llguidance lets go of the interpreter), from the moment the token is known until a token is to be chosen. A mask that
isn't there then holds up nobody: its sequence sits steps out until it is.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from livery.engine.base import Grammar, RequestRefused
from livery.engine.plan import TokenMask
from livery.grammars import GrammarCompiler, GrammarRefused, TokenizerUnfit, shortened
from livery_adapters.background import step_back
from livery_adapters.shared_threads import SharedThreads

log = logging.getLogger(__name__)

CACHED_GRAMMARS = 32  # compiled ones that are kept
BROKEN = "the answer can't go on under its grammar: {}; simplify the schema or the grammar"


class Constraint:
    """One sequence's place in its grammar. Used by the step loop; its matcher by one thread at a time."""

    def __init__(
        self,
        compiled: Future[LLMatcher],
        masks: ThreadPoolExecutor,
        vocab_size: int,
        eos_token_ids: Sequence[int],
        wake: Callable[[], None],
    ) -> None:
        self._masks = masks
        self._vocab_size = vocab_size
        self._eos = list(eos_token_ids)
        self._wake = wake
        self._matcher: LLMatcher | None = None
        self._mask: Future[TokenMask] = Future()
        self._late = False
        self.failure: str | None = None  # why the sequence can't go on
        compiled.add_done_callback(self._begin)

    @property
    def is_held(self) -> bool:
        """Whether its mask was late and isn't there yet: the sequence had better sit steps out."""
        return self._late and not self._mask.done()

    def mask(self, seconds: float) -> TokenMask | None:
        """The tokens that may come next, waited for at most so long; None when there is none, `failure` says why."""
        error: BaseException | None
        try:
            error = self._mask.exception(seconds)
        except TimeoutError:
            self._late = True
            waited_for = self._mask
            waited_for.add_done_callback(lambda _: self._wake())
            return None
        except CancelledError as cancelled:
            error = cancelled
        if error is not None:  # whatever it is, a panic of compiled code included: it is this request's affair alone
            self.failure = BROKEN.format(shortened(error))
            return None
        self._late = False
        return self._mask.result()

    def advance(self, token: int) -> None:
        """Take the sequence's newest token, which its last mask allowed."""
        self._mask = self._masks.submit(self._next, token)

    def _begin(self, compiled: Future[LLMatcher]) -> None:
        """On the thread that compiled, or on the caller's where that was done before."""
        mask = self._mask

        def settle(first: Future[TokenMask]) -> None:
            if first.cancelled():
                mask.cancel()
            elif (failed := first.exception()) is not None:
                mask.set_exception(failed)
            else:
                mask.set_result(first.result())

        try:
            self._masks.submit(self._first, compiled).add_done_callback(settle)
        except RuntimeError:  # stopped meanwhile
            mask.cancel()

    def _first(self, compiled: Future[LLMatcher]) -> TokenMask:
        self._matcher = compiled.result().deep_copy()
        return self._allowed()

    def _next(self, token: int) -> TokenMask:
        assert self._matcher is not None
        self._matcher.consume_token(token)
        return self._allowed()

    def _allowed(self) -> TokenMask:
        """Which tokens the matcher takes next. Raises GrammarRefused where the grammar has become too much."""
        assert self._matcher is not None
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise GrammarRefused(shortened(self._matcher.get_error()))
        allowed: NDArray[np.bool_] = np.unpackbits(bits, count=self._vocab_size, bitorder="little").view(np.bool_)
        count = np.count_nonzero(allowed)
        if count > self._vocab_size // 2:
            return TokenMask(np.flatnonzero(~allowed), allows=False, ends_only=False)
        ends_only = bool(count == np.count_nonzero(allowed[self._eos]))
        return TokenMask(np.flatnonzero(allowed), allows=True, ends_only=ends_only)


class Constraints:
    """Makes constraints for one model; compiled grammars are kept by their content."""

    def __init__(
        self, tokenizer: Path, vocab_size: int, eos_token_ids: Sequence[int], threads: int, wake: Callable[[], None]
    ) -> None:
        """`tokenizer` is a `tokenizer.json`; without one no request can have a grammar. `wake` is called on threads."""
        self._vocab_size, self._eos, self._wake = vocab_size, eos_token_ids, wake
        self._compiler: GrammarCompiler | None = None
        self._unfit = "this model has no tokenizer.json to hold answers to grammars with"
        self._masks = ThreadPoolExecutor(threads, "grammar-masks")
        self._compiling = SharedThreads(1, "grammar-compiler", step_back)
        self._asked: dict[tuple[str, Grammar], Future[LLMatcher]] = {}  # by tenants, each in its turn
        self._compiled: OrderedDict[Grammar, Future[LLMatcher]] = OrderedDict()  # for all, the latest used last
        try:
            self._compiler = GrammarCompiler(tokenizer.read_text(encoding="utf-8"), vocab_size, eos_token_ids)
        except FileNotFoundError:
            log.info("no grammars: %s is not there", tokenizer)
        except (OSError, UnicodeDecodeError, TokenizerUnfit) as error:
            self._unfit = str(error)
            log.info("no grammars: %s", error)

    @property
    def can_hold(self) -> bool:
        return self._compiler is not None

    def of(self, grammar: Grammar, tenant: str) -> Constraint:
        """A constraint at the grammar's beginning; compiling goes on beside the caller. Raises RequestRefused.

        Tenants' grammars are compiled in turns of tenants, so that nobody waits for another one's many.
        """
        if self._compiler is None:
            raise RequestRefused(self._unfit)
        self._keep_compiled()
        compiled = self._compiled.get(grammar) or self._asked.get((tenant, grammar))
        if compiled is None:
            compiled = self._compiling.submit(tenant, partial(self._compiler.compile, grammar))
            self._asked[tenant, grammar] = compiled
        elif grammar in self._compiled:
            self._compiled.move_to_end(grammar)
        return Constraint(compiled, self._masks, self._vocab_size, self._eos, self._wake)

    def stop(self) -> None:
        self._masks.shutdown(wait=False, cancel_futures=True)
        self._compiling.stop()

    def _keep_compiled(self) -> None:
        """Keep what was compiled since the last time, within bounds; what failed is tried again when asked for."""
        for tenant, grammar in [key for key, compiled in self._asked.items() if compiled.done()]:
            compiled = self._asked.pop((tenant, grammar))
            if compiled.exception() is None:
                self._compiled[grammar] = compiled
        while len(self._compiled) > CACHED_GRAMMARS:
            self._compiled.popitem(last=False)
