"""The content around calls: what of an answer is for the reader."""

from __future__ import annotations

from livery.tools.events import Part
from livery.tools.json_reader import WHITESPACE


class Prose:
    """Gathers an answer's parts. White space beside calls belongs to the content only if more content follows."""

    def __init__(self) -> None:
        self._parts: list[Part] = []
        self._space = ""
        self._said = False
        self._calls = 0

    def _say(self, text: str) -> None:
        """Content, but for white space at its end, which waits for more. Between calls alone it isn't content."""
        spoken = text.rstrip(WHITESPACE)
        space = text[len(spoken) :]
        if not spoken:
            self._space += space
            return
        if self._calls and not self._said:
            self._space, spoken = "", spoken.lstrip(WHITESPACE)
        self._parts.append(Part("content", self._space + spoken))
        self._space, self._said = space, True

    def _say_no_more(self) -> None:
        """The answer is over; white space at its end is content where there were no calls."""
        if self._space and not self._calls:
            self._parts.append(Part("content", self._space))

    def _take(self) -> list[Part]:
        parts, self._parts = self._parts, []
        return parts


def overlap(text: str, mark: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `mark`."""
    longest = min(len(text), len(mark) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(mark[:size])), 0)
