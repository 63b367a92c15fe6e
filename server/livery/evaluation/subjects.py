"""What adapters are measured on: text files, and tasks of questions with choices or with an answer to be given.

A task is JSON lines, each an item:

    {"prompt": "2 + 2 =", "choices": ["3", "4"], "answer": 1}
    {"messages": [{"role": "user", "content": "2 + 2?"}], "answer": ["4", "four"], "max_tokens": 8}

With `choices` the likeliest one is taken and `answer` says which is right, by number from 0 or in words; without, the
model answers greedily and `answer` is one text that is right, or several.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from livery.foreign_json import parse_line

Message = Mapping[str, str]

MAX_TOKENS = 64  # of an answer, where its item doesn't say
MOST_TOKENS = 4096
ROLES = ("system", "user", "assistant")


class SubjectUnusable(ValueError):
    """A text or a task that nothing can be measured on; the message names file, line and remedy."""


@dataclass(frozen=True, slots=True)
class Text:
    """A text to be predicted."""

    name: str
    content: str


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, in plain words or as a conversation."""

    prompt: str | tuple[Message, ...]

    @property
    def messages(self) -> tuple[Message, ...]:
        """As a conversation; plain words are what a user says."""
        return ({"role": "user", "content": self.prompt},) if isinstance(self.prompt, str) else self.prompt


@dataclass(frozen=True, slots=True)
class Choice:
    """A question, and continuations of which one is right."""

    question: Question
    choices: tuple[str, ...]
    right: int

    @property
    def shown(self) -> str:
        """The answer that an example of it shows."""
        return self.choices[self.right]


@dataclass(frozen=True, slots=True)
class Answer:
    """A question to be answered in the very words of one of `right`, but for spaces around them."""

    question: Question
    right: tuple[str, ...]
    max_tokens: int = MAX_TOKENS

    @property
    def shown(self) -> str:
        return self.right[0]


Item = Choice | Answer


@dataclass(frozen=True, slots=True)
class Task:
    """Items of one kind. `shots` are shown before each, solved; `chat`: by the model's template, or as plain text."""

    name: str
    items: tuple[Item, ...]
    shots: tuple[Item, ...] = ()
    chat: bool = True

    @property
    def kind(self) -> str:
        return "choice" if isinstance(self.items[0], Choice) else "answer"


Subject = Text | Task


def read_text(file: Path) -> Text:
    """Raises SubjectUnusable, OSError."""
    try:
        content = file.read_text(encoding="utf-8-sig")  # a byte order mark is no text
    except UnicodeDecodeError as error:
        raise SubjectUnusable(f"{file} is not UTF-8 text (byte {error.start}); save it as such") from None
    return Text(file.name, content)


def read_task(file: Path, *, shots: int = 0, limit: int | None = None, chat: bool = True) -> Task:
    """The first `shots` items are examples, and not asked. Raises SubjectUnusable, OSError."""
    items = list(_items(file))
    kinds = {type(item) for item in items}
    if len(kinds) > 1:
        raise SubjectUnusable(
            f"{file} has items with choices and items without; put them into two files, as they are scored differently"
        )
    asked = items[shots:][:limit]
    if not asked:
        raise SubjectUnusable(
            f"{file} has {len(items)} items"
            + (f", and {shots} of them are shown as examples" if shots else "")
            + "; at least one must be left to ask"
        )
    return Task(file.name, tuple(asked), tuple(items[:shots]), chat)


def _items(file: Path) -> Iterator[Item]:
    try:
        with file.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    try:
                        yield _item(parse_line(line))
                    except ValueError as error:  # NotPlain is one
                        raise SubjectUnusable(f"line {number} of {file}: {error}") from None
    except UnicodeDecodeError:
        raise SubjectUnusable(f"{file} is not UTF-8 text; save it as such") from None


def _item(found: object) -> Item:
    """Raises ValueError."""
    if not isinstance(found, dict):
        raise ValueError("an item is a JSON object with prompt or messages, answer, and maybe choices")
    unknown = sorted(found.keys() - {"prompt", "messages", "choices", "answer", "max_tokens", "id"})
    if unknown:
        raise ValueError(
            f"{unknown[0]!r} means nothing here; an item has prompt or messages, choices, answer, max_tokens, id"
        )
    question = _question(found)
    if "choices" in found:
        return _choice(question, found)
    right = found.get("answer")
    given = right if isinstance(right, list) else [right]
    texts = [text.strip() for text in given if isinstance(text, str) and text.strip()]
    if not texts or len(texts) < len(given):
        raise ValueError("answer must be a text, or a list of texts that are right")
    most = found.get("max_tokens", MAX_TOKENS)
    if not isinstance(most, int) or isinstance(most, bool) or not 1 <= most <= MOST_TOKENS:
        raise ValueError(f"max_tokens is {most!r}; it is a whole number from 1 to {MOST_TOKENS}")
    return Answer(question, tuple(texts), most)


def _question(found: Mapping[str, object]) -> Question:
    prompt, messages = found.get("prompt"), found.get("messages")
    if (prompt is None) == (messages is None):
        raise ValueError("an item has either prompt, a text, or messages, a conversation")
    if messages is None:
        if not isinstance(prompt, str) or not prompt:
            raise ValueError("prompt must be a text with something in it")
        return Question(prompt)
    if not isinstance(messages, list) or not messages:
        raise ValueError("messages must be a list of messages")
    for message in messages:
        if (
            not isinstance(message, dict)
            or message.keys() != {"role", "content"}
            or message["role"] not in ROLES
            or not isinstance(message["content"], str)
        ):
            raise ValueError(f"a message has a role, one of {', '.join(ROLES)}, and content, a text; not {message!r}")
    if messages[-1]["role"] != "user":
        raise ValueError(f"the last message is the {messages[-1]['role']}'s; a question ends with the user's")
    return Question(tuple(messages))


def _choice(question: Question, found: Mapping[str, object]) -> Choice:
    choices, answer = found["choices"], found.get("answer")
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(one, str) and one for one in choices):
        raise ValueError("choices must be a list of two texts or more, none of them empty")
    if isinstance(answer, str) and choices.count(answer) == 1:
        return Choice(question, tuple(choices), choices.index(answer))
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise ValueError(f"answer is {answer!r}; it is one of the choices, or its number from 0 to {len(choices) - 1}")
    return Choice(question, tuple(choices), answer)
