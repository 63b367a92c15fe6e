"""Texts cut into windows of tokens, and items of tasks as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from livery.evaluation.scorer import Scorer, Variant
from livery.evaluation.subjects import Answer, Choice, Item, Message, Question, SubjectUnusable, Task, Text

WINDOW = 512
PLAIN_STOP = "\n"  # ends an answer to a plain prompt
_BETWEEN = "\n\n"  # examples in a plain prompt


@dataclass(frozen=True, slots=True)
class Piece:
    """A window of a text: tokens[start:] are predicted, each from all before it."""

    tokens: tuple[int, ...]
    start: int


@dataclass(frozen=True, slots=True)
class Windows:
    """How a text is cut. Each window begins `stride` tokens after the one before and is as long as `size` or less.

    With a stride below the size a window predicts what no earlier one did, from at least size - stride tokens before.
    Its first token is given: where the model expects a BOS before any text that, which takes room in every window.
    At most `tokens` of the text are read.
    """

    size: int = WINDOW
    stride: int = 0  # 0: as the size
    tokens: int | None = None


async def cut(scorer: Scorer, text: Text, windows: Windows) -> list[Piece]:
    """Raises SubjectUnusable where there is nothing to predict."""
    tokens = (await scorer.encode(text.content))[: windows.tokens]
    pieces = windowed(tokens, await scorer.beginning(), min(windows.size, scorer.longest), windows.stride)
    if not pieces:
        raise SubjectUnusable(
            f"{text.name} has {len(tokens)} token{'' if len(tokens) == 1 else 's'}, and at least 2 are needed to "
            "predict one; give a longer text"
        )
    return pieces


def windowed(tokens: Sequence[int], begins: Sequence[int], size: int, stride: int = 0) -> list[Piece]:
    """A text's tokens as pieces, `begins` before each; see Windows. None of them where there is nothing to predict."""
    room = max(1, size - len(begins))
    stride = min(stride or room, room)
    pieces, done = [], 0
    for begin in range(0, len(tokens), stride):
        window = (*begins, *tokens[begin : begin + room])
        start = max(len(begins) + done - begin, 1)
        if start < len(window):
            pieces.append(Piece(window, start))
            done = begin + room
        if begin + room >= len(tokens):
            break
    return pieces


@dataclass(frozen=True, slots=True)
class AskedItem:
    """An item under one variant: a prompt, and for each choice its tokens behind it; none for an answer."""

    prompt: tuple[int, ...]
    choices: tuple[tuple[int, ...], ...] = ()


async def as_asked(scorer: Scorer, variant: Variant, task: Task, item: Item) -> AskedItem:
    """An item's tokens. Raises SubjectUnusable for one that is too long, VariantFailed.

    A plain prompt and a choice are encoded together, and what begins behind the prompt's own tokens, its last spaces
    left out, is the choice's: lm-eval's `_encode_pair`.
    """
    choices = item.choices if isinstance(item, Choice) else ()
    if task.chat:
        prompt = await scorer.chat(variant, conversation(task, item))
        tails = [await scorer.encode(text) for text in choices]
    else:
        words = plain(task, item)
        before, begins = words.rstrip(" "), await scorer.beginning()
        prompt = [*begins, *await scorer.encode(before if choices else words)]
        wholes = [[*begins, *await scorer.encode(words + spaced(words, text))] for text in choices]
        tails = [whole[len(prompt) :] for whole in wholes]
    for text, tail in zip(choices, tails, strict=True):
        if not tail:
            raise SubjectUnusable(f"{task.name}: the choice {text!r} is no token of its own; write it differently")
    room = max((len(tail) for tail in tails), default=item.max_tokens if isinstance(item, Answer) else 0)
    if len(prompt) + room > scorer.longest:
        raise SubjectUnusable(
            f"{task.name}: an item has {len(prompt)} tokens and up to {room} more to be answered, and this model takes "
            f"{scorer.longest}; shorten it, or show fewer examples"
        )
    return AskedItem(tuple(prompt), tuple(tuple(tail) for tail in tails))


def conversation(task: Task, item: Item) -> list[Message]:
    """Examples as earlier turns, then the question. A system message of the question comes first."""
    own = list(item.question.messages)
    system = [own.pop(0)] if own[0]["role"] == "system" else []
    shown: list[Message] = []
    for shot in task.shots:
        shown += [message for message in shot.question.messages if message["role"] != "system"]
        shown.append({"role": "assistant", "content": shot.shown.strip()})
    return [*system, *shown, *own]


def plain(task: Task, item: Item) -> str:
    """Examples with their answers, then the question."""
    parts = []
    for shot in task.shots:
        words = _words(shot.question)
        parts.append(words + spaced(words, shot.shown))
    return _BETWEEN.join([*parts, _words(item.question)])


def _words(question: Question) -> str:
    if isinstance(question.prompt, str):
        return question.prompt
    return "\n".join(message["content"] for message in question.prompt)


def spaced(prompt: str, text: str) -> str:
    """A continuation with the space before it that prompts don't end with, as lm-eval's `target_delimiter` has it."""
    return text if prompt[-1:].isspace() or text[:1].isspace() else f" {text}"
