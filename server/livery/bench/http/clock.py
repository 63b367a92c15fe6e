"""Seconds that a server's process spends between text and tokens, each call timed where it is made."""

from __future__ import annotations

import functools
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

from livery.chat_template import ChatTemplate
from livery.stops import StopBuffer
from livery.text import Detokenizer, Tokenizer

TEMPLATING = "templating"
ENCODING = "templating and tokenising"
DETOKENISING = "detokenising"
STOPS = "stop strings"

TIMED: tuple[tuple[type, str, str], ...] = (
    (ChatTemplate, "render", TEMPLATING),
    (Tokenizer, "encode", ENCODING),
    (Tokenizer, "encode_chat", ENCODING),
    (Detokenizer, "__init__", DETOKENISING),
    (Detokenizer, "push", DETOKENISING),
    (Detokenizer, "flush", DETOKENISING),
    (StopBuffer, "push", STOPS),
)


class TextClock:
    """Times the calls of TIMED from `begin` on; rendering is part of encoding a conversation and counts in both.

    Wall time: what a call waits for the interpreter or a core counts too.
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()

    def begin(self) -> None:
        for owner, name, part in TIMED:
            setattr(owner, name, self._timed(getattr(owner, name), part))

    def _timed(self, call: Callable[..., Any], part: str) -> Callable[..., Any]:
        @functools.wraps(call)
        def timed(*args: Any, **keywords: Any) -> Any:  # noqa: ANN401 - whatever the call takes and gives
            begun = time.perf_counter()
            try:
                return call(*args, **keywords)
            finally:
                self.seconds[part] += time.perf_counter() - begun
                self.calls[part] += 1

        return timed
