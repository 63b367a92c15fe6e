"""Evaluating eight adapters of the demo base at once, beside one after another through PEFT: interleaved, as ratios.

    python tests/benchmarks/eval_speed.py --out eval-speed.json

Three parts, each computed by both in turn, round after round, on the same threads: perplexity of a text, a task of four
choices behind solved examples, a task answered greedily. PEFT has one model with all adapters loaded, `set_adapter`,
batches without gradients, only the logits that are needed, and its own `generate`; it is asked with several batch sizes
first, and its fastest counts. Loading is left out of both. The numbers are compared before anything is timed.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peft import PeftModel
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parent.parent))

from livery import __version__
from livery.commands.eval_here import Found, Here, scoring
from livery.evaluation.evaluate import evaluate
from livery.evaluation.pieces import Windows, conversation
from livery.evaluation.report import Report
from livery.evaluation.scorer import Scorer, Variant
from livery.evaluation.subjects import Answer, Choice, Question, Subject, Task, Text
from livery.models import DEMO_MODEL, base_digest, resolve_model
from livery_loadtest.origin import Origin, document, write_json
from livery_loadtest.random_adapters import write_random_adapters

ADAPTERS, RANK, WINDOW = 8, 16, 256
BATCHES = (1, 4, 8)
CLOSE = 2e-3  # nats a token
PARTS = ("text", "choices", "answers")
_WORDS = (
    *("lamp", "sea", "wind", "stone", "tide", "rope", "dusk", "gull"),
    *("harbour", "anchor", "keeper", "storm", "light", "salt", "cliff", "boat"),
)
say = Console(stderr=True).print


def subjects(size: float, number: int) -> dict[str, Subject]:
    """Round `number`'s, the same for every run: no round finds what another has read. `size` scales their pieces."""
    first = 1000 * number
    lines = [
        f"On day {day} the {_WORDS[day % 13]} met the {_WORDS[day * 7 % 16]} and {day * 3} boats came in before dusk."
        for day in range(first, first + int(90 * size))
    ]

    def facts(at: int) -> str:
        pair = f"{_WORDS[at % 16]} and {_WORDS[(at * 5 + 1) % 16]}"
        return f"Read the keeper's note about {pair}, written on day {at}, and say which word it ends with."

    def choice(at: int) -> Choice:
        options = tuple(f"the old {_WORDS[(at + step) % 16]}" for step in (2, 5, 9, 14))
        return Choice(Question(facts(at)), options, at % 4)

    items = tuple(choice(at) for at in range(first + 4, first + 4 + max(3, int(12 * size))))
    asked = range(first + 30, first + 30 + max(4, int(8 * size)))
    answers = tuple(Answer(Question(facts(at)), (_WORDS[at % 16],), 16) for at in asked)
    return {
        "text": Text("text", "\n".join(lines)),
        "choices": Task("choices", items, tuple(choice(at) for at in range(first, first + 4)), chat=True),
        "answers": Task("answers", answers, (), chat=True),
    }


