"""Our sampling parameters as vLLM's, and its outputs as our deltas: token ids both ways. Imports vLLM.

What vLLM would apply otherwise than `SamplingParams` of the seam says is refused: nothing is left out in silence.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from vllm.exceptions import VLLMClientError
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
from vllm.sampling_params import SamplingParams as VllmParams

from livery.engine.base import CANARY, FinishReason, GenerationRequest, RequestRefused, TokenDelta, TokenLogprobs
from livery.engine.figures import RequestTimes
from livery.grammars import GrammarRefused, written

LEAST_TEMPERATURE = 0.01  # below it vLLM takes this one instead
NOTHING = -9999.0  # the log-probability of what can't be: JSON has no infinity
_BAD_WORDS = "_bad_words_token_ids"  # what vLLM makes of words is not what the request says, which has their tokens
_ENDS: Mapping[str, FinishReason] = {"stop": "stop", "length": "length", "abort": "abort"}


class Sampling:
    """Turns requests into vLLM's parameters for one model."""

    def __init__(self, eos_token_ids: Sequence[int], tokenizer_eos: int | None) -> None:
        """`tokenizer_eos` is what vLLM's grammars end with, which the model's own ends need not hold."""
        self._eos = list(eos_token_ids)
        self._grammar_ends = [] if tokenizer_eos is None else [tokenizer_eos]
        self._takes_words = hasattr(VllmParams(), _BAD_WORDS)

    def params(self, request: GenerationRequest) -> VllmParams:
        """What vLLM is told of a request. Raises RequestRefused."""
        sampling = request.sampling
        _check(request)
        if sampling.bad_words and not self._takes_words:
            raise RequestRefused("bad_words can't be told to this version of vLLM as tokens; leave them out")
        ends = [*sampling.stop_token_ids, *([] if sampling.ignore_eos else self._eos)]
        try:
            params = self._told(request, ends)
        except VLLMClientError as error:
            raise RequestRefused(str(error)) from None
        if sampling.bad_words:
            setattr(params, _BAD_WORDS, [list(word) for word in sampling.bad_words])
        return params

    def _told(self, request: GenerationRequest, ends: list[int]) -> VllmParams:
        """`ends` are told one by one: where vLLM looks for the model's own, and what it adds, is its own affair."""
        sampling = request.sampling
        scored = 0 if request.request_id.startswith(CANARY) else None
        return VllmParams(
            max_tokens=sampling.max_tokens,
            min_tokens=sampling.min_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            seed=None if sampling.seed is None else sampling.seed & 0x7FFF_FFFF_FFFF_FFFF,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            repetition_penalty=sampling.repetition_penalty,
            logit_bias=dict(sampling.logit_bias) or None,
            allowed_token_ids=list(sampling.allowed_token_ids) or None,
            stop_token_ids=ends + self._grammar_ends if sampling.grammar else ends,
            ignore_eos=True,
            logprobs=scored if sampling.logprobs is None else sampling.logprobs,
            prompt_logprobs=sampling.prompt_logprobs,
            structured_outputs=_structured(request),
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            skip_clone=True,
        )


def _check(request: GenerationRequest) -> None:
    sampling = request.sampling
    if 0 < sampling.temperature < LEAST_TEMPERATURE:
        raise RequestRefused(
            f"temperature is {sampling.temperature:g}, and vLLM takes none between 0 and {LEAST_TEMPERATURE:g}; ask "
            "for 0, which takes the likeliest token, or for more"
        )
    if sampling.grammar is not None and sampling.min_tokens:
        raise RequestRefused(
            "min_tokens beside a response format can't be held by vLLM: once the format is complete no token is left; "
            "leave min_tokens out"
        )
    if request.pooling is not None:
        raise RequestRefused(
            "vectors can't be asked of --engine vllm, which generates text; ask a server with --engine livery"
        )
    if request.adapter_start:
        raise RequestRefused(
            "vLLM applies an adapter to a whole prompt, and this one begins within it (activated LoRA); ask a server "
            "with --engine livery"
        )


def _structured(request: GenerationRequest) -> StructuredOutputsParams | None:
    """A grammar as vLLM takes it. Schemas go as Lark grammars of llguidance's, which alone can say the white space."""
    grammar = request.sampling.grammar
    if grammar is None:
        return None
    if grammar.kind == "regex":
        return StructuredOutputsParams(regex=grammar.source)
    try:
        text = written(grammar)
    except GrammarRefused as refused:
        raise RequestRefused(str(refused)) from None
    if grammar.kind == "json_schema":
        (part,) = json.loads(text)["grammars"]
        text = f"start: %json {json.dumps(part['json_schema'])}"
    return StructuredOutputsParams(grammar=text)


def delta_of(output: RequestOutput, request: GenerationRequest, first: bool) -> TokenDelta:
    """One of vLLM's outputs as a delta; `first`: none with tokens came before."""
    (answer,) = output.outputs
    tokens = list(answer.token_ids)
    reason = answer.finish_reason
    finish: FinishReason | None = None if reason is None else _ENDS.get(reason, "error")
    wanted = request.sampling.logprobs
    places = list(zip(answer.logprobs or (), tokens, strict=False))
    if request.request_id.startswith(CANARY) and not all(_is_number(place, token) for place, token in places):
        return failed(request.request_id, "the model's output for it is not a number")
    scored = request.sampling.prompt_logprobs
    of_prompt = (
        [] if scored is None else list(zip(output.prompt_logprobs or (), request.prompt_token_ids, strict=False))
    )
    of_prompt = of_prompt[request.sampling.prompt_logprobs_start :]  # vLLM always scores from the second token on
    return TokenDelta(
        request.request_id,
        tokens,
        finish,
        error="vLLM ended the request with an error; its log has the reason" if finish == "error" else None,
        cached_tokens=(output.num_cached_tokens or 0) if first and tokens else 0,
        logprobs=() if wanted is None else tuple(_told(place, token, wanted) for place, token in places),
        prompt_logprobs=tuple(_told(place, token, scored or 0) for place, token in of_prompt if place is not None),
        times=_times(output) if first and tokens else None,
    )


def failed(request_id: str, error: str, code: str = "") -> TokenDelta:
    """The end of a request that came to nothing."""
    return TokenDelta(request_id, [], "error", error=error, code=code)


def _is_number(place: Mapping[int, Any], token: int) -> bool:
    return math.isfinite(place[token].logprob)


def _told(place: Mapping[int, Any], token: int, wanted: int) -> TokenLogprobs:
    """`place` maps ids to their log-probability and rank: the token's, and those of the `wanted` likeliest."""
    ranked = sorted((entry.rank, other, entry.logprob) for other, entry in place.items() if entry.rank is not None)
    top = tuple((other, max(logprob, NOTHING)) for rank, other, logprob in ranked[:wanted] if rank <= wanted)
    own = place[token]
    return TokenLogprobs(max(own.logprob, NOTHING), own.rank or 0, top)


def _times(output: RequestOutput) -> RequestTimes | None:
    """What vLLM measured until the first token: clocks of one process, so differences are all that counts."""
    stats = output.metrics
    if stats is None or not stats.scheduled_ts:
        return None
    return RequestTimes(
        max(stats.scheduled_ts - stats.queued_ts, 0.0), 0.0, max(stats.first_token_ts - stats.scheduled_ts, 0.0)
    )
