"""From a prompt as a client put it to the token ids that the engine reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

from livery.beside import ENCODING, beside, weight
from livery.jobs import BareText, ChatPrompt, Job, Options, Prompt
from livery.lease import Lease
from livery.refusals import ContextLengthExceeded, InvalidParameter
from livery.text import PromptTooLong, Tokenizer


async def encode(prompt: Prompt, job: Job, tokenizer: Tokenizer, limit: int, vocab_size: int) -> list[int]:
    """Token ids of one prompt, of which there is at least one, each below `vocab_size`.

    Raises InvalidMessages, InvalidParameter or ContextLengthExceeded.
    """
    ids = await token_ids(prompt, job, tokenizer, limit, vocab_size)
    if not ids:
        raise InvalidParameter("The prompt is empty: it encodes to no tokens.", job.prompt_param)
    return ids


async def token_ids(prompt: Prompt, job: Job, tokenizer: Tokenizer, limit: int, vocab_size: int) -> list[int]:
    """As `encode`, and none for an empty text. What can't possibly fit `limit` tokens is refused uncounted.

    Not so where only its last tokens are wanted: which these are is known once all is encoded, and bodies are bounded.
    """
    room = limit if job.options.truncate_prompt_tokens is None else None
    tenant = job.caller.tenant
    try:
        if isinstance(prompt, ChatPrompt):
            foreign = tokenizer.foreign_template
            if foreign is None:
                ids = await beside(ENCODING, tenant, _size(job), tokenizer.encode_chat, prompt, room)
            else:
                ids = await foreign.apart(partial(tokenizer.encode_chat, prompt, room))
        elif isinstance(prompt, str):
            ids = await beside(ENCODING, tenant, _size(job), tokenizer.encode, prompt, room)
        elif isinstance(prompt, BareText):
            ids = await beside(ENCODING, tenant, _size(job), tokenizer.encode_bare, prompt.text, room)
        else:
            ids = prompt
            check_ids(ids, vocab_size, job.prompt_param)
    except PromptTooLong as long:
        answer = job.options.max_tokens
        raise ContextLengthExceeded(limit, long.at_least, answer, job.prompt_param, uncounted=True) from None
    return truncated(ids, job.options, limit)


def _size(job: Job) -> int:
    """What there is to render and encode in all prompts together: many short ones take as long as a long one."""
    return sum(map(_prompt_size, job.prompts))


def _prompt_size(prompt: Prompt) -> int:
    if isinstance(prompt, ChatPrompt):
        return weight((prompt.messages, prompt.tools, prompt.documents, prompt.template_kwargs))
    text = prompt.text if isinstance(prompt, BareText) else prompt
    return len(text) if isinstance(text, str) else 0


def truncated(ids: list[int], options: Options, limit: int) -> list[int]:
    """The last tokens of a prompt, where its client wants no more of them; -1: what leaves room for the answer."""
    kept = options.truncate_prompt_tokens
    if kept is None:
        return ids
    return ids[-(kept if kept > 0 else max(1, limit - (options.max_tokens or 1))) :]


def bad_words(words: Sequence[str], tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """Words as token ids, each as it stands at the beginning of a text and after a space."""
    found = {tuple(tokenizer.encode_plain(before + word.strip())) for word in words for before in ("", " ")}
    return tuple(sorted(found - {()}))


def check_ids(ids: Iterable[int], vocab_size: int, param: str) -> None:
    """Ids index the logits: one out of range must never reach the engine. Raises InvalidParameter."""
    low, high = min(ids, default=0), max(ids, default=0)  # a million of them may come
    if low < 0 or high >= vocab_size:
        wrong = low if low < 0 else high
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
