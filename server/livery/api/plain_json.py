"""What any JSON body must be before its fields are looked at: not too many parts, not too deep, text that is text.

Knows no field and no route.
"""

from __future__ import annotations

import re

from livery import foreign_json
from livery.foreign_json import SHOWN_CHARACTERS, SHOWN_PARTS, NotPlain
from livery.refusals import InvalidParameter

MAX_PARTS = 1 << 16  # lists, objects and fields: parsing and validating hold the interpreter's lock all the while
PART_SIGNS = (b"[", b"{", b":")
# A string to its end, or to the end of all: where it didn't match, each quote in it would be tried again.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?+', re.DOTALL)


def check_count(content: bytes, param: str | None = None) -> None:
    """Count the parts of JSON that isn't parsed yet. Raises InvalidParameter above MAX_PARTS."""
    if _parts(content) > MAX_PARTS and (parts := _parts(_STRING.sub(b"", content))) > MAX_PARTS:
        raise InvalidParameter(
            f"{param or 'The body'} has {parts} lists, objects and fields; at most {MAX_PARTS} are read.", param
        )


def check_plain(value: object, at: str = "") -> None:
    """Look through parsed JSON that stands at the dotted path `at`. Raises InvalidParameter."""
    try:
        foreign_json.check_plain(value, at)
    except NotPlain as wrong:
        param = ".".join(str(key) for key in wrong.path[:SHOWN_PARTS])[:SHOWN_CHARACTERS] or None
        raise InvalidParameter(f"{param or 'The body'} {wrong.reason}.", param) from None


def _parts(content: bytes) -> int:
    return sum(map(content.count, PART_SIGNS))
