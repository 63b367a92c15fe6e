"""Measures variants on subjects: everything is asked for side by side, so that an engine computes all in one batch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial

from livery import __version__
from livery.evaluation import measured
from livery.evaluation.greedy import notes
from livery.evaluation.lm_eval_tasks import LmEvalTasks, reports
from livery.evaluation.measured import ACCURACY, ACCURACY_NORM, EXACT, LOWER, Columns
from livery.evaluation.pieces import PLAIN_STOP, AskedItem, Piece, Windows, as_asked, cut
from livery.evaluation.report import PERPLEXITY, Report, SubjectReport, VariantReport
from livery.evaluation.scorer import Likelihood, QuestionRefused, Scorer, Variant, VariantFailed
from livery.evaluation.subjects import Answer, Choice, Item, Subject, Task, Text

AT_ONCE = 256  # questions under way: more than an engine computes together, so that it never waits for more

Progress = Callable[[int, int], None]  # pieces done, of all variants together; pieces in all


@dataclass(frozen=True, slots=True)
class _Piece:
    """One piece of one subject."""

    subject: int
    place: int
    piece: Piece | Item


@dataclass(slots=True)
class _Run:
    """What came of it so far: by subject and variant, each piece's result in its place."""

    scorer: Scorer
    subjects: Sequence[Subject]
    results: dict[tuple[int, str], dict[int, object]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    refused: dict[tuple[int, str], str] = field(default_factory=dict)  # by subject and variant, why it isn't asked
    notes: dict[str, list[str]] = field(default_factory=dict)

    def note(self, label: str, notes: Sequence[str]) -> None:
        self.notes.setdefault(label, []).extend(notes)


async def evaluate(
    scorer: Scorer,
    variants: Sequence[Variant],
    subjects: Sequence[Subject],
    *,
    base: str,
    where: str,
    base_digest: str = "",
    failed: Sequence[tuple[Variant, str]] = (),
    windows: Windows = Windows(),  # noqa: B008  (frozen)
    lm_eval: LmEvalTasks | None = None,
    progress: Progress = lambda done, total: None,
) -> Report:
    """All variants on all subjects. `failed` are variants that can't even be asked, and why.

    A variant that fails midway has no numbers, and the others go on. Raises SubjectUnusable.
    """
    run = _Run(scorer, subjects, failed={variant.label: why for variant, why in failed})
    pieces = await _cut(scorer, subjects, windows)
    asked = [variant for variant in variants if variant.label not in run.failed]
    began = time.monotonic()
    total, done = len(pieces) * len(asked), 0
    progress(done, total)

    async def one(variant: Variant, piece: _Piece) -> None:
        nonlocal done
        await _ask(run, variant, piece)
        done += 1
        progress(done, total)

    # Variants side by side within a piece: neighbours in the engine's queue, and so in its batches.
    await run_all([partial(one, variant, piece) for piece in pieces for variant in asked])
    more = [] if lm_eval is None else await reports(scorer, variants, lm_eval, run.failed, run.note, run_all)
    seconds = time.monotonic() - began
    found = [_subject(run, place, pieces, variants, windows) for place in range(len(subjects))] + more
    _look_back(run, asked, found)
    return Report(
        livery=__version__,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        base=base,
        base_digest=base_digest,
        where=where,
        seconds=round(seconds, 3),
        variants=[
            VariantReport(
                one.label,
                one.role,
                one.name,
                one.version,
                one.digest,
                run.failed.get(one.label, ""),
                [] if one.label in run.failed else run.notes.get(one.label, []),
            )
            for one in variants
        ],
        subjects=found,
    )


def _look_back(run: _Run, asked: Sequence[Variant], found: Sequence[SubjectReport]) -> None:
    """Note what profiles made of the answers, and what couldn't be asked: who couldn't be asked anything failed."""
    tasks = [subject for subject in run.subjects if isinstance(subject, Task)]
    for variant in asked:
        run.note(variant.label, notes(run.scorer.bounds(variant), tasks))
    for (place, label), why in sorted(run.refused.items()):
        run.note(label, [f"{run.subjects[place].name} can't be asked of it: {why}"])
        if not any(subject.row(label).measures for subject in found):
            run.failed.setdefault(label, why)


async def _cut(scorer: Scorer, subjects: Sequence[Subject], windows: Windows) -> list[_Piece]:
    found = []
    for place, subject in enumerate(subjects):
        parts: Sequence[Piece | Item]
        parts = await cut(scorer, subject, windows) if isinstance(subject, Text) else subject.items
        found += [_Piece(place, at, part) for at, part in enumerate(parts)]
    return found


async def run_all(work: Sequence[Callable[[], Awaitable[None]]]) -> None:
    """Do all of it, so much at once, begun in order. The first error ends the rest."""
    left = iter(work)

    async def take() -> None:
        for one in left:
            await one()

    tasks = [asyncio.create_task(take()) for _ in range(min(AT_ONCE, len(work)))]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _ask(run: _Run, variant: Variant, one: _Piece) -> None:
    if variant.label in run.failed or (one.subject, variant.label) in run.refused:
        return
    try:
        if isinstance(one.piece, Piece):
            found: object = await run.scorer.likelihood(variant, one.piece.tokens, one.piece.start)
        else:
            task = run.subjects[one.subject]
            assert isinstance(task, Task)
            asked = await as_asked(run.scorer, variant, task, one.piece)
            found = await _item(run.scorer, variant, task, one.piece, asked)
    except QuestionRefused as refused:
        run.refused.setdefault((one.subject, variant.label), str(refused))
        return
    except VariantFailed as failed:
        run.failed.setdefault(variant.label, str(failed))
        return
    run.results.setdefault((one.subject, variant.label), {})[one.place] = found


async def _item(scorer: Scorer, variant: Variant, task: Task, item: Item, asked: AskedItem) -> list[Likelihood] | str:
    """How likely each choice is, or the answer."""
    if isinstance(item, Answer):
        stops = () if task.chat else (PLAIN_STOP,)
        return await scorer.answer(variant, asked.prompt, item.max_tokens, stops)
    start = len(asked.prompt)
    wanted = [scorer.likelihood(variant, (*asked.prompt, *choice), start) for choice in asked.choices]
    return list(await asyncio.gather(*wanted))


# -- what the answers come to ----------------------------------------------------------------------------


def _subject(
    run: _Run, place: int, pieces: Sequence[_Piece], variants: Sequence[Variant], windows: Windows
) -> SubjectReport:
    subject = run.subjects[place]
    mine = [one for one in pieces if one.subject == place]
    found: dict[str, Columns] = {}
    tokens = nbytes = 0
    for variant in variants:
        results = run.results.get((place, variant.label), {})
        if variant.label in run.failed or len(results) < len(mine):
            continue
        ordered = [results[one.place] for one in mine]
        if isinstance(subject, Text):
            scores = [one for one in ordered if isinstance(one, Likelihood)]
            counts, sizes = [len(one.logprobs) for one in scores], [one.nbytes for one in scores]
            found[variant.label] = measured.of_text([-sum(one.logprobs) for one in scores], counts, sizes)
            tokens, nbytes = sum(counts), sum(sizes)
        else:
            found[variant.label] = _scored(subject, ordered)
    if isinstance(subject, Text):
        kind, metric = "text", PERPLEXITY
    else:
        kind, metric = subject.kind, ACCURACY if subject.kind == "choice" else EXACT
    is_task = isinstance(subject, Task)
    return SubjectReport(
        name=subject.name,
        kind="text" if kind == "text" else "choice" if kind == "choice" else "answer",
        metric=metric,
        lower=metric in LOWER,
        pieces=len(mine),
        tokens=tokens,
        nbytes=nbytes,
        rows=measured.rows(found, variants),
        window=0 if is_task else windows.size,
        prompts=("chat" if subject.chat else "plain") if isinstance(subject, Task) else "",
        shots=len(subject.shots) if isinstance(subject, Task) else 0,
    )


def _scored(task: Task, results: Sequence[object]) -> Columns:
    if task.kind == "answer":
        right = [float(str(given).strip() in item.right) for given, item in zip(results, _answers(task), strict=True)]
        return measured.of_items({EXACT: right}, EXACT)
    plain, normed = [], []
    for given, item in zip(results, _choices(task), strict=True):
        assert isinstance(given, list)
        sums = [sum(one.logprobs) for one in given]
        by_length = [total / len(text) for total, text in zip(sums, item.choices, strict=True)]
        plain.append(float(sums.index(max(sums)) == item.right))
        normed.append(float(by_length.index(max(by_length)) == item.right))
    return measured.of_items({ACCURACY: plain, ACCURACY_NORM: normed}, ACCURACY)


def _answers(task: Task) -> Iterator[Answer]:
    return (item for item in task.items if isinstance(item, Answer))


def _choices(task: Task) -> Iterator[Choice]:
    return (item for item in task.items if isinstance(item, Choice))
