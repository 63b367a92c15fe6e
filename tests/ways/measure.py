"""What a served way is worth and costs: the same questions to each, through the official client.

    quality = measure_quality(client, "lora", asking)
    cost = measure_cost(client, server_pid, {"base": ("smollm2-135m-instruct", plain), ...})

Right: the answer has the fact in it; exact: it is the fact and nothing else, but for a full stop. Perplexity is that of
the right answers, each as the assistant's reply to its question, and of lines of plain text. Who answers from passages
is asked once more with facts exchanged among these: do answers tell what they say now? What requests cost is the
processor time of all of the server's processes while ways take turns, one request after the other.
"""

from __future__ import annotations

import math
import os
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from openai import OpenAI

from ways.company import ASKED, KINDS, SHOWN, Asked, changed_answers

Asking = Callable[[str], list[Any]]  # a question -> the messages that ask it
AT_ONCE = 8
MOST_TOKENS = 24
COSTED = ASKED[:: len(KINDS)]  # questions by which costs are measured: one of each ferry
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Quality:
    """Shares of right and exact answers; perplexity of right answers, and of lines (None where words alone change)."""

    right: float
    exact: float
    answer_perplexity: float
    line_perplexity: float | None
    answers: Sequence[str]


@dataclass(frozen=True, slots=True)
class Changed:
    """Of answers from passages with other facts: shares that tell the new fact, and the one of before."""

    follows: float
    remembers: float
    answers: Sequence[str]


@dataclass(frozen=True, slots=True)
class Cost:
    """Of a request, in the middle: tokens read, those of them found in the cache, tokens written; milliseconds of a
    processor and until the answer was there."""

    prompt_tokens: float
    cached_tokens: float
    output_tokens: float
    cpu_ms: float
    ms: float


def measure_quality(client: OpenAI, model: str, asking: Asking, lines: Sequence[str]) -> Quality:
    """All questions, some of them at once. `lines` are read as plain text; none: the way adds words, and no weights."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(lambda one: _answer(client, model, asking(one.question))[0], ASKED))
        scored = list(pool.map(lambda one: _answer_logprobs(client, model, asking(one.question), one.answer), ASKED))
        read = list(pool.map(lambda line: _line_logprobs(client, model, line), lines))
    pairs = list(zip(answers, ASKED, strict=True))
    return Quality(
        right=statistics.mean(is_right(answer, one) for answer, one in pairs),
        exact=statistics.mean(is_exact(answer, one) for answer, one in pairs),
        answer_perplexity=_perplexity(scored),
        line_perplexity=_perplexity(read) if lines else None,
        answers=answers,
    )


def measure_changed(client: OpenAI, model: str, asking: Asking) -> Changed:
    """All questions, by an `asking` whose passages are company.changed_passages()."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(lambda one: _answer(client, model, asking(one.question))[0], ASKED))
    return scored(answers)


def scored(answers: Sequence[str]) -> Changed:
    """Of answers to ASKED, in their order."""
    new = [replace(one, answer=answer) for one, answer in zip(ASKED, changed_answers(), strict=True)]
    return Changed(
        statistics.mean(map(is_right, answers, new)), statistics.mean(map(is_right, answers, ASKED)), list(answers)
    )


def is_right(answer: str, asked: Asked) -> bool:
    """Whether the fact stands in it by itself, however the answer is worded: 7 is not in 17."""
    return re.search(rf"(?<!\w){re.escape(asked.answer)}(?!\w)", answer, re.IGNORECASE) is not None


def is_exact(answer: str, asked: Asked) -> bool:
    return answer.strip().removesuffix(".").lower() == asked.answer.lower()


def measure_cost(client: OpenAI, pid: int, ways: Mapping[str, tuple[str, Asking]]) -> dict[str, Cost]:
    """Ways take turns question by question, so that a machine that gets slower does so for all of them.

    On a server that wasn't asked these before: of a prompt only the beginning that a way's requests share is cached.
    """
    found: dict[str, list[tuple[Any, float, float]]] = {name: [] for name in ways}
    for model, asking in ways.values():
        _answer(client, model, asking(KINDS[0].asked.format(SHOWN[0].name)))  # adapters are in memory then
    for one in COSTED:
        for name, (model, asking) in ways.items():
            cpu, began = cpu_seconds(pid), time.perf_counter()
            usage = _answer(client, model, asking(one.question))[1]
            found[name].append((usage, cpu_seconds(pid) - cpu, time.perf_counter() - began))
    return {name: _cost(rows) for name, rows in found.items()}


def _cost(rows: Sequence[tuple[Any, float, float]]) -> Cost:
    """Means, and of the time of day the median: processor time is told in ticks of 10 ms, few for one request."""
    usages = [usage for usage, _, _ in rows]
    return Cost(
        statistics.mean(usage.prompt_tokens for usage in usages),
        statistics.mean(usage.prompt_tokens_details.cached_tokens or 0 for usage in usages),
        statistics.mean(usage.completion_tokens for usage in usages),
        1000 * statistics.mean(cpu for _, cpu, _ in rows),
        1000 * statistics.median(seconds for _, _, seconds in rows),
    )


def cpu_seconds(pid: int) -> float:
    """Processor time of a process and of all below it that live, in seconds."""
    children: dict[int, list[int]] = {}
    used: dict[int, float] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it ended
                continue
            children.setdefault(int(fields[1]), []).append(int(entry.name))
            used[int(entry.name)] = (int(fields[11]) + int(fields[12])) / _TICKS
    found, left = 0.0, [pid]
    while left:
        one = left.pop()
        found += used.get(one, 0.0)
        left += children.get(one, [])
    return found


# -- requests ------------------------------------------------------------------------------------------------


def _answer(client: OpenAI, model: str, messages: list[Any]) -> tuple[str, Any]:
    answer = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=MOST_TOKENS)
    return (answer.choices[0].message.content or "").strip(), answer.usage


def _answer_logprobs(client: OpenAI, model: str, messages: list[Any], answer: str) -> list[float]:
    """Log-probabilities of the tokens of `answer` as the reply."""
    whole = [*messages, {"role": "assistant", "content": answer}]
    asked = {"add_generation_prompt": False, "continue_final_message": True}
    before = _count(client, {"model": model, "messages": messages})
    scores = _prompt_logprobs(
        client.chat.completions.create(
            model=model, messages=whole, max_tokens=1, temperature=0, extra_body={"prompt_logprobs": 0, **asked}
        )
    )
    return scores[before:]


def _line_logprobs(client: OpenAI, model: str, line: str) -> list[float]:
    """Of all tokens of a line but the first, before which nothing stands."""
    answer = client.completions.create(
        model=model, prompt=line, max_tokens=1, temperature=0, extra_body={"prompt_logprobs": 0}
    )
    return _prompt_logprobs(answer)[1:]


def _prompt_logprobs(answer: Any) -> list[float]:
    """By token of the prompt; the first has none, and 0 stands for it."""
    told = getattr(answer, "prompt_logprobs", None) or answer.choices[0].prompt_logprobs
    return [next(iter(one.values()))["logprob"] if one else 0.0 for one in told]


def _count(client: OpenAI, body: Mapping[str, Any]) -> int:
    """Tokens of a prompt, as the server tells."""
    root = str(client.base_url).rstrip("/").removesuffix("/v1")
    count: int = client.post(f"{root}/tokenize", body=dict(body), cast_to=dict[str, Any])["count"]
    return count


def _perplexity(scores: Sequence[Sequence[float]]) -> float:
    flat = [score for one in scores for score in one]
    return math.exp(-statistics.mean(flat))
