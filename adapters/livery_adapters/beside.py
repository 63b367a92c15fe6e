"""What may lie beside an adapter's two files and says how it is to be used. None of it is part of the weights.

    found = compare(incoming.beside, base_text)        # what differs from the base's, as plain JSON values
    unused(found, profile)                             # sentences for people: what of it isn't used, and how to

A template and a tokenizer are only looked at here: they are used where a profile asks for them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from livery_adapters.profile import MAX_PROFILE_BYTES, PROFILE_NAME, AddedToken
from livery_adapters.vocabulary import TokenizerDiffers, added_tokens, content

TEMPLATE_NAME = "chat_template.jinja"
TOKENIZER_NAME = "tokenizer.json"
TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
MAX_TEMPLATE_CHARS = 64 << 10
MAX_TOKEN_CHARS = 256

# The most bytes of each.
BESIDE_LIMITS = {
    PROFILE_NAME: MAX_PROFILE_BYTES,
    TEMPLATE_NAME: 4 * MAX_TEMPLATE_CHARS,
    TOKENIZER_CONFIG_NAME: 8 << 20,
    TOKENIZER_NAME: 64 << 20,
}
BESIDE_NAMES = tuple(BESIDE_LIMITS)


def is_wanted(name: str, size: int | None) -> bool:
    """Whether a source should bring a file of so many bytes: of what is only looked at, nothing is over its limit."""
    return name not in BESIDE_LIMITS or name == PROFILE_NAME or (size or 0) <= BESIDE_LIMITS[name]


@dataclass(frozen=True, slots=True)
class BaseText:
    """The base's own tokenizer.json, chat template and token that ends a text, by name."""

    tokenizer: bytes
    chat_template: str | None
    eos_token: str | None


def compare(beside: Mapping[str, bytes], base: BaseText) -> dict[str, Any]:
    """What lies beside an adapter and how it differs from the base's.

    `chat_template`: its text, "" where it is the base's. `added_tokens`: those of its tokenizer that the base's
    doesn't have. `tokenizer`: why its tokenizer can't be used, where it can't. `eos_token`: what ends its texts, where
    that isn't what ends the base's. Blocks for a large tokenizer.
    """
    found: dict[str, Any] = {}
    ends = _eos_token(beside)
    if ends is not None and ends != base.eos_token:
        found["eos_token"] = ends
    template = _template(beside)
    if template is not None:
        found["chat_template"] = "" if template.strip() == (base.chat_template or "").strip() else template
    if TOKENIZER_NAME in beside:
        try:
            added = added_tokens(base.tokenizer, beside[TOKENIZER_NAME])
        except TokenizerDiffers as differs:
            found["tokenizer"] = str(differs)
        else:
            found["added_tokens"] = [token.to_json() for token in added]
    return found


def unused(found: Mapping[str, Any], profile: Mapping[str, object]) -> list[str]:
    """What lies beside an adapter and differs from the base's without being used, a sentence each."""
    said = []
    if found.get("chat_template") and "chat_template" not in profile:
        said.append(
            "its chat template differs from the base's and isn't used; to use it, add the adapter with --use-template "
            "or give its profile chat_template: adapter"
        )
    added = [AddedToken(**token).content for token in found.get("added_tokens", ())]
    if added and "added_tokens" not in profile:
        shown = ", ".join(added[:3]) + (", ..." if len(added) > 3 else "")
        said.append(
            f"its tokenizer adds {len(added)} tokens to the base's ({shown}) and isn't used; to use it, add the "
            "adapter with --use-tokenizer or give its profile tokenizer: adapter"
        )
    ends = found.get("eos_token")
    if ends and "eos_token" not in profile and ends not in cast(Sequence[object], profile.get("stop", ())):
        said.append(
            f"its texts end with {ends} and answers where the base's do, so that they may go on behind it; to end them "
            f"there, add the adapter with --use-tokenizer or give its profile eos_token: {json.dumps(ends)}"
        )
    if found.get("tokenizer"):
        said.append(f"its tokenizer isn't the base's with tokens added and can't be used: {found['tokenizer']}")
    return said


def _template(beside: Mapping[str, bytes]) -> str | None:
    """The chat template of a folder, as transformers looks for it. One that isn't short text is none."""
    if TEMPLATE_NAME in beside:
        text: object = beside[TEMPLATE_NAME].decode("utf-8", "replace")
    else:
        try:
            text = content(beside.get(TOKENIZER_CONFIG_NAME, b"{}")).get("chat_template")
        except TokenizerDiffers:
            return None
    if isinstance(text, list):  # several named ones
        named = [one for one in text if isinstance(one, dict) and one.get("name") == "default"]
        text = named[0].get("template") if named else None
    if not isinstance(text, str) or not 0 < len(text) <= MAX_TEMPLATE_CHARS or not _is_text(text):
        return None
    return text


def _eos_token(beside: Mapping[str, bytes]) -> str | None:
    """What a tokenizer's configuration names as the token that ends a text."""
    try:
        named = content(beside.get(TOKENIZER_CONFIG_NAME, b"{}")).get("eos_token")
    except TokenizerDiffers:
        return None
    text = named.get("content") if isinstance(named, dict) else named
    return text if isinstance(text, str) and 0 < len(text) <= MAX_TOKEN_CHARS and _is_text(text) else None


def _is_text(text: str) -> bool:
    """Whether it can be written down: JSON may hold halves of surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
