"""Whether answers can be held to a grammar, found out before a request runs, where it can hurt nobody.

The trying is done by `livery.grammar_process`, started with the first grammar. Verdicts are kept by content.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable

import msgspec

from livery.engine.base import EngineInfo, Grammar
from livery.grammar_process import WALL_S, GrammarHost, Verdict
from livery.grammars import MAX_SOURCE
from livery.refusals import Draining, GrammarUntried, InvalidParameter
from livery.tenancy import LimitExceeded

log = logging.getLogger("livery.grammars")

KEPT_VERDICTS = 1024
KEPT_BYTES = 8 << 20  # of grammars whose verdicts are kept
MAX_WAITING = 64  # grammars that wait for their trial
MAX_WAITING_EACH = 4  # of these of one tenant: they may take a second each
RETRY_S = 1
PROFILES = ""  # whose the schemas of adapters' profiles are, beside tenants: they count together
LINE = 6 * MAX_SOURCE + 4096  # bytes of a verdict, which may hold the grammar again, control characters as \u0001
START_S = 60.0  # for the process to read a tokenizer, on a busy machine

# What LangChain and others look for in the message.
INVALID = "Invalid schema for response_format"


class GrammarCheck:
    """The asyncio side of the process that tries grammars. Use from one event loop."""

    def __init__(self, tokenizer: Callable[[], str], info: EngineInfo, wall_s: float = WALL_S) -> None:
        """`tokenizer` gives the text of the model's `tokenizer.json`; one trial is waited for `wall_s` seconds."""
        self._tokenizer, self._info, self._wall_s = tokenizer, info, wall_s
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._waiting: Counter[str] = Counter()
        self._verdicts: OrderedDict[Grammar, Verdict] = OrderedDict()
        self._kept_bytes = 0
        self._stopped = False
        self._trials: dict[Grammar, asyncio.Task[Verdict]] = {}

    async def check(self, grammar: Grammar, param: str, tenant: str) -> Grammar:
        """The grammar as the engine is to take it.

        Raises InvalidParameter where no answer can be held to it, LimitExceeded where too many of this tenant's wait
        already, GrammarUntried where too many do in all or the machine has no time for it. Draining once stopped.
        """
        if len(grammar.source) > MAX_SOURCE:
            verdict = Verdict(f"it has {len(grammar.source)} characters; at most {MAX_SOURCE} bytes are taken")
        elif grammar in self._verdicts:
            self._verdicts.move_to_end(grammar)
            verdict = self._verdicts[grammar]
        else:
            verdict = await self._try(grammar, tenant)
            if verdict.late:
                raise GrammarUntried(f"the server had no time for it within {self._wall_s:g} s", retry_after=5)
        if verdict.grammar is None:
            what = f"Invalid {grammar.kind} for {param}"
            if grammar.kind == "json_schema":
                what = "Invalid schema for tools" if param == "tools" else INVALID
            raise InvalidParameter(f"{what}: {verdict.refusal}", param)
        return verdict.grammar

    async def check_schema(self, schema: str) -> None:
        """Whether answers can be held to the JSON schema of an adapter's profile.

        Raises InvalidParameter, GrammarUntried or Draining, as `check` does.
        """
        try:
            await self.check(Grammar("json_schema", schema), "response_format", PROFILES)
        except LimitExceeded:
            raise GrammarUntried(f"{MAX_WAITING_EACH} others of profiles wait to be tried") from None

    async def stop(self) -> None:
        """End the process for good, and the trials that wait for it: those who asked get Draining."""
        self._stopped = True
        trials = list(self._trials.values())
        for trial in trials:
            trial.cancel()
        await asyncio.gather(*trials, return_exceptions=True)
        await self._end()

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.kill()
            await process.wait()

    async def _try(self, grammar: Grammar, tenant: str) -> Verdict:
        trial = self._trials.get(grammar)
        if trial is None:
            if self._waiting[tenant] >= MAX_WAITING_EACH:
                raise LimitExceeded(
                    f"{MAX_WAITING_EACH} new schemas or grammars of tenant '{tenant}' wait to be tried out, as many as "
                    f"a tenant may have at once. Please retry in {RETRY_S} s.",
                    RETRY_S,
                )
            if len(self._trials) >= MAX_WAITING:
                raise GrammarUntried(f"{MAX_WAITING} others wait to be tried")
            trial = self._trials[grammar] = asyncio.create_task(self._ask(grammar))
            self._waiting[tenant] += 1
            trial.add_done_callback(lambda _: self._tried(grammar, tenant))
        try:
            return await asyncio.shield(trial)  # who asked may leave; the process goes on for the others
        except asyncio.CancelledError:
            if self._stopped and trial.cancelled():
                raise Draining from None
            raise

    def _tried(self, grammar: Grammar, tenant: str) -> None:
        del self._trials[grammar]
        self._waiting[tenant] -= 1
        if not self._waiting[tenant]:
            del self._waiting[tenant]

    async def _ask(self, grammar: Grammar) -> Verdict:
        """One line out, one line back, one grammar at a time."""
        try:
            async with self._turn, asyncio.timeout(START_S + self._wall_s):
                process = await self._running()
                assert process.stdin is not None and process.stdout is not None
                process.stdin.write(msgspec.json.encode(grammar) + b"\n")
                await process.stdin.drain()
                verdict = msgspec.json.decode(await process.stdout.readline(), type=Verdict)
                if not verdict.late:
                    self._keep(grammar, verdict)
                return verdict
        except (TimeoutError, OSError, ValueError, msgspec.DecodeError) as error:  # ValueError: a line too long
            log.error("the process that tries grammars out doesn't answer and is started anew: %r", error)
            await self._end()
            raise GrammarUntried("the process that tries them doesn't answer and is started anew") from None

    async def _running(self) -> asyncio.subprocess.Process:
        """Raises Draining once stopped."""
        if self._stopped:
            raise Draining
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "livery.grammar_process"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=LINE,
                start_new_session=True,  # Ctrl-C goes to the terminal's group
            )
            assert self._process.stdin is not None
            tokenizer = await asyncio.to_thread(self._tokenizer)
            host = GrammarHost(tokenizer, self._info.vocab_size, self._info.eos_token_ids, self._wall_s)
            self._process.stdin.write(msgspec.json.encode(host) + b"\n")
        return self._process

    def _keep(self, grammar: Grammar, verdict: Verdict) -> None:
        self._verdicts[grammar] = verdict
        self._kept_bytes += len(grammar.source)
        while len(self._verdicts) > KEPT_VERDICTS or self._kept_bytes > KEPT_BYTES:
            old, _ = self._verdicts.popitem(last=False)
            self._kept_bytes -= len(old.source)