class ByPeft:
    """One model, all adapters, one after another."""

    def __init__(self, base: Path, adapters: Mapping[str, Path]) -> None:
        model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="sdpa")
        self.tokenizer: Any = AutoTokenizer.from_pretrained(base, padding_side="left")
        self.pad = self.tokenizer.pad_token_id or 0
        names = list(adapters)
        self.model: Any = PeftModel.from_pretrained(model, adapters[names[0]], adapter_name=names[0])
        for name in names[1:]:
            self.model.load_adapter(adapters[name], adapter_name=name)
        self.model.eval()
        self.names = names

    @torch.inference_mode()
    def run(self, subject: Subject, batch: int) -> dict[str, Any]:
        found = {}
        for name in self.names:
            self.model.set_adapter(name)
            found[name] = self._part(subject, batch)
        return found

    def _part(self, subject: Subject, batch: int) -> Any:
        if isinstance(subject, Text):
            ids = self.tokenizer(subject.content, add_special_tokens=False).input_ids
            parts = [ids[at : at + WINDOW] for at in range(0, len(ids), WINDOW)]
            rows = [(part, 1) for part in parts if len(part) > 1]
            sums = self._scores(rows, batch)
            return -math.fsum(sums) / sum(len(part) - 1 for part, _ in rows)
        prompts = [self._prompt(subject, item) for item in subject.items]
        if subject.kind == "answer":
            return self._answers(prompts, batch)
        rows = []
        for prompt, item in zip(prompts, subject.items, strict=True):
            assert isinstance(item, Choice)
            rows += [
                ([*prompt, *self.tokenizer(text, add_special_tokens=False).input_ids], len(prompt))
                for text in item.choices
            ]
        return self._scores(rows, batch)

    def _prompt(self, task: Task, item: Any) -> list[int]:
        told = self.tokenizer.apply_chat_template(
            conversation(task, item), add_generation_prompt=True, tokenize=True, return_dict=False
        )
        return list(told)

    def _scores(self, rows: Sequence[tuple[Sequence[int], int]], batch: int) -> list[float]:
        """The log-likelihood of each row from its start on. Longest first, as lm-eval has it, padded on the left."""
        order = sorted(range(len(rows)), key=lambda at: -len(rows[at][0]))
        found = [0.0] * len(rows)
        for begin in range(0, len(order), batch):
            places = order[begin : begin + batch]
            longest = max(len(rows[at][0]) for at in places) - 1
            wanted = max(len(rows[at][0]) - rows[at][1] for at in places)
            ids = torch.full((len(places), longest), self.pad)
            mask = torch.zeros_like(ids)
            for place, at in enumerate(places):
                tokens = rows[at][0][:-1]
                ids[place, longest - len(tokens) :] = torch.tensor(tokens)
                mask[place, longest - len(tokens) :] = 1
            logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=wanted).logits
            for place, at in enumerate(places):
                tokens, start = rows[at]
                targets = torch.tensor(tokens[start:])
                mine = logits[place, -len(targets) :]
                own = mine.gather(1, targets[:, None])[:, 0] - mine.logsumexp(-1)
                found[at] = float(own.double().sum())
        return found

    def _answers(self, prompts: Sequence[Sequence[int]], batch: int) -> list[str]:
        found = []
        for begin in range(0, len(prompts), batch):
            some = prompts[begin : begin + batch]
            padded = self.tokenizer.pad({"input_ids": [list(one) for one in some]}, return_tensors="pt")
            made = self.model.generate(**padded, max_new_tokens=16, do_sample=False, pad_token_id=self.pad)
            texts = self.tokenizer.batch_decode(made[:, padded["input_ids"].shape[1] :], skip_special_tokens=True)
            found += [text.strip() for text in texts]
        return found


class Noting:
    """A Scorer that keeps what it was told."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self.scores: dict[tuple[str, tuple[int, ...]], float] = {}
        self.answers: dict[tuple[str, tuple[int, ...]], str] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scorer, name)

    async def likelihood(self, variant: Variant, tokens: Sequence[int], start: int) -> Any:
        found = await self._scorer.likelihood(variant, tokens, start)
        self.scores[variant.label, tuple(tokens)] = math.fsum(found.logprobs)
        return found

    async def answer(self, variant: Variant, tokens: Sequence[int], most: int, stops: Sequence[str]) -> str:
        self.answers[variant.label, tuple(tokens)] = await self._scorer.answer(variant, tokens, most, stops)
        return self.answers[variant.label, tuple(tokens)]


async def measured(rounds: int, size: float, count: int) -> dict[str, Any]:
    base = resolve_model(DEMO_MODEL)
    parts = subjects(size, 0)
    with tempfile.TemporaryDirectory(prefix="livery-eval-") as scratch:
        folders = write_random_adapters(base.path, Path(scratch), count, RANK)
        peft = ByPeft(base.path, folders)
        here = tuple(Here(Variant(name, name), folder) for name, folder in folders.items())
        variants = [one.variant for one in here]
        async with scoring(Found(base, base_digest(base.path), here)) as (scorer, failed):
            assert not failed, failed

            async def ours(subject: Subject, by: Scorer = scorer) -> Report:
                return await evaluate(by, variants, [subject], base="", where="", windows=Windows(WINDOW))

            apart = await compared(peft, Noting(scorer), ours, parts)
            batches = {name: best_batch(peft, parts[name]) for name in PARTS}
            taken: dict[str, list[tuple[float, float]]] = {name: [] for name in PARTS}
            for number in range(1, rounds + 1):
                for name, subject in subjects(size, number).items():
                    by_peft = partial(asyncio.to_thread, peft.run, subject, batches[name])
                    pair = (await timed(partial(ours, subject)), await timed(by_peft))
                    taken[name].append(pair)
                    say(f"round {number}, {name}: {pair[0]:.2f} s at once, {pair[1]:.2f} s by PEFT")
    return told(taken, batches, apart, parts) | {"adapters": count}


async def timed(work: Callable[[], Awaitable[Any]]) -> float:
    began = time.perf_counter()
    await work()
    return time.perf_counter() - began


def best_batch(peft: ByPeft, subject: Subject) -> int:
    """PEFT's fastest batch size, by one adapter."""
    seconds = {}
    names, peft.names = peft.names, peft.names[:1]
    for batch in BATCHES:
        began = time.perf_counter()
        peft.run(subject, batch)
        seconds[batch] = time.perf_counter() - began
    peft.names = names
    return min(seconds, key=seconds.__getitem__)


