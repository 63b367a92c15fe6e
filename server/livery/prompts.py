"""From a prompt as a client put it to the token ids that the engine reads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from livery.jobs import BareText, ChatPrompt, Job, Prompt
from livery.lease import Lease
from livery.refusals import ContextLengthExceeded, InvalidParameter
from livery.text import PromptTooLong, Tokenizer

# Characters above which encoding leaves the event loop; below it, a thread costs more than the work.
ENCODE_INLINE_LIMIT = 8192

A = TypeVar("A")
R = TypeVar("R")


async def encode(prompt: Prompt, job: Job, tokenizer: Tokenizer, limit: int, vocab_size: int) -> list[int]:
    """Token ids of one prompt, of which there is at least one, each below `vocab_size`.

    Raises InvalidMessages, InvalidParameter or ContextLengthExceeded.
    """
    ids = await token_ids(prompt, job, tokenizer, limit, vocab_size)
    if not ids:
        raise InvalidParameter("The prompt is empty: it encodes to no tokens.", job.prompt_param)
    return ids


async def token_ids(prompt: Prompt, job: Job, tokenizer: Tokenizer, limit: int, vocab_size: int) -> list[int]:
    """As `encode`, and none for an empty text. What can't possibly fit `limit` tokens is refused uncounted."""
    try:
        if isinstance(prompt, ChatPrompt):
            foreign = tokenizer.foreign_template
            if foreign is None:
                ids = await _off_loop(_size(prompt), tokenizer.encode_chat, prompt, limit)
            else:
                ids = await foreign.apart(partial(tokenizer.encode_chat, prompt, limit))
        elif isinstance(prompt, str):
            ids = await _off_loop(len(prompt), tokenizer.encode, prompt, limit)
        elif isinstance(prompt, BareText):
            ids = await _off_loop(len(prompt.text), tokenizer.encode_bare, prompt.text, limit)
        else:
            ids = prompt
            check_ids(ids, vocab_size, job.prompt_param)
    except PromptTooLong as long:
        answer = job.options.max_tokens
        raise ContextLengthExceeded(limit, long.at_least, answer, job.prompt_param, uncounted=True) from None
    return ids


def check_ids(ids: Sequence[int], vocab_size: int, param: str) -> None:
    """Ids index the logits: one out of range must never reach the engine. Raises InvalidParameter."""
    wrong = next((token for token in ids if not 0 <= token < vocab_size), None)
    if wrong is not None:
        raise InvalidParameter(f"Token id {wrong} is outside the vocabulary of {vocab_size}.", param)


def activation(ids: list[int], lease: Lease | None, param: str) -> int:
    """Where an activated adapter (aLoRA) begins to act: at its invocation tokens, the last time they stand there.

    Greenewald et al., "Activated LoRA", 2025. Raises InvalidParameter when the prompt doesn't invoke it: the base
    would answer in the adapter's name.
    """
    invocation = list(lease.facts.invocation) if lease and lease.facts else []
    if not invocation:
        return 0
    width = len(invocation)
    for start in range(len(ids) - width, -1, -1):
        if ids[start] == invocation[0] and ids[start : start + width] == invocation:
            return start
    raise InvalidParameter(
        f"This adapter acts only after its invocation tokens {invocation[:16]}, which the prompt doesn't hold; add the "
        "text it was trained to be invoked by.",
        param,
    )


def _size(chat: ChatPrompt) -> int:
    """About how many characters a template is given to render."""
    given = (*chat.messages, chat.tools or (), chat.documents or (), chat.template_kwargs)
    return sum(len(str(part)) for part in given)


async def _off_loop(size: int, work: Callable[[A, int], list[int]], argument: A, room: int) -> list[int]:
    """Run quick work here and long work (by characters) in a thread; tokenizers let go of the GIL."""
    return work(argument, room) if size <= ENCODE_INLINE_LIMIT else await asyncio.to_thread(work, argument, room)


async def off_loop(size: int, work: Callable[[A], R], argument: A) -> R:
    """The same for work without a limit of its own."""
    return work(argument) if size <= ENCODE_INLINE_LIMIT else await asyncio.to_thread(work, argument)
