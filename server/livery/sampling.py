"""From what a request says, its adapter's profile included, to the engine's sampling parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from livery.engine.base import EngineInfo, SamplingParams
from livery.jobs import DEFAULT_SAMPLING, Job, Options
from livery.prompts import check_ids
from livery.refusals import ContextLengthExceeded, InvalidParameter

# Log-probabilities in what answers one request: of prompts, which are told at once, and of several answers' tokens.
MOST_TOLD = 200_000
MOST_ANSWERED = 1 << 19


def stopped_by(job: Job, ending: str | None, special_tokens: Callable[[Sequence[str]], Iterable[int]]) -> Job:
    """The request with the special tokens that end its answers, by id: of its stop strings, which no text shows, so
    that no search would find them, and `ending`, which ends answers as the base's own does.

    `special_tokens` says which of some texts are special tokens.
    """
    ends = (ending,) if ending and not job.options.ignore_eos else ()
    own = special_tokens((*job.options.stop, *ends))
    stops = tuple(dict.fromkeys((*job.options.stop_token_ids, *own)))
    return replace(job, options=replace(job.options, stop_token_ids=stops))


def sampling_params(
    prompt_tokens: int,
    copy: int,
    job: Job,
    info: EngineInfo,
    bad_words: tuple[tuple[int, ...], ...] = (),
    added_tokens: int = 0,
) -> SamplingParams:
    """The engine's view of the options for the answer number `copy` to a prompt of so many tokens.

    The prompt is scored with its first answer alone: the others' scores are the same.

    `bad_words` are those of the options as tokens, `added_tokens` ids that the adapter has beyond the base's.

    Raises InvalidParameter or ContextLengthExceeded when it can't fit or can't be met.
    """
    options = job.options
    logprobs = options.logprobs
    if logprobs is None and options.answers_made > options.n:
        logprobs = 0  # the best answers are to be found
    max_tokens = _max_tokens(prompt_tokens, job, info.max_model_len, logprobs)
    _check_tokens(options, info, bad_words, added_tokens)
    prompt_logprobs = _told_of_prompts(prompt_tokens, job)
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=_chosen(options, "temperature"),
        top_p=_chosen(options, "top_p"),
        top_k=max(0, int(_chosen(options, "top_k"))),  # -1 and 0 both mean off
        min_p=_chosen(options, "min_p"),
        presence_penalty=_chosen(options, "presence_penalty"),
        frequency_penalty=_chosen(options, "frequency_penalty"),
        repetition_penalty=_chosen(options, "repetition_penalty"),
        logit_bias=dict(options.logit_bias),
        allowed_token_ids=options.allowed_token_ids,
        bad_words=bad_words,
        logprobs=logprobs,
        prompt_logprobs=None if copy else prompt_logprobs,
        # Answers to one prompt differ from each other and stay reproducible.
        seed=None if options.seed is None else options.seed + copy,
        min_tokens=options.min_tokens,
        stop_token_ids=options.stop_token_ids,
        ignore_eos=options.ignore_eos,
        grammar=options.grammar,
    )


def _chosen(options: Options, name: str) -> float:
    """What the request or the profile says, or else everybody's default."""
    given: float | None = getattr(options, name)
    return float(DEFAULT_SAMPLING[name] if given is None else given)


def _max_tokens(prompt_tokens: int, job: Job, limit: int, logprobs: int | None) -> int:
    """Tokens that the answer may have, of a context of `limit`, where so many likeliest are told beside each."""
    options, room = job.options, limit - prompt_tokens
    if room < 1 or (options.max_tokens or 0) > room:
        raise ContextLengthExceeded(limit, prompt_tokens, options.max_tokens, job.prompt_param)
    most = options.max_tokens
    if most is None:
        most = int(min(options.default_max_tokens or room, room, _most_told(job, logprobs)))
    elif most > _most_told(job, logprobs):
        raise _too_much_told(job, most, logprobs)
    most = max(1, most)  # with 0 the prompt alone is wanted, and nobody sees the token
    if options.min_tokens > most:
        raise InvalidParameter(
            f"min_tokens is {options.min_tokens} and the answer may have at most {most}.", "min_tokens"
        )
    return most


def _check_tokens(
    options: Options, info: EngineInfo, bad_words: tuple[tuple[int, ...], ...], added_tokens: int
) -> None:
    """Whether every id has a logit, and the answer a token it may begin with."""
    vocab_size = info.vocab_size + added_tokens
    check_ids(options.stop_token_ids, vocab_size, "stop_token_ids")
    check_ids(options.logit_bias, vocab_size, "logit_bias")
    check_ids(options.allowed_token_ids, vocab_size, "allowed_token_ids")
    stops = {*options.stop_token_ids, *info.eos_token_ids}
    if options.min_tokens and options.allowed_token_ids and stops.issuperset(options.allowed_token_ids):
        raise InvalidParameter(
            f"All of allowed_token_ids end the answer, and min_tokens is {options.min_tokens}.", "allowed_token_ids"
        )
    banned = {word[0] for word in bad_words if len(word) == 1}
    if options.min_tokens:
        banned |= stops
    if options.allowed_token_ids and banned.issuperset(options.allowed_token_ids):
        raise InvalidParameter(
            "bad_words and min_tokens leave none of allowed_token_ids to begin the answer with; leave one out.",
            "allowed_token_ids",
        )


def _most_told(job: Job, logprobs: int | None) -> float:
    """Tokens of each answer whose log-probabilities can be told: of a single answer all of them."""
    answers = job.options.answers_made * len(job.prompts)
    return math.inf if logprobs is None or answers == 1 else MOST_ANSWERED // (answers * (1 + logprobs))


def _too_much_told(job: Job, max_tokens: int, logprobs: int | None) -> InvalidParameter:
    answers, each = job.options.answers_made * len(job.prompts), 1 + (logprobs or 0)
    return InvalidParameter(
        f"{answers} answers of up to {max_tokens} tokens with {each} log-probabilities each come to "
        f"{answers * max_tokens * each}, and several answers in one may have at most {MOST_ANSWERED}: ask for fewer of "
        "the likeliest tokens, for fewer or shorter answers, or send the prompts one by one.",
        "best_of" if job.options.logprobs is None else "logprobs",
    )


def _told_of_prompts(prompt_tokens: int, job: Job) -> int | None:
    """How many likeliest tokens are told beside each of the prompt's; None for none at all."""
    options = job.options
    echoed = options.logprobs if options.echo else None
    scored = [count for count in (options.prompt_logprobs, echoed) if count is not None]
    told = sum((count + 1) * prompt_tokens for count in scored) * options.answers_made * len(job.prompts)
    if told > MOST_TOLD:
        raise InvalidParameter(
            f"{told} log-probabilities of prompts would be told, at most {MOST_TOLD} are: ask for fewer of the "
            "likeliest tokens, for fewer answers, or send fewer or shorter prompts.",
            "prompt_logprobs" if options.prompt_logprobs is not None else "logprobs",
        )
    return max(scored, default=None)
