"""What any JSON body must be before its fields are looked at: not too deep, and text that can be encoded.

JSON may spell half of a surrogate pair (`"\\ud83d"`), which is no text: it breaks tokenizers and writers alike.
Knows no field and no route.
"""

from __future__ import annotations

from collections.abc import Iterator

from livery.refusals import InvalidParameter

MAX_DEPTH = 100
SHOWN_PARTS = 8
SHOWN_CHARACTERS = 300

# Where a value stands: its container's place and its key. Put into words only when there is something to say,
# because a long key with many values under it would be copied for each.
Place = tuple["Place", str | int] | None


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
