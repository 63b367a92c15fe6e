"""Log-probabilities as each route words them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from livery.answer_text import Likelihood, TokenEntry
from livery.jobs import Options

Json = dict[str, Any]


def chat_logprobs(entries: Sequence[TokenEntry], options: Options) -> Json | None:
    """For a choice of a chat; None where there are none to tell."""
    if options.logprobs is None or not entries:
        return None
    content = []
    for entry in entries:
        top = [_chat_token(one, options) for one in entry.top] if options.logprobs else []
        content.append({**_chat_token(entry.own, options), "top_logprobs": top})
    return {"content": content, "refusal": None}


def text_logprobs(entries: Sequence[TokenEntry], options: Options) -> Json | None:
    """For a choice of a completion; the first token of an echoed prompt has nothing before it, and null here."""
    if options.logprobs is None or not entries:
        return None
    tops: list[dict[str, float | None] | None] = []
    for entry in entries:
        top: dict[str, float | None] = {}
        for one in entry.top:
            top.setdefault(_text_token(one, options), one.logprob)  # of pieces that look alike the likelier
        tops.append(top or None)
    return {
        "tokens": [_text_token(entry.own, options) for entry in entries],
        "token_logprobs": [entry.own.logprob for entry in entries],
        "top_logprobs": tops,
        "text_offset": [entry.offset for entry in entries],
    }


def prompt_logprobs(scores: Sequence[TokenEntry]) -> list[Json | None]:
    """As vLLM words them: by token id, for each token of a prompt but the first."""
    return [
        {
            str(one.token_id): {"logprob": one.logprob, "rank": one.rank, "decoded_token": _words(one.raw, "")}
            for one in entry.top
        }
        or None
        for entry in scores
    ]


def token_ids(entries: Sequence[TokenEntry]) -> list[int]:
    """Those of the answer."""
    return [entry.own.token_id for entry in entries if not entry.of_prompt]


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
