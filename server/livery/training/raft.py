"""Examples for answering from documents of which most don't help (RAFT, Zhang et al. 2024, arXiv 2403.10131).

    lines = prepare(questions, documents, Mix(distractors=3, golden_share=0.8, near=True, seed=0))

Each question gets the document with its answer among others; of a share of them that document is left out, so that the
answer has to be known by heart.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_WORD = re.compile(r"\w+")
_K1, _B = 1.5, 0.75  # BM25's usual parameters


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its answer, and which document holds it."""

    question: str
    answer: str
    document: str


@dataclass(frozen=True, slots=True)
class Mix:
    """How documents are put together: `distractors` beside the golden one, which `golden_share` of the questions get.

    `near`: distractors are those that a search for the question finds first, not any.
    """

    distractors: int = 3
    golden_share: float = 0.8
    near: bool = True
    seed: int = 0


def prepare(questions: Sequence[Question], documents: Mapping[str, str], mix: Mix) -> list[dict[str, object]]:
    """A line for each question: `question`, `documents` in a drawn order, `answer`, and `golden`.

    `golden` is the place of the document with the answer, from 0, or null where it was left out; then there is one
    distractor more, so that the number of documents tells nothing. `documents` are texts by id, of which those alike
    count as one: a distractor is never the answer's document under another id. Raises ValueError where `different`
    finds fewer of them than `needed`.
    """
    first = different(documents)
    if len(first) < needed(len(questions), mix):
        raise ValueError(f"{len(first)} different documents, and {needed(len(questions), mix)} are needed")
    draw = random.Random(mix.seed)
    near = _Nearness(documents) if mix.near else None
    given = _with_golden(len(questions), mix)
    with_golden = [True] * given + [False] * (len(questions) - given)
    draw.shuffle(with_golden)
    lines: list[dict[str, object]] = []
    for one, golden in zip(questions, with_golden, strict=True):
        others = [id for text, id in first.items() if text != documents[one.document].strip()]
        count = mix.distractors + (not golden)
        chosen = near.best(one.question, others)[:count] if near else draw.sample(others, count)
        if golden:
            chosen.append(one.document)
        draw.shuffle(chosen)
        place = chosen.index(one.document) if golden else None
        texts = [documents[id] for id in chosen]
        lines.append({"question": one.question, "documents": texts, "answer": one.answer, "golden": place})
    return lines


def different(documents: Mapping[str, str]) -> dict[str, str]:
    """The ids of documents by their texts: of those alike the first."""
    found: dict[str, str] = {}
    for id, text in documents.items():
        found.setdefault(text.strip(), id)
    return found


def needed(questions: int, mix: Mix) -> int:
    """How many different documents so many questions take: one more where some are left without their own."""
    return mix.distractors + 1 + (_with_golden(questions, mix) < questions)


def _with_golden(questions: int, mix: Mix) -> int:
    return round(mix.golden_share * questions)


def raft_messages(question: str, documents: Sequence[str], prompt: str, system: str = "") -> tuple[dict[str, str], ...]:
    """What a model is asked, in training as in use; `prompt` has {documents} and {question} in it, once each."""
    numbered = "\n\n".join(f"Document {number}:\n{text.strip()}" for number, text in enumerate(documents, 1))
    before, _, after = prompt.partition("{documents}")
    before, after = (part.replace("{question}", question.strip()) for part in (before, after))
    user = before + numbered + after
    asked = {"role": "user", "content": user}
    return ({"role": "system", "content": system}, asked) if system else (asked,)


class _Nearness:
    """Documents by how well they match a question: BM25 (Robertson and Zaragoza 2009)."""

    def __init__(self, documents: Mapping[str, str]) -> None:
        self._counts = {id: Counter(_words(text)) for id, text in documents.items()}
        self._lengths = {id: sum(counts.values()) for id, counts in self._counts.items()}
        self._mean = sum(self._lengths.values()) / max(1, len(documents)) or 1.0
        self._in = Counter(word for counts in self._counts.values() for word in counts)

    def best(self, question: str, among: Sequence[str]) -> list[str]:
        """All of them, the best match first; those that match alike in the order given."""
        words = set(_words(question))
        return sorted(among, key=lambda id: -self._score(words, id))

    def _score(self, words: set[str], id: str) -> float:
        counts, total = self._counts[id], len(self._counts)
        norm = _K1 * (1 - _B + _B * self._lengths[id] / self._mean)
        found = 0.0
        for word in sorted(words & counts.keys()):
            rarity = math.log(1 + (total - self._in[word] + 0.5) / (self._in[word] + 0.5))
            found += rarity * counts[word] * (_K1 + 1) / (counts[word] + norm)
        return found


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]
