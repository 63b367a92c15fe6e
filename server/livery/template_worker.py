"""A process that renders the chat templates which adapters bring, and can do nothing else.

Run as `python -m livery.template_worker` by `livery.foreign_templates`: requests come on standard input in JSON, whose
whole numbers have any length, answers go to standard output in msgpack, each after its length in four bytes. Jinja's
sandbox is no border by itself (its escapes are a long list), so this process is one: it has no environment worth
reading, opens no file and no connection, starts no process, and its memory and the processor time of each rendering are
limited by the system. What goes over the time ends it, in the middle of whatever it does. It is given one template in
its life, whatever that does to it.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from functools import lru_cache
from typing import Any, BinaryIO

import jinja2.debug  # noqa: F401  (what Jinja imports once something fails: no file can be opened then)
import msgspec
from jinja2 import TemplateSyntaxError

from livery.chat_template import ChatTemplate, Conversation, InvalidMessages

LENGTH = 4  # bytes before each message


class Order(msgspec.Struct, array_like=True):
    """One rendering: a template, the special tokens it knows by name, what it is given, how long it may become."""

    source: str
    named_tokens: dict[str, str]
    chat: dict[str, Any]
    max_chars: int


class Rendered(msgspec.Struct, array_like=True):
    """The text, or what the template says of the messages with the field at fault, or what is wrong with itself."""

    text: str = ""
    error: str = ""
    param: str = ""
    fault: str = ""


def main(memory_bytes: int, cpu_s: float) -> None:
    """Answer until the input ends. `cpu_s` is what one rendering may take of a processor, in seconds."""
    _warm_up()
    _shut_in(memory_bytes)
    while (order := read_message(sys.stdin.buffer)) is not None:
        signal.setitimer(signal.ITIMER_PROF, cpu_s)
        answer = msgspec.msgpack.encode(_render(msgspec.json.decode(order, type=Order)))
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.buffer.write(len(answer).to_bytes(LENGTH, "big") + answer)
        sys.stdout.buffer.flush()


def read_message(stream: BinaryIO) -> bytes | None:
    """The next message; None at the end."""
    head = stream.read(LENGTH)
    return stream.read(int.from_bytes(head, "big")) if len(head) == LENGTH else None


def _render(order: Order) -> Rendered:
    try:
        text = _compiled(order.source, json.dumps(order.named_tokens)).render(Conversation(**order.chat))
    except TemplateSyntaxError as broken:
        return Rendered(fault=f"is no Jinja template (line {broken.lineno}: {broken.message})"[:1000])
    except InvalidMessages as refused:
        return Rendered(error=str(refused)[:1000], param=refused.param)
    except MemoryError:
        return Rendered(fault="takes more memory than one may")
    except RecursionError:
        return Rendered(fault="is nested too deeply")
    if len(text) > order.max_chars:
        return Rendered(fault=f"writes over {order.max_chars} characters")
    return Rendered(text)


@lru_cache(maxsize=1)  # the process is given no other
def _compiled(source: str, named_tokens: str) -> ChatTemplate:
    return ChatTemplate(source, json.loads(named_tokens))


def _warm_up() -> None:
    """Read what reading a clock or refusing something reads, while files can be read."""
    warm = ChatTemplate("{{ strftime_now('%d %B %Y') }}{{ messages | tojson }}{{ raise_exception('x') }}", {})
    try:
        warm.render(Conversation([]))
    except InvalidMessages:
        return


def _shut_in(memory_bytes: int) -> None:
    """From here on the system refuses what a rendering has no business with."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process, whatever Python is busy with
    limits = {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_NOFILE: 3,  # the descriptors it has, and no other
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NPROC: 0,
    }
    for limit, value in limits.items():
        _, hard = resource.getrlimit(limit)
        allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (allowed, allowed))


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
