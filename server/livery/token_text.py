"""What single tokens stand for: the bytes of each, which may be a piece of a character."""

from __future__ import annotations

import json
import re
from typing import Any

from tokenizers import Tokenizer as FastTokenizer

REMEMBERED = 1 << 14  # tokens whose bytes are kept
BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenBytes:
    """Read off a tokenizer's decoder, step by step, but for those that only trim the ends of a whole text."""

    def __init__(self, tokenizer: FastTokenizer) -> None:
        self._tokenizer = tokenizer
        self._added = tokenizer.get_added_tokens_decoder()
        decoder: dict[str, Any] = json.loads(tokenizer.decoder.__getstate__()) if tokenizer.decoder else {}
        self._steps: list[dict[str, Any]] = decoder.get("decoders", [decoder])
        self._known: dict[int, bytes] = {}  # no cache around a method of its own: that would be a cycle of references

    def of(self, token_id: int) -> bytes:
        """The bytes of one token; none for an id that the tokenizer doesn't know."""
        if token_id not in self._known:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[token_id] = self._read(token_id)
        return self._known[token_id]

    def _read(self, token_id: int) -> bytes:
        if token_id in self._added:
            return self._added[token_id].content.encode()
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        for step in self._steps:
            kind = step.get("type")
            if kind == "ByteLevel" and all(character in BYTE_OF for character in token):
                return bytes(BYTE_OF[character] for character in token)
            if kind == "ByteFallback" and (byte := BYTE.fullmatch(token)):
                return bytes([int(byte[1], 16)])
            if kind == "Metaspace":
                token = token.replace(step["replacement"], " ")
            elif kind == "Replace" and "String" in step["pattern"]:
                token = token.replace(step["pattern"]["String"], step["content"])
        return token.encode()


def _byte_of() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte: itself where it is printable, else the next ones from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    found = {chr(byte): byte for byte in printable}
    return found | {chr(256 + place): byte for place, byte in enumerate(others)}


BYTE_OF = _byte_of()
