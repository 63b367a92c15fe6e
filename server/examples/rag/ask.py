"""Questions answered from passages of your own, by any model of a Livery server: nothing is trained.

    pip install openai
    python server/examples/rag/ask.py "When does the Petrel leave?"
    python server/examples/rag/ask.py --effect

The passages (passages.jsonl beside this file: the papers of a ferry company that doesn't exist) that match a question
best by BM25 go into the system message, in the order of the file, so that questions about the same ones begin alike
and find that beginning in the server's cache. Those that hold what the answer says are cited. `--effect` says what the
cache is worth: each question is asked in turn with a beginning that is new and with one that was read before.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openai import OpenAI

PASSAGES = Path(__file__).with_name("passages.jsonl")
DEMO = "smollm2-135m-instruct"
INSTRUCTION = "Answer from these passages, in a few words."
TOP = 3
EFFECT = ("Who is the captain of the Petrel?", "When does the Dunlin leave?", "What does a seat on the Razorbill cost?")
_K1, _B = 1.5, 0.75
_WORD = re.compile(r"[\w:]+")


@dataclass(frozen=True, slots=True)
class Passage:
    """A short text; `number` is its line in the file, from 1, by which it is cited."""

    number: int
    title: str
    text: str

    @property
    def shown(self) -> str:
        return f"[{self.number}] {self.title}\n{self.text}"


def read_passages(file: Path = PASSAGES) -> list[Passage]:
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [Passage(number, line["title"], line["text"]) for number, line in enumerate(lines, 1)]


class Index:
    """Passages by the words of a question: BM25 (Robertson and Zaragoza 2009, equation 3.15, k1 = 1.5, b = 0.75).

    A word is worth more the fewer passages have it, less each further time it occurs, and less in a long passage.
    """

    def __init__(self, passages: Sequence[Passage]) -> None:
        self.passages = passages
        self._counts = [Counter(_words(f"{passage.title} {passage.text}")) for passage in passages]
        self._mean = sum(counts.total() for counts in self._counts) / max(1, len(passages))
        self._holders = Counter(word for counts in self._counts for word in counts)

    def best(self, question: str, top: int = TOP) -> list[Passage]:
        """At most `top` passages that share a word with the question, in the order of the file."""
        scores = {at: self.score(question, at) for at in range(len(self.passages))}
        ranked = sorted((at for at in scores if scores[at] > 0), key=lambda at: -scores[at])
        return [self.passages[at] for at in sorted(ranked[:top])]

    def cited(self, answer: str, given: Sequence[Passage]) -> list[Passage]:
        """Of the passages given those that an answer is taken from: at least half as near to it as the nearest."""
        scores = {passage.number: self.score(answer, self.passages.index(passage)) for passage in given}
        nearest = max(scores.values(), default=0.0)
        return [passage for passage in given if nearest > 0 and scores[passage.number] >= nearest / 2]

    def score(self, words: str, at: int) -> float:
        counts = self._counts[at]
        norm = _K1 * (1 - _B + _B * counts.total() / self._mean)
        return sum(
            self._rarity(word) * counts[word] * (_K1 + 1) / (counts[word] + norm)
            for word in set(_words(words))
            if word in counts
        )

    def _rarity(self, word: str) -> float:
        holders = self._holders[word]
        return math.log(1 + (len(self.passages) - holders + 0.5) / (holders + 0.5))


def _words(text: str) -> list[str]:
    return [word.lower().removesuffix("'s") for word in _WORD.findall(text.replace("’", "'"))]


def messages_for(question: str, passages: Sequence[Passage]) -> list[Any]:
    """The passages first, which change less often than the question."""
    system = "\n\n".join([INSTRUCTION, *(passage.shown for passage in passages)])
    return [{"role": "system", "content": system}, {"role": "user", "content": question}]


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, what it was given and what of that it cites; tokens of the prompt, and of these from the cache."""

    text: str
    given: Sequence[Passage]
    cited: Sequence[Passage]
    prompt_tokens: int
    cached_tokens: int
    first_token_s: float


def ask(client: OpenAI, model: str, question: str, index: Index, top: int = TOP, salt: str | None = None) -> Answer:
    """Retrieve and ask. Requests with different salts share nothing of the server's cache."""
    given = index.best(question, top)
    began, first, text, usage = time.perf_counter(), 0.0, "", None
    stream = client.chat.completions.create(
        model=model,
        messages=messages_for(question, given),
        temperature=0,
        max_tokens=48,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"cache_salt": salt} if salt else None,
    )
    for chunk in stream:
        usage = chunk.usage or usage
        piece = chunk.choices[0].delta.content if chunk.choices else None
        if piece:
            first = first or time.perf_counter() - began
            text += piece
    assert usage is not None
    details = usage.prompt_tokens_details
    cached = (details.cached_tokens or 0) if details else 0
    return Answer(text.strip(), given, index.cited(text, given), usage.prompt_tokens, cached, first)


def effect(client: OpenAI, model: str, index: Index, top: int = TOP, rounds: int = 3) -> list[tuple[Answer, Answer]]:
    """Pairs of the same question with a beginning that nobody sent before, and with one that was sent a moment ago."""
    pairs = []
    for _ in range(rounds):
        for question in EFFECT:
            salt = uuid.uuid4().hex
            new, read = (ask(client, model, question, index, top, salt) for _ in range(2))
            pairs.append((new, read))
    return pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", nargs="*", help="what is asked; several words need no quotes")
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1", help="of the server, with /v1")
    parser.add_argument("--model", default=DEMO, help="the base, an adapter, or a profile over the base")
    parser.add_argument("--key", default="none", help="API key, where the server asks for one")
    parser.add_argument("--top", type=int, default=TOP, help="passages given to the model")
    parser.add_argument("--passages", type=Path, default=PASSAGES, help="JSON lines with title and text")
    parser.add_argument("--effect", action="store_true", help="first tokens with and without the cache, as a ratio")
    given = parser.parse_args()
    client, index = OpenAI(base_url=given.url, api_key=given.key), Index(read_passages(given.passages))
    if given.effect:
        _show_effect(effect(client, given.model, index, given.top))
    elif given.question:
        _show(ask(client, given.model, " ".join(given.question), index, given.top))
    else:
        parser.error("give a question, or --effect")


def _show(answer: Answer) -> None:
    print(answer.text)
    cited = {passage.number for passage in answer.cited}
    for passage in answer.given:
        print(
            f"  {'cited' if passage.number in cited else 'given'}  [{passage.number}] {passage.title}: {passage.text}"
        )
    tokens = f"{answer.prompt_tokens} prompt tokens, {answer.cached_tokens} of them cached"
    print(f"  {tokens}; first token after {1000 * answer.first_token_s:.0f} ms")


def _show_effect(pairs: Sequence[tuple[Answer, Answer]]) -> None:
    ratios = [cold.first_token_s / warm.first_token_s for cold, warm in pairs]
    for cold, warm in pairs[: len(EFFECT)]:
        print(f"{cold.prompt_tokens} prompt tokens: {cold.cached_tokens} cached at first, {warm.cached_tokens} then")
    spread = f"{min(ratios):.1f} to {max(ratios):.1f}"
    print(f"first token, new beginning over cached: {statistics.median(ratios):.1f} ({spread}, {len(ratios)} pairs)")


if __name__ == "__main__":
    main()