async def compared(
    peft: ByPeft, noting: Noting, ours: Callable[..., Awaitable[Report]], parts: Mapping[str, Subject]
) -> dict[str, float]:
    """How far both are apart; raises AssertionError where that is more than rounding."""
    names, peft.names = peft.names, peft.names[:: len(peft.names) - 1]  # two of them
    report = await ours(parts["text"], noting)
    by_peft = peft.run(parts["text"], 4)
    row = report.subject("text").row
    nats = max(abs(row(name).measures["nats_per_token"].value - value) for name, value in by_peft.items())
    assert nats < CLOSE, f"nats a token differ by {nats}"
    noting.scores.clear()
    report = await ours(parts["choices"], noting)
    task = parts["choices"]
    assert isinstance(task, Task)
    sums = 0.0
    for name, scores in peft.run(task, 4).items():
        mine = []
        for item in task.items:
            prompt = peft._prompt(task, item)
            assert isinstance(item, Choice)
            choices = [peft.tokenizer(text, add_special_tokens=False).input_ids for text in item.choices]
            mine += [noting.scores[name, (*prompt, *choice)] for choice in choices]
        sums = max(sums, *(abs(one - other) for one, other in zip(mine, scores, strict=True)))
        by_item = [scores[at : at + 4] for at in range(0, len(scores), 4)]
        right = sum(one.index(max(one)) == item.right for one, item in zip(by_item, task.items, strict=True))
        told = report.subject("choices").row(name).measures["accuracy"].value
        assert abs(told - right / len(task.items)) < 1e-9, f"{name}: accuracy {told}, by PEFT {right}"
    assert sums < 10 * CLOSE, f"log-likelihoods of choices differ by {sums}"
    await ours(parts["answers"], noting)
    task = parts["answers"]
    assert isinstance(task, Task)
    same = total = 0
    for name, given in peft.run(task, 4).items():
        for item, text in zip(task.items, given, strict=True):
            mine = noting.answers[name, tuple(peft._prompt(task, item))].strip()
            same, total = same + (mine == text), total + 1
    peft.names = names
    assert same >= 0.95 * total, f"{same} of {total} answers are the same"
    return {"nats_per_token": nats, "log_likelihood_of_a_choice": sums, "answers_equal": same, "answers": total}


def told(
    taken: Mapping[str, Sequence[tuple[float, float]]],
    batches: Mapping[str, int],
    apart: Mapping[str, float],
    parts: Mapping[str, Subject],
) -> dict[str, Any]:
    whole = [tuple(map(sum, zip(*pairs, strict=True))) for pairs in zip(*taken.values(), strict=True)]
    rows = {name: ratios(pairs) | {"peft_batch": batches[name]} for name, pairs in taken.items()}
    task, answers = parts["choices"], parts["answers"]
    assert isinstance(task, Task)
    assert isinstance(answers, Task)
    return {
        "threads": torch.get_num_threads(),
        "rank": RANK,
        "window": WINDOW,
        "choice_items": len(task.items),
        "shots": len(task.shots),
        "answer_items": len(answers.items),
        "apart": dict(apart),
        "parts": rows,
        "whole": ratios(whole),
        "rounds": {name: [list(pair) for pair in pairs] for name, pairs in taken.items()},
    }


def ratios(pairs: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Medians of both, and of PEFT's seconds over ours in the same round, with the least and the most."""
    found = sorted(theirs / ours for ours, theirs in pairs)
    return {
        "seconds": median(ours for ours, _ in pairs),
        "peft_seconds": median(theirs for _, theirs in pairs),
        "times_faster": median(found),
        "least": found[0],
        "most": found[-1],
    }


def show(found: Mapping[str, Any]) -> None:
    table = Table(title=f"{found['adapters']} adapters, {found['threads']} thread(s)", title_justify="left")
    for head in ("", "at once, s", "by PEFT, s", "times faster", "PEFT's batch"):
        table.add_column(head, justify="right" if head else "left")
    for name, row in [*found["parts"].items(), ("all of it", found["whole"])]:
        spread = f"{row['times_faster']:.2f} ({row['least']:.2f} to {row['most']:.2f})"
        table.add_row(
            name, f"{row['seconds']:.1f}", f"{row['peft_seconds']:.1f}", spread, str(row.get("peft_batch", ""))
        )
    Console().print(table)
    Console().print(f"apart: {found['apart']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="where the JSON goes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=float, default=1.0, help="of the texts and tasks")
    parser.add_argument("--adapters", type=int, default=ADAPTERS, help="two at least")
    given = parser.parse_args()
    origin = Origin.here(f"livery {__version__}")  # the machine's load before this run's own
    found = asyncio.run(measured(given.rounds, given.size, given.adapters))
    write_json(document("livery-eval-speed/2", origin, ["torch", "transformers", "peft"], found), given.out)
    show(found)


if __name__ == "__main__":
    main()
