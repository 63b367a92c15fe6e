"""What a client asks for, as plain facts: the model by name, prompts, and how to answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from livery.chat_template import Conversation
from livery.engine.base import Grammar
from livery.lease import ANYONE, Caller
from livery.tools.use import ToolUse

ChatPrompt = Conversation  # for the chat template


@dataclass(frozen=True, slots=True)
class BareText:
    """A prompt as text, without the special tokens (such as BOS) that a model expects around it."""

    text: str


Prompt = ChatPrompt | BareText | str | list[int]


@dataclass(frozen=True, slots=True)
class Options:
    """How to answer. `n` answers for each prompt, the likeliest of `best_of`.

    What is None is taken from the adapter's profile (livery.profiles), and where that is silent from
    DEFAULT_SAMPLING. `max_tokens` None everywhere: `default_max_tokens`, what the context leaves, or what can be told
    of several answers (livery.sampling), whichever is least; 0: the prompt is read, and nothing answered.
    Log-probabilities: `logprobs` of the answer's tokens (and with `echo` of the prompt's), with so many of the
    likeliest; `prompt_logprobs` of the prompt's tokens apart from the text.
    """

    max_tokens: int | None = None
    default_max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    allowed_token_ids: tuple[int, ...] = ()
    bad_words: tuple[str, ...] = ()
    seed: int | None = None
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    include_stop: bool = False  # the stop string or token that ends an answer is part of its text
    skip_special_tokens: bool = True
    truncate_prompt_tokens: int | None = None  # so many of the prompt's last tokens are read; -1: what fits
    n: int = 1
    best_of: int | None = None  # answers made for each prompt
    echo: bool = False  # the text begins with the prompt's
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    token_ids: bool = False  # the client wants them as well
    named_by_id: bool = False  # in log-probabilities tokens are told by id, not as text
    grammar: Grammar | None = None  # what each answer must match
    grammar_param: str = "response_format"  # what the client calls that, for messages
    free_form: bool = False  # the client asks for plain text: a format of the adapter's profile doesn't apply
    tools: ToolUse | None = None  # what the answer may or must call
    include_reasoning: bool = True
    cache_salt: str = ""  # what is computed for a prompt is shared only with requests of the same salt

    @property
    def answers_made(self) -> int:
        """For each prompt."""
        return self.best_of or self.n

    @property
    def scores_prompt(self) -> bool:
        """Whether the prompt's own tokens get log-probabilities."""
        return self.prompt_logprobs is not None or (self.echo and self.logprobs is not None)


DEFAULT_SAMPLING: Mapping[str, float] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
}


@dataclass(frozen=True, slots=True)
class Job:
    """One request as a client put it: the model by name, prompts, options. `request_id` is unique."""

    model: str
    prompts: Sequence[Prompt]
    options: Options
    request_id: str
    prompt_param: str = "messages"  # what the client calls the prompt, for messages
    caller: Caller = ANYONE
    until: float = math.inf  # when it has to be done, by time.perf_counter()


@dataclass(frozen=True, slots=True)
class PoolingJob:
    """A request for a vector per prompt as a client put it, or, with "score", for a number per pair of prompts.

    `kind` None is the adapter's own way to pool, else the last token. Of an embedding the first `dimensions` numbers
    (None: all) are wanted, scaled to length 1 with `normalize`.
    """

    model: str
    purpose: Literal["embed", "classify", "score"]
    prompts: Sequence[str | list[int]]
    request_id: str
    prompt_param: str = "input"
    pairs: Sequence[tuple[int, int]] = ()  # places of prompts, both of them texts
    kind: Literal["last", "mean"] | None = None
    dimensions: int | None = None
    normalize: bool = True
    cache_salt: str = ""
    caller: Caller = ANYONE
    until: float = math.inf  # when it has to be done, by time.perf_counter()

    @property
    def texts(self) -> Sequence[str]:
        """The prompts where they are texts."""
        return [prompt if isinstance(prompt, str) else "" for prompt in self.prompts]
