"""JSON from strangers: no duplicate keys, no NaN, no deep nesting, no giant numbers, no broken text."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import NoReturn

from livery_adapters.refusal import AdapterRefused

MAX_DIGITS = 18  # every integer fits 64 bits

_KINDS = {list: "a list", str: "a text", bool: "a truth value", type(None): "null"}


class _Unacceptable(Exception):
    """Valid or not, this JSON is not taken; the text completes 'the file ...'."""


def parse_object(data: bytes, what: str, *, code: str, max_depth: int = 8) -> dict[str, object]:
    """Parse one JSON object. `what` names the file in messages. Raises AdapterRefused with `code`."""
    try:
        value = _parse(data)
        if not isinstance(value, dict):
            raise _Unacceptable(f"is {_KINDS.get(type(value), 'a number')}, not a JSON object")
        _walk(value, max_depth)
    except _Unacceptable as error:
        raise AdapterRefused(code, f"{what} {error}; save the adapter again with save_pretrained") from None
    return value


def _parse(data: bytes) -> object:
    if data.startswith(b"\xef\xbb\xbf"):
        raise _Unacceptable("begins with a byte order mark, which JSON must not")
    try:
        value: object = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_real,
            parse_constant=_constant,
        )
    except UnicodeDecodeError as error:
        raise _Unacceptable(f"is not UTF-8 text (byte {data[error.start]:#04x} at {error.start})") from None
    except json.JSONDecodeError as error:
        found = error.doc[error.pos : error.pos + 20]
        raise _Unacceptable(f"is not valid JSON (line {error.lineno}: {error.msg} at {found!r})") from None
    except RecursionError:
        raise _Unacceptable("is nested too deeply") from None
    return value


def _object(items: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(items)
    if len(result) != len(items):
        key = Counter(name for name, _ in items).most_common(1)[0][0]
        raise _Unacceptable(f"holds the same key twice ({key[:80]!r})")
    return result


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise _Unacceptable(f"holds an integer of {len(text)} digits")
    return int(text)


def _real(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _Unacceptable("holds a number that is too large")
    return value


def _constant(text: str) -> NoReturn:
    raise _Unacceptable(f"holds {text}, which is not JSON")


def _walk(value: dict[str, object], max_depth: int) -> None:
    """Level by level, not recursively: check depth and that every string can be written as UTF-8."""
    level: list[object] = [value]
    for _ in range(max_depth):
        below: list[object] = []
        for node in level:
            if isinstance(node, dict):
                below += [*node.keys(), *node.values()]
            elif isinstance(node, list):
                below += node
            elif isinstance(node, str) and not node.isascii() and any("\ud800" <= char <= "\udfff" for char in node):
                raise _Unacceptable("holds half a surrogate pair in a string")
        if not below:
            return
        level = below
    raise _Unacceptable(f"is nested deeper than {max_depth} levels")
