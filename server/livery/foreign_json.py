"""JSON from outside as values that all of the program can go on with: text that is text, not too deep.

JSON may spell half of a surrogate pair (`"\\ud83d"`), which is no text: it breaks tokenizers and writers alike.
Knows no field.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

MAX_DEPTH = 100
SHOWN_PARTS = 8
SHOWN_CHARACTERS = 300

# Where a value stands: its container's place and its key. Made a path only when there is something to say, because a
# long key with many values under it would be copied for each.
Place = tuple["Place", str | int] | None


class NotPlain(ValueError):
    """JSON that can't be gone on with.

    `path` has the keys that lead to what is wrong, none where that is all of it; `reason` goes behind its name.
    """

    def __init__(self, place: Place, reason: str) -> None:
        keys: list[str | int] = []
        while place is not None:
            place, key = place
            keys.append(key)
        self.path = tuple(keys[::-1])
        self.reason = reason
        super().__init__(f"{_words(self.path)} {reason}" if self.path else reason)


def parse_line(line: str) -> object:
    """What a line of JSON says. Raises NotPlain, whose words are the whole reason."""
    try:
        value: object = json.loads(line)
    except json.JSONDecodeError as error:
        raise NotPlain(None, f"not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise NotPlain(None, "not JSON that can be read: nested too deeply") from None
    except ValueError:  # Python reads no whole number of more digits than sys.get_int_max_str_digits()
        raise NotPlain(None, "has a whole number of more digits than can be read; write it as text") from None
    check_plain(value)
    return value


def check_plain(value: object, at: str = "") -> None:
    """Look through parsed JSON that stands at the dotted path `at`. Raises NotPlain."""
    waiting: list[tuple[object, Place, int]] = [(value, (None, at) if at else None, 0)]
    while waiting:
        item, place, depth = waiting.pop()
        if isinstance(item, str):
            _check_text(item, place)
        elif depth >= MAX_DEPTH:
            raise NotPlain(place, f"is nested deeper than {MAX_DEPTH} levels")
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
        raise NotPlain(
            place,
            f"contains half of a surrogate pair at character {error.start}, which is no text; give whole characters",
        ) from None


def _words(path: tuple[str | int, ...]) -> str:
    """As people write it: `messages[0].content`."""
    shown = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path[:SHOWN_PARTS])
    return f"`{shown.removeprefix('.')[:SHOWN_CHARACTERS]}`"
