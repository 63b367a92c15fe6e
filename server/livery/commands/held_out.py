"""What versions of an adapter make of held-out examples, each computed as it is served."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial

from livery.commands import eval_here, eval_there
from livery.commands.asking import CommandFailed
from livery.commands.eval_found import in_data
from livery.commands.eval_here import Found
from livery.commands.progress import Tell, bar
from livery.commands.reach import REFUSALS, Reach, words
from livery.engine.base import EngineDead, ModelRefused
from livery.evaluation.evaluate import run_all
from livery.evaluation.scorer import Scorer, Variant, VariantFailed
from livery.evaluation.subjects import SubjectUnusable
from livery.training.measure import Answers, of_pairs
from livery.training.run_file import AnyRun, Dpo
from livery.training.tokens import IGNORED, Learnt, Pair

Items = Sequence[Learnt | Pair]


class Unmeasured(Exception):
    """Two versions can't be compared; the message says why."""


@dataclass(frozen=True, slots=True)
class Compared:
    """A version's loss on what was held out, and that of the version its name serves: nats a token, or DPO's own."""

    loss: float
    active_loss: float

    @property
    def is_better(self) -> bool:
        return self.loss < self.active_loss


def compare(reach: Reach, name: str, version: int, run: AnyRun, items: Items) -> Compared:
    """A version beside the active one of its name, by the server or over the data folder that has them.

    Raises Unmeasured.
    """
    if not items:
        raise Unmeasured("nothing was held out")
    asked = [f"{name}@{version}"]
    try:
        opened = _there(reach, asked) if reach.data is None else _here(_found(reach, asked, run))
        with bar("measuring it and the active version", 0, pieces=True) as told:
            return asyncio.run(_compared(opened, version, run, items, told))
    except (*REFUSALS, CommandFailed, VariantFailed, SubjectUnusable, ModelRefused, EngineDead) as failed:
        raise Unmeasured(words(failed)) from failed


def _found(reach: Reach, asked: Sequence[str], run: AnyRun) -> Found:
    """Over the base as the run had it: nobody else knows here in what form it is served. Raises CommandFailed."""
    return replace(in_data(reach.place(), asked), quantization=run.quantization)


Opened = AbstractAsyncContextManager[tuple[Scorer, Sequence[Variant]]]


@asynccontextmanager
async def _there(reach: Reach, asked: Sequence[str]) -> AsyncIterator[tuple[Scorer, Sequence[Variant]]]:
    """Raises CommandFailed, AdapterRefused."""
    async with eval_there.scoring(reach.url, reach.key, asked) as (scorer, variants, _):
        yield scorer, variants


@asynccontextmanager
async def _here(found: Found) -> AsyncIterator[tuple[Scorer, Sequence[Variant]]]:
    """Raises VariantFailed, ModelRefused, EngineDead."""
    async with eval_here.scoring(found) as (scorer, failed):
        for variant, why in failed:
            raise VariantFailed(f"{variant.label}: {why}")
        yield scorer, [eval_here.BASE, *(one.variant for one in found.adapters)]


async def _compared(opened: Opened, version: int, run: AnyRun, items: Items, told: Tell) -> Compared:
    """Raises Unmeasured, VariantFailed and what opening raises."""
    async with opened as (scorer, variants):
        (mine,) = (one for one in variants if one.version == version)
        (active,) = (one for one in variants if one.role == "active")
        (base,) = (one for one in variants if one.role == "base")
        likelihoods = _Likelihoods(scorer, told)
        if isinstance(run, Dpo):
            reference, one, two = await likelihoods.of_pairs((base, mine, active), items)
            losses = [of_pairs(run, items, answers, reference).loss for answers in (one, two)]
        else:
            losses = await likelihoods.per_token((mine, active), items)
    if not all(map(math.isfinite, losses)):
        raise Unmeasured(f"the losses are {losses[0]} and {losses[1]}")
    return Compared(*losses)


class _Likelihoods:
    """Asks for all examples of all variants side by side."""

    def __init__(self, scorer: Scorer, told: Tell) -> None:
        self._scorer = scorer
        self._told = told

    async def per_token(self, variants: Sequence[Variant], items: Items) -> list[float]:
        """Each variant's loss in nats a learnt token."""
        learnt = [item for item in items if isinstance(item, Learnt)]
        places = [[at for at, label in enumerate(item.labels) if at and label != IGNORED] for item in learnt]
        asked = [(item.ids, found[0]) for item, found in zip(learnt, places, strict=True) if found]
        wanted = [[at - found[0] for at in found] for found in places if found]
        losses = []
        for rows in await self._of(variants, asked):
            kept = [row[at] for row, ats in zip(rows, wanted, strict=True) for at in ats]
            losses.append(-math.fsum(kept) / len(kept))
        return losses

    async def of_pairs(self, variants: Sequence[Variant], items: Items) -> list[Answers]:
        """Each variant's ln p of the better and of the worse answers."""
        asked = [
            ([*item.prompt, *answer], len(item.prompt))
            for item in items
            if isinstance(item, Pair)
            for answer in (item.chosen, item.rejected)
        ]
        sums = [[math.fsum(row) for row in rows] for rows in await self._of(variants, asked)]
        return [list(zip(one[::2], one[1::2], strict=True)) for one in sums]

    async def _of(
        self, variants: Sequence[Variant], asked: Sequence[tuple[list[int], int]]
    ) -> list[list[Sequence[float]]]:
        """By variant, then by sequence: ln p of its tokens from where it is asked for. Raises VariantFailed."""
        found: dict[tuple[int, int], Sequence[float]] = {}
        total = len(variants) * len(asked)

        async def one(row: int, place: int) -> None:
            found[row, place] = (await self._scorer.likelihood(variants[row], *asked[place])).logprobs
            self._told(len(found), total)

        await run_all([partial(one, row, place) for place in range(len(asked)) for row in range(len(variants))])
        return [[found[row, place] for place in range(len(asked))] for row in range(len(variants))]
