"""A tokenizer that an adapter brings, compared with the base's: nothing but tokens may have been added.

Everything else of a tokenizer.json (normaliser, splitting by regular expressions, merges, decoder) says how text is
read, and is partly code. An adapter over a base was trained on the base's vocabulary, so what it can have of its own is
tokens, and those are plain data: its file is compared, and never loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from livery_adapters.profile import MAX_ADDED_TOKENS, AddedToken, ProfileInvalid, read_profile

_READING = ("normalizer", "pre_tokenizer", "post_processor", "decoder")


class TokenizerDiffers(ValueError):
    """A tokenizer that isn't the base's with tokens added; the message says where it differs."""


def added_tokens(base: bytes, own: bytes) -> tuple[AddedToken, ...]:
    """The tokens that `own` adds to `base`, both tokenizer.json, by id. Raises TokenizerDiffers."""
    if own == base:
        return ()
    theirs, ours = content(base), content(own)
    for part in _READING:
        if _plain(theirs.get(part)) != _plain(ours.get(part)):
            raise TokenizerDiffers(f"{part} differs")
    _compare_models(_mapping(theirs.get("model")), _mapping(ours.get("model")))
    known, mine = _added(theirs), _added(ours)
    lost = next(
        (token for token in known if token not in mine or mine[token]["content"] != known[token]["content"]), None
    )
    if lost is not None:
        raise TokenizerDiffers(f"its token {lost} isn't {known[lost]['content']!r}")
    fresh = [mine[token] for token in sorted(mine) if token not in known]
    if len(fresh) > MAX_ADDED_TOKENS:
        raise TokenizerDiffers(f"it adds {len(fresh)} tokens; at most {MAX_ADDED_TOKENS}")
    try:
        return read_profile({"added_tokens": fresh}).added_tokens
    except ProfileInvalid as invalid:
        raise TokenizerDiffers(f"its {invalid}") from None


def content(data: bytes) -> dict[str, Any]:
    """The object in a JSON file. Raises TokenizerDiffers."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise TokenizerDiffers("it is not JSON") from None
    return _mapping(value)


def _compare_models(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    for part in sorted({*theirs, *ours} - {"merges"}):
        if _plain(theirs.get(part)) != _plain(ours.get(part)):
            raise TokenizerDiffers(f"model.{part} differs")
    if _merges(theirs) != _merges(ours):
        raise TokenizerDiffers("model.merges differs")


def _merges(model: Mapping[str, Any]) -> list[object]:
    """Pairs, which older files write as one text with a space."""
    merges = model.get("merges")
    return [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in merges] if merges else []


def _added(tokenizer: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """Added tokens by id."""
    found = tokenizer.get("added_tokens") or []
    try:
        return {token["id"]: dict(token) for token in found if isinstance(token["content"], str)}
    except (TypeError, LookupError, ValueError):
        raise TokenizerDiffers("its added_tokens aren't a list of tokens with id and content") from None


def _plain(value: object) -> object:
    """Without what says nothing: libraries of different versions write different defaults."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items() if item not in (None, False)}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _mapping(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TokenizerDiffers("it is no tokenizer.json")
    return value
