"""What a model makes of examples that it wasn't trained on: loss, perplexity, preferences. Needs torch.

Whose model that is doesn't matter here: it is asked for logits, so that PEFT's numbers and the engine's are the same
sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from livery.training.run_file import AnyRun, Dpo
from livery.training.tokens import IGNORED, Learnt, Pair

Logits = Callable[[list[int]], Tensor]  # ids -> [ids, vocabulary], on any device
Answers = list[tuple[float, float]]  # ln p of the better and of the worse answer, pair by pair


@dataclass(frozen=True, slots=True)
class Measured:
    """`loss` is in nats per token, or DPO's own; `preferred` is the share of pairs whose better one is likelier.

    `answers` are the pairs' numbers, for who compares others with them.
    """

    loss: float
    preferred: float | None = None
    margin: float | None = None
    answers: Answers | None = None

    def told(self) -> dict[str, float]:
        """As it goes into records."""
        if self.preferred is None:
            return {"loss": self.loss, "perplexity": math.exp(min(self.loss, 700.0))}
        found = {"loss": self.loss, "preferred": self.preferred}
        return found if self.margin is None else {**found, "margin": self.margin}


def measure(
    run: AnyRun,
    logits: Logits,
    items: Sequence[Learnt | Pair],
    reference: Answers | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Measured:
    """`reference` are the base's numbers for the same pairs; without them the model is its own reference."""
    if isinstance(run, Dpo):
        return _pairs(run, logits, items, reference, progress)
    loss, tokens = 0.0, 0
    for done, item in enumerate(items, 1):
        assert isinstance(item, Learnt)
        ids, labels = item.ids, torch.tensor(item.labels[1:])
        rows = _rows(logits, ids)
        kept = labels != IGNORED
        loss -= float(rows[kept].log_softmax(-1).gather(1, labels[kept][:, None]).double().sum())
        tokens += int(kept.sum())
        progress(done)
    return Measured(loss / tokens)


def _pairs(
    run: Dpo, logits: Logits, items: Sequence[Learnt | Pair], reference: Answers | None, progress: Callable[[int], None]
) -> Measured:
    answers: Answers = []
    for done, item in enumerate(items, 1):
        assert isinstance(item, Pair)
        answers.append((_answer(logits, item.prompt, item.chosen), _answer(logits, item.prompt, item.rejected)))
        progress(done)
    return of_pairs(run, items, answers, reference)


def of_pairs(run: Dpo, items: Sequence[Learnt | Pair], answers: Answers, reference: Answers | None = None) -> Measured:
    """As `measure`, where the answers' numbers are known."""
    before = reference or answers
    margins, losses = [], []
    for item, (chosen, rejected), (its_chosen, its_rejected) in zip(items, answers, before, strict=True):
        assert isinstance(item, Pair)
        better, worse = chosen - its_chosen, rejected - its_rejected
        margins.append(run.beta * (better - worse))
        losses.append(_dpo_loss(run, better, worse, item))
    return Measured(
        sum(losses) / len(losses),
        sum(chosen > rejected for chosen, rejected in answers) / len(answers),
        sum(margins) / len(margins),
        answers,
    )


def _dpo_loss(run: Dpo, better: float, worse: float, pair: Pair) -> float:
    """As TRL computes them; IPO's is per token of each answer."""
    match run.loss:
        case "sigmoid":
            return -float(logsigmoid(torch.tensor(run.beta * (better - worse), dtype=torch.float64)))
        case "hinge":
            return max(0.0, 1 - run.beta * (better - worse))
    per_token = better / len(pair.chosen) - worse / len(pair.rejected)
    return (per_token - 1 / (2 * run.beta)) ** 2


def _answer(logits: Logits, prompt: list[int], answer: list[int]) -> float:
    """ln p of an answer's tokens behind their prompt."""
    rows = _rows(logits, [*prompt, *answer])[len(prompt) - 1 :]
    return float(rows.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).double().sum())


def _rows(logits: Logits, ids: list[int]) -> Tensor:
    """What each token but the last says of the next one: [ids - 1, vocabulary], fp32 on the CPU."""
    with torch.no_grad():
        return logits(ids[:-1]).float().cpu()
