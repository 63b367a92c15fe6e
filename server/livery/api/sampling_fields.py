"""Fields that say which tokens are likelier, and what is told about those that were chosen."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from livery.api.body import Body
from livery.refusals import InvalidParameter

MOST_LOGPROBS = 20  # likeliest tokens at one place

TokenId = Annotated[int, Field(ge=0)]
Bias = Annotated[float, Field(ge=-100, le=100)]
BadWord = Annotated[str, Field(min_length=1, max_length=256)]
Likeliest = Annotated[int, Field(ge=0, le=MOST_LOGPROBS)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
KeptTokens = Annotated[int, Field(ge=-1, le=1 << 31)]  # of the prompt's last; -1: what leaves room for the answer


def check_kept(kept: int | None) -> None:
    """Raises InvalidParameter for a `truncate_prompt_tokens` that leaves nothing."""
    if kept == 0:
        raise InvalidParameter("truncate_prompt_tokens is 0: nothing would be read.", "truncate_prompt_tokens")


class SamplingFields(Body):
    """What both routes share of these. Ranges are OpenAI's; fields that OpenAI doesn't have are vLLM's."""

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)  # 0 keeps the best token alone
    top_k: int | None = Field(None, ge=-1, le=1 << 31)
    min_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)  # far below that logits divided by it overflow
    logit_bias: dict[str, Bias] | None = Field(None, max_length=1024)
    allowed_token_ids: list[TokenId] | None = Field(None, min_length=1, max_length=1024)
    bad_words: list[BadWord] | None = Field(None, max_length=64)
    prompt_logprobs: Likeliest | None = None
    truncate_prompt_tokens: KeptTokens | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None

    @property
    def biases(self) -> dict[int, float]:
        """`logit_bias` by token id. Raises InvalidParameter."""
        found = {}
        for key, bias in (self.logit_bias or {}).items():
            if not key.isascii() or not key.isdecimal() or len(key) > 10:
                raise InvalidParameter(
                    f"logit_bias: {key[:32]!r} is no token id; give ids as decimal numbers.", "logit_bias"
                )
            found[int(key)] = bias
        return found
