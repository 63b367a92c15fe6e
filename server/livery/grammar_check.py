"""Whether answers can be held to a grammar, found out before a request runs, where it can hurt nobody.

The trying is done by `livery.grammar_process`, started with the first grammar. Verdicts are kept by content.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections import OrderedDict
from collections.abc import Callable

import msgspec

from livery.engine.base import EngineInfo, Grammar
from livery.grammar_process import WALL_S, GrammarHost, Verdict
from livery.grammars import MAX_SOURCE
from livery.refusals import InvalidParameter, Overloaded

log = logging.getLogger("livery.grammars")

KEPT_VERDICTS = 1024
KEPT_BYTES = 8 << 20  # of grammars whose verdicts are kept
MAX_WAITING = 64  # grammars that wait for their trial
LINE = 6 * MAX_SOURCE + 4096  # bytes of a verdict, which may hold the grammar again, control characters as \u0001
START_S = 60.0  # for the process to read a tokenizer, on a busy machine

# What LangChain and others look for in the message.
INVALID = "Invalid schema for response_format"


class GrammarCheck:
    """The asyncio side of the process that tries grammars. Use from one event loop."""

    def __init__(self, tokenizer: Callable[[], str], info: EngineInfo) -> None:
        """`tokenizer` gives the text of the model's `tokenizer.json`."""
        self._tokenizer, self._info = tokenizer, info
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._verdicts: OrderedDict[Grammar, Verdict] = OrderedDict()
        self._kept_bytes = 0
        self._trials: set[asyncio.Task[Verdict]] = set()

    async def check(self, grammar: Grammar, param: str) -> Grammar:
        """The grammar as the engine is to take it.

        Raises InvalidParameter where no answer can be held to it, Overloaded where too many wait for their trial.
        """
        if len(grammar.source) > MAX_SOURCE:
            verdict = Verdict(f"it has {len(grammar.source)} characters; at most {MAX_SOURCE} bytes are taken")
        elif grammar in self._verdicts:
            self._verdicts.move_to_end(grammar)
            verdict = self._verdicts[grammar]
        else:
            verdict = await self._try(grammar)
        if verdict.grammar is None:
            what = f"Invalid {grammar.kind} for {param}"
            if grammar.kind == "json_schema":
                what = "Invalid schema for tools" if param == "tools" else INVALID
            raise InvalidParameter(f"{what}: {verdict.refusal}", param)
        return verdict.grammar

    async def stop(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.kill()
            await process.wait()

    async def _try(self, grammar: Grammar) -> Verdict:
        if self._waiting >= MAX_WAITING:
            raise Overloaded(self._waiting)
        trial = asyncio.create_task(self._ask(grammar))
        self._trials.add(trial)
        trial.add_done_callback(self._trials.discard)
        return await asyncio.shield(trial)  # who asked may leave; the process goes on for the others

    async def _ask(self, grammar: Grammar) -> Verdict:
        """One line out, one line back, one grammar at a time."""
        self._waiting += 1
        try:
            async with self._turn, asyncio.timeout(START_S + WALL_S):
                if grammar in self._verdicts:  # tried while this one waited
                    return self._verdicts[grammar]
                process = await self._running()
                assert process.stdin is not None and process.stdout is not None
                process.stdin.write(msgspec.json.encode(grammar) + b"\n")
                await process.stdin.drain()
                verdict = msgspec.json.decode(await process.stdout.readline(), type=Verdict)
                self._keep(grammar, verdict)
                return verdict
        except (TimeoutError, OSError, ValueError, msgspec.DecodeError) as error:  # ValueError: a line too long
            log.error("the process that tries grammars out doesn't answer and is started anew: %r", error)
            await self.stop()
            raise Overloaded(self._waiting) from None
        finally:
            self._waiting -= 1

    async def _running(self) -> asyncio.subprocess.Process:
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
            host = GrammarHost(tokenizer, self._info.vocab_size, self._info.eos_token_ids)
            self._process.stdin.write(msgspec.json.encode(host) + b"\n")
        return self._process

    def _keep(self, grammar: Grammar, verdict: Verdict) -> None:
        self._verdicts[grammar] = verdict
        self._kept_bytes += len(grammar.source)
        while len(self._verdicts) > KEPT_VERDICTS or self._kept_bytes > KEPT_BYTES:
            old, _ = self._verdicts.popitem(last=False)
            self._kept_bytes -= len(old.source)
