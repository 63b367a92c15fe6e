"""What is asked of whoever computes: how likely tokens are, and greedy answers, under a variant of one base model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from livery.evaluation.subjects import Message, SubjectUnusable
from livery_adapters.profile import Bounds

Role = Literal["base", "active", "candidate"]
BASE_LABEL = "the base"  # has a space, as no adapter's name has: one that is called base is another row


@dataclass(frozen=True, slots=True)
class Variant:
    """The base model, or a version of an adapter over it.

    `label` is what a report calls it, once for each, the base BASE_LABEL; `name` whose version it is, empty for the
    base. An `active` version is what its name serves now, and what other versions of that name are compared with.
    """

    label: str
    name: str = ""
    role: Role = "candidate"
    version: int | None = None
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Natural logarithms of the probabilities of some tokens in their order, and how many bytes of text they are.

    `greedy`: each was the likeliest token in its place.
    """

    logprobs: Sequence[float]
    greedy: bool
    nbytes: int


class VariantFailed(Exception):
    """A variant can't be computed, and nothing of it any more: the message says why. Others go on."""


class QuestionRefused(VariantFailed):
    """A variant doesn't take a question as it must be asked; what else is asked of it goes on."""


class Scorer(Protocol):
    """One base model and variants of it. For one event loop; everything may be asked for side by side.

    Tokens are the base's, for all variants alike: so their numbers compare. Raises VariantFailed.
    """

    @property
    def longest(self) -> int:
        """Most tokens that can be scored in one piece."""
        ...

    async def beginning(self) -> list[int]:
        """The special tokens that the model expects before any plain text; mostly none, or one."""
        ...

    async def first_token(self) -> int:
        """What stands before a text where nothing else does: the model's BOS, or where it has none its EOS."""
        ...

    async def template(self) -> tuple[str | None, Mapping[str, str]]:
        """The base's chat template, and its special tokens by name (`bos_token` and the like)."""
        ...

    async def encode(self, text: str) -> list[int]:
        """The tokens of a plain text, without special ones around it."""
        ...

    async def chat(self, variant: Variant, messages: Sequence[Message]) -> list[int]:
        """The tokens of a conversation, ending where the assistant is to speak, as the variant's template has it.

        Raises QuestionRefused.
        """
        ...

    async def likelihood(self, variant: Variant, tokens: Sequence[int], start: int) -> Likelihood:
        """Of tokens[start:], each given all before it; `start` is 1 or more."""
        ...

    async def answer(self, variant: Variant, tokens: Sequence[int], most: int, stops: Sequence[str]) -> str:
        """The greedy answer to a prompt, at most so many tokens, ended before the first of the stops.

        As the variant's profile has it (see livery.evaluation.greedy). Raises QuestionRefused.
        """
        ...

    def bounds(self, variant: Variant) -> Bounds:
        """What its profile allows a request for an answer, as far as that is known."""
        ...


async def first_of(scorer: Scorer) -> int:
    """`first_token`, by the special tokens' names. Raises SubjectUnusable for a model that has neither."""
    _, named = await scorer.template()
    for name in ("bos_token", "eos_token"):
        if (text := named.get(name)) and len(ids := await scorer.encode(text)) == 1:
            return ids[0]
    raise SubjectUnusable("this model has neither a BOS nor an EOS token, one of which must stand before such a text")
