"""Reasoning that a model writes before its answer, told apart from it by the marks that its family puts around it."""

from __future__ import annotations

from functools import lru_cache

from livery.tools.events import Part
from livery.tools.json_reader import WHITESPACE
from livery.tools.prose import overlap

# What begins and ends the reasoning: DeepSeek-R1's marks, which Qwen 3 and most others took over, and Magistral's.
STYLES = {"think": ("<think>", "</think>"), "mistral": ("[THINK]", "[/THINK]")}
REASONING_NAMES = ("auto", "none", *STYLES)


@lru_cache(64)
def reasoning_style(name: str, template: str | None) -> str | None:
    """The style of that name; with "auto" the one whose marks the chat template knows, None where there is none."""
    if name != "auto":
        return None if name == "none" else name
    return next((style for style, (_, end) in STYLES.items() if template and end in template), None)


class ReasoningSplit:
    """The text parser that tells reasoning from content. `opened`: the prompt has begun the reasoning already.

    White space around either is dropped where they meet.
    """

    def __init__(self, style: str, *, opened: bool) -> None:
        self._start, self._end = STYLES[style]
        self._inside = opened
        self._again = opened  # the prompt has opened it, and the model may do so once more
        self._over = False  # what comes is content
        self._fresh = True  # no text of this kind yet
        self._held = ""

    def feed(self, text: str) -> list[Part]:
        if self._over:
            return self._content(text)
        text = self._held + text
        self._held = ""
        if not self._inside:
            begun = text.lstrip(WHITESPACE)
            if begun.startswith(self._start):
                self._inside, text = True, begun.removeprefix(self._start)
            elif self._start.startswith(begun):
                self._held = text
                return []
            else:
                self._over, self._fresh = True, False
                return [Part("content", text)]
        return self._reasoning(text)

    def finish(self) -> list[Part]:
        held, self._held = self._held, ""
        if self._inside:
            held = held.rstrip(WHITESPACE)
        return [Part("reasoning" if self._inside else "content", held)] if held else []

    def _reasoning(self, text: str) -> list[Part]:
        if self._fresh:
            text = text.lstrip(WHITESPACE)
            if self._again and text:
                if text != self._start and self._start.startswith(text):
                    self._held = text
                    return []
                self._again = False
                text = text.removeprefix(self._start).lstrip(WHITESPACE)
        thought, end, rest = text.partition(self._end)
        if end:
            self._inside, self._over, self._fresh = False, True, True
            thought = thought.rstrip(WHITESPACE)
            return ([Part("reasoning", thought)] if thought else []) + self._content(rest)
        keep = overlap(text, self._end)
        said = text[: len(text) - keep].rstrip(WHITESPACE)
        self._held = text[len(said) :]
        self._fresh = self._fresh and not said
        return [Part("reasoning", said)] if said else []

    def _content(self, text: str) -> list[Part]:
        if self._fresh:
            text = text.lstrip(WHITESPACE)
            self._fresh = not text
        return [Part("content", text)] if text else []
