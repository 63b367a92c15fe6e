"""Variants computed by a running server, through its public API and with its key."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from livery.evaluation.greedy import fields, greedy
from livery.evaluation.scorer import Likelihood, QuestionRefused, Variant, VariantFailed, first_of
from livery.evaluation.subjects import Message, SubjectUnusable
from livery_adapters.profile import Bounds

AT_ONCE = 32  # requests under way: a server has room for others as well
TRIES = 8  # where it has no room for now
READ_S = 600.0
_BYTES = re.compile(r"(\\x[0-9a-f]{2})+")  # how a token is told that is no whole characters
_BUSY = (429, 503)


class ServerUnable(Exception):
    """The server can't be used for evaluations; the message says what it said, and the remedy."""


class ServerScorer:
    """A Scorer over HTTP: `/tokenize`, and `/v1/completions` of token ids with `prompt_logprobs`, which vLLM has too.

    `models` are the names under which the server knows the variants, by label; versions are pinned in them, so that
    what is activated meanwhile changes nothing.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        models: Mapping[str, str],
        base: str,
        longest: int,
        bounds: Mapping[str, Bounds] | None = None,
    ) -> None:
        """`base` is what the server calls its base; `longest` the tokens that it takes; `bounds` those of profiles by
        their variants' labels, as far as the server tells them.
        """
        self._client = client
        self._models = models
        self._base = base
        self._longest = longest
        self._bounds = bounds or {}
        self._room = asyncio.Semaphore(AT_ONCE)
        self._info: dict[str, Any] | None = None  # of its tokenizer

    @property
    def longest(self) -> int:
        return self._longest - 1  # an answer needs room for a token, also where none is asked for

    async def beginning(self) -> list[int]:
        whole = await self._tokens({"model": self._base, "prompt": "a", "add_special_tokens": True})
        bare = await self._tokens({"model": self._base, "prompt": "a", "add_special_tokens": False})
        return whole[: whole.index(bare[0])] if bare and bare[0] in whole else []

    async def first_token(self) -> int:
        return await first_of(self)

    async def template(self) -> tuple[str | None, Mapping[str, str]]:
        if self._info is None:
            answer = await self._ask("GET", "/tokenizer_info")
            if not answer.is_success:
                raise ServerUnable(f"the server says to /tokenizer_info: {_message(answer)}")
            self._info = answer.json()
        named = {name: text for name, text in self._info.items() if name.endswith("_token") and isinstance(text, str)}
        return self._info.get("chat_template"), named

    async def encode(self, text: str) -> list[int]:
        return await self._tokens({"model": self._base, "prompt": text, "add_special_tokens": False})

    async def chat(self, variant: Variant, messages: Sequence[Message]) -> list[int]:
        try:
            return await self._tokens({"model": self._models[variant.label], "messages": [dict(m) for m in messages]})
        except SubjectUnusable as unusable:
            raise QuestionRefused(str(unusable)) from None

    async def likelihood(self, variant: Variant, tokens: Sequence[int], start: int) -> Likelihood:
        asked = {"prompt": list(tokens), "max_tokens": 0, "prompt_logprobs": 0}
        choice = await self._completed(variant, asked)
        scores = choice.get("prompt_logprobs") or []
        found = [one[str(token)] for token, one in zip(tokens[start:], scores[start:], strict=False) if one is not None]
        if len(found) != len(tokens) - start:
            raise VariantFailed(f"the server told {len(found)} log-probabilities of {len(tokens) - start} tokens")
        nbytes = sum(_nbytes(one["decoded_token"]) for one in found)
        return Likelihood([one["logprob"] for one in found], all(one["rank"] == 1 for one in found), nbytes)

    async def answer(self, variant: Variant, tokens: Sequence[int], most: int, stops: Sequence[str]) -> str:
        asked = {"prompt": list(tokens), **fields(greedy(self.bounds(variant), most, stops))}
        return str((await self._completed(variant, asked, QuestionRefused))["text"])

    def bounds(self, variant: Variant) -> Bounds:
        return self._bounds.get(variant.label, Bounds())

    # -- inside --------------------------------------------------------------------------------------

    async def _tokens(self, body: Mapping[str, Any]) -> list[int]:
        """Raises SubjectUnusable, ServerUnable."""
        answer = await self._ask("POST", "/tokenize", body)
        if answer.status_code == httpx.codes.BAD_REQUEST:
            raise SubjectUnusable(f"the server can't read a prompt: {_message(answer)}")
        if not answer.is_success:
            raise ServerUnable(f"the server says to /tokenize: {_message(answer)}")
        found = answer.json().get("tokens")
        if not isinstance(found, list):
            raise SubjectUnusable(
                "the words that its owner puts around messages aren't told to this key; evaluate with the owner's key, "
                "or with --plain"
            )
        return found

    async def _completed(
        self, variant: Variant, asked: Mapping[str, Any], refused: type[VariantFailed] = VariantFailed
    ) -> dict[str, Any]:
        """Raises `refused` for a request that the server doesn't take, VariantFailed where it fails."""
        answer = await self._ask("POST", "/v1/completions", {"model": self._models[variant.label], **asked})
        if answer.status_code == httpx.codes.BAD_REQUEST:
            raise refused(_message(answer))
        if not answer.is_success:
            raise VariantFailed(_message(answer))
        choice: dict[str, Any] = answer.json()["choices"][0]
        return choice

    async def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        """Waits where the server has no room, as long as it says. Raises ServerUnable."""
        for attempt in range(TRIES):
            async with self._room:
                try:
                    answer = await self._client.request(method, path, json=body, timeout=READ_S)
                except httpx.HTTPError as error:
                    raise ServerUnable(
                        f"no answer from {self._client.base_url} ({error or type(error).__name__}); is `livery serve` "
                        "still running there?"
                    ) from None
            if answer.status_code not in _BUSY or attempt == TRIES - 1:
                return answer
            await asyncio.sleep(_wait(answer, attempt))
        raise AssertionError("unreachable")


def _wait(answer: httpx.Response, attempt: int) -> float:
    """Seconds until it may be asked again."""
    told = answer.headers.get("retry-after", "")
    return min(float(told), 60.0) if told.isdecimal() else float(2**attempt)


def _message(answer: httpx.Response) -> str:
    try:
        match answer.json():
            case {"error": {"message": str(message)}}:
                return message
    except ValueError:
        pass
    return f"status {answer.status_code}"


def _nbytes(token: str) -> int:
    return len(token) // 4 if _BYTES.fullmatch(token) else len(token.encode())
