"""What a client asks for, as plain facts: the model by name, prompts, and how to answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from livery.chat_template import Conversation
from livery.engine.base import Grammar
from livery.lease import ANYONE, Caller

ChatPrompt = Conversation  # for the chat template


@dataclass(frozen=True, slots=True)
class BareText:
    """A prompt as text, without the special tokens (such as BOS) that a model expects around it."""

    text: str


Prompt = ChatPrompt | BareText | str | list[int]


@dataclass(frozen=True, slots=True)
class Options:
    """How to answer. `n` answers for each prompt.

    What is None is taken from the adapter's profile (livery.profiles), and where that is silent from
    DEFAULT_SAMPLING. `max_tokens` None everywhere: `default_max_tokens` or what the context leaves, whichever is less.
    """

    max_tokens: int | None = None
    default_max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    n: int = 1
    grammar: Grammar | None = None  # what each answer must match
    grammar_param: str = "response_format"  # what the client calls that, for messages
    cache_salt: str = ""  # what is computed for a prompt is shared only with requests of the same salt


DEFAULT_SAMPLING: Mapping[str, float] = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}


@dataclass(frozen=True, slots=True)
class Job:
    """One request as a client put it: the model by name, prompts, options. `request_id` is unique."""

    model: str
    prompts: Sequence[Prompt]
    options: Options
    request_id: str
    prompt_param: str = "messages"  # what the client calls the prompt, for messages
    caller: Caller = ANYONE


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

    @property
    def texts(self) -> Sequence[str]:
        """The prompts where they are texts."""
        return [prompt if isinstance(prompt, str) else "" for prompt in self.prompts]
