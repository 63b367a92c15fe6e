"""Log-probabilities as each route words them.

Those of an answer that isn't streamed become JSON token by token, as they come: at its end they would take seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import orjson
from orjson import Fragment

from livery.answer_text import Likelihood, TokenEntry
from livery.jobs import Options

Json = dict[str, Any]


class TextEntry(NamedTuple):
    """A token of a completion; `top` are the likeliest there and how likely they are, as they are or as JSON."""

    token: str
    logprob: float | None
    top: dict[str, float | None] | Fragment | None
    offset: int


def chat_logprobs(entries: Sequence[TokenEntry], options: Options) -> Json | None:
    """For a piece of a chat's choice; None where there are none to tell."""
    if options.logprobs is None or not entries:
        return None
    return chat_content([_chat_entry(entry, options) for entry in entries])


def chat_content(told: Sequence[object]) -> Json:
    """For a choice of a chat, of tokens as they are told."""
    return {"content": told, "refusal": None}


def chat_token(entry: TokenEntry, options: Options) -> Fragment:
    """One token of a chat's whole choice, as JSON."""
    return Fragment(orjson.dumps(_chat_entry(entry, options)))


def text_logprobs(entries: Sequence[TokenEntry], options: Options) -> Json | None:
    """For a piece of a completion's choice."""
    if options.logprobs is None or not entries:
        return None
    return text_columns([_text_entry(entry, options) for entry in entries])


def text_columns(told: Sequence[TextEntry]) -> Json:
    """For a choice of a completion, of tokens as they are told."""
    tokens, values, tops, offsets = zip(*told, strict=True)
    return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}


def text_token(entry: TokenEntry, options: Options) -> TextEntry:
    """One token of a completion's whole choice, the likeliest beside it as JSON."""
    told = _text_entry(entry, options)
    return told if told.top is None else told._replace(top=Fragment(orjson.dumps(told.top)))


def prompt_score(entry: TokenEntry) -> Fragment | None:
    """As vLLM words it, as JSON: by token id, for each token of a prompt but the first."""
    told = {
        str(one.token_id): {"logprob": one.logprob, "rank": one.rank, "decoded_token": _words(one.raw, "")}
        for one in entry.top
    }
    return Fragment(orjson.dumps(told)) if told else None


def token_ids(entries: Sequence[TokenEntry]) -> list[int]:
    """Those of the answer."""
    return [entry.own.token_id for entry in entries if not entry.of_prompt]


def _chat_entry(entry: TokenEntry, options: Options) -> Json:
    top = [_chat_token(one, options) for one in entry.top] if options.logprobs else []
    return {**_chat_token(entry.own, options), "top_logprobs": top}


def _text_entry(entry: TokenEntry, options: Options) -> TextEntry:
    """The first token of an echoed prompt has nothing before it, and null here."""
    top: dict[str, float | None] = {}
    for one in entry.top:
        top.setdefault(_text_token(one, options), one.logprob)  # of pieces that look alike the likelier
    return TextEntry(_text_token(entry.own, options), entry.own.logprob, top or None, entry.offset)


def _chat_token(one: Likelihood, options: Options) -> Json:
    token = f"token_id:{one.token_id}" if options.named_by_id else _words(one.raw, "")
    return {"token": token, "logprob": one.logprob, "bytes": list(one.raw)}


def _text_token(one: Likelihood, options: Options) -> str:
    return f"token_id:{one.token_id}" if options.named_by_id else _words(one.raw, "bytes:")


def _words(raw: bytes, prefix: str) -> str:
    """The text of a token, or its bytes spelled out as OpenAI's routes do where it is no whole characters."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return prefix + "".join(f"\\x{byte:02x}" for byte in raw)
