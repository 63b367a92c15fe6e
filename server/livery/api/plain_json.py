"""What any JSON body must be before its fields are looked at: not too many parts, not too deep, text that is text.

JSON may spell half of a surrogate pair (`"\\ud83d"`), which is no text: it breaks tokenizers and writers alike.
Knows no field and no route.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from livery.refusals import InvalidParameter

MAX_DEPTH = 100
MAX_PARTS = 1 << 16  # lists, objects and fields: parsing and validating hold the interpreter's lock all the while
PART_SIGNS = (b"[", b"{", b":")
# A string to its end, or to the end of all: where it didn't match, each quote in it would be tried again.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?+', re.DOTALL)
SHOWN_PARTS = 8
SHOWN_CHARACTERS = 300

# Where a value stands: its container's place and its key. Put into words only when there is something to say,
# because a long key with many values under it would be copied for each.
Place = tuple["Place", str | int] | None


def check_count(content: bytes, param: str | None = None) -> None:
    """Count the parts of JSON that isn't parsed yet. Raises InvalidParameter above MAX_PARTS."""
    if _parts(content) > MAX_PARTS and (parts := _parts(_STRING.sub(b"", content))) > MAX_PARTS:
        raise InvalidParameter(
            f"{param or 'The body'} has {parts} lists, objects and fields; at most {MAX_PARTS} are read.", param
        )


def check_plain(value: object, at: str = "") -> None:
    """Look through parsed JSON that stands at the dotted path `at`. Raises InvalidParameter."""
    waiting: list[tuple[object, Place, int]] = [(value, (None, at) if at else None, 0)]
    while waiting:
        item, place, depth = waiting.pop()
        if isinstance(item, str):
            _check_text(item, place)
        elif depth >= MAX_DEPTH:
            param = _words(place)
            raise InvalidParameter(f"{param or 'The body'} is nested deeper than {MAX_DEPTH} levels.", param)
        else:
            waiting += [(inner, (place, key), depth + 1) for key, inner in _inside(item, place)]


def _parts(content: bytes) -> int:
    return sum(map(content.count, PART_SIGNS))


def _inside(item: object, place: Place) -> Iterator[tuple[str | int, object]]:
    """What a container holds and has to be looked at in turn."""
    if isinstance(item, dict):
        for key in item:
            _check_text(key, place)
    pairs = item.items() if isinstance(item, dict) else enumerate(item) if isinstance(item, list) else ()
    return ((key, inner) for key, inner in pairs if isinstance(inner, str | list | dict))


def _check_text(text: str, place: Place) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        param = _words(place)
        raise InvalidParameter(
            f"{param or 'The body'} contains half of a surrogate pair at character {error.start}, which is no text; "
            "send whole characters.",
            param,
        ) from None


def _words(place: Place) -> str | None:
    """The dotted path, cut where it gets long; None for the body itself."""
    parts: list[str] = []
    while place is not None:
        place, key = place
        parts.append(str(key))
    return ".".join(parts[::-1][:SHOWN_PARTS])[:SHOWN_CHARACTERS] or None
