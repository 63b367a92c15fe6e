"""A process that tries grammars out, each in a fork of its own with little time and memory.

Run as `python -m livery.grammar_process`. First comes one line of JSON that says what to try them with (GrammarHost),
then one Grammar a line; each is answered by one Verdict a line. Whatever a grammar does to the compiler (fill memory,
overflow a stack, not come back) ends its fork and nothing else.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import sys
import time

import msgspec
from llguidance.gbnf_to_lark import any_to_lark

from livery.engine.base import Grammar
from livery.grammars import GrammarCompiler, TokenizerUnfit, shortened
from livery_adapters.background import step_back

CPU_S = 1  # of its own time
WALL_S = 10.0  # on a machine whose cores are taken
MEMORY = 512 << 20  # bytes beside what the process has already; what isn't a failure takes a tenth of it
TOO_LONG = f"it takes more than {CPU_S} s to compile; make it simpler"
BROKE = "the compiler can't cope with it; make it simpler"
TOO_MUCH = "it takes too much memory to compile; make it simpler"


class GrammarHost(msgspec.Struct, frozen=True):
    """A model as grammars see it: the text of its `tokenizer.json`, the logits' width, its end-of-sequence ids.

    `wall_s` is how many seconds one grammar is waited for.
    """

    tokenizer: str
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    wall_s: float = WALL_S


class Verdict(msgspec.Struct, frozen=True):
    """Why no answer can be held to a grammar, or what the engine is to hold it to: Lark in place of other notations.

    `late`: neither is known, for the machine had no time for it.
    """

    refusal: str = ""
    grammar: Grammar | None = None
    late: bool = False


def main() -> None:
    step_back()
    lines = sys.stdin.buffer
    host = msgspec.json.decode(lines.readline(), type=GrammarHost)
    compiler: GrammarCompiler | str
    try:
        compiler = GrammarCompiler(host.tokenizer, host.vocab_size, host.eos_token_ids)
    except TokenizerUnfit as error:
        compiler = str(error)
    while line := lines.readline():
        grammar = msgspec.json.decode(line, type=Grammar)
        answer = Verdict(compiler) if isinstance(compiler, str) else verdict(compiler, grammar, host.wall_s)
        sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
        sys.stdout.buffer.flush()


def verdict(compiler: GrammarCompiler, grammar: Grammar, wall_s: float = WALL_S) -> Verdict:
    """Try a grammar out in a fork."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            _limit()
            _write(writing, msgspec.json.encode(_tried(compiler, grammar)))
        finally:
            os._exit(0)
    os.close(writing)
    try:
        said = _read(reading, time.monotonic() + wall_s)
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if said is None:
        return Verdict(late=True)
    if said:
        return msgspec.json.decode(said, type=Verdict)
    slow = os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL)
    return Verdict(TOO_LONG if slow else BROKE)


def _tried(compiler: GrammarCompiler, grammar: Grammar) -> Verdict:
    try:
        if grammar.kind == "lark":
            grammar = Grammar("lark", any_to_lark(grammar.source))
        compiler.prove(grammar)
        return Verdict(grammar=grammar)
    except MemoryError:
        return Verdict(TOO_MUCH)
    except Exception as error:  # noqa: BLE001  (boundary: what breaks the compiler is a refused grammar)
        return Verdict(shortened(error))


def _limit() -> None:
    """From here on this process may take so much and no more."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        with open("/proc/self/statm", encoding="ascii") as statm:
            pages = int(statm.read().split()[0])
        most = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _write(pipe: int, said: bytes) -> None:
    with os.fdopen(pipe, "wb") as out:
        out.write(said)


def _read(pipe: int, deadline: float) -> bytes | None:
    """All that comes until the other end is closed; None where that takes longer."""
    said = b""
    while (left := deadline - time.monotonic()) > 0 and select.select([pipe], [], [], left)[0]:
        piece = os.read(pipe, 1 << 16)
        if not piece:
            return said
        said += piece
    return None


if __name__ == "__main__":
    main()
