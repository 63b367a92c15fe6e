"""`livery adapters eval`: perplexity and accuracy of several adapters at once, beside the base and what is active."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.console import Console

from livery.adapter_views import Json
from livery.commands.asking import CommandFailed
from livery.commands.held import Quantization, check_quantization
from livery.commands.progress import bar
from livery.commands.reach import REFUSALS, Reach, reaches, words
from livery_loadtest.writable import Unwritable, check_folder

if TYPE_CHECKING:
    from livery.evaluation.evaluate import Progress
    from livery.evaluation.lm_eval_tasks import LmEvalTasks
    from livery.evaluation.pieces import Windows
    from livery.evaluation.report import Report
    from livery.evaluation.subjects import Subject

RESULT, PAGE = "eval.json", "eval.html"
WINDOW = 512  # tokens


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be evaluated, on what, and how."""

    names: tuple[str, ...]
    subjects: tuple[Subject, ...]
    windows: Windows
    lm_eval: LmEvalTasks | None = None
    quantization: str = "auto"


@reaches
def evaluate(
    reach: Reach,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME[@VERSION]]...", help="Adapters, or versions of them; all active ones if none."),
    ] = None,
    text: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="A text to be predicted; several times for several.")
    ] = None,
    task: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Questions as JSON lines; several times for several.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The base model, loaded here, with --adapters.")] = None,
    adapters: Annotated[
        Path | None, typer.Option(metavar="DIR", help="With --model: a folder of adapters, or one adapter.")
    ] = None,
    window: Annotated[int, typer.Option(min=2, help="Tokens of a text that are read at once.")] = WINDOW,
    stride: Annotated[int, typer.Option(min=0, help="Tokens from one window to the next; 0: they don't overlap.")] = 0,
    tokens: Annotated[int | None, typer.Option(min=2, help="Read no more of each text than this.")] = None,
    shots: Annotated[int, typer.Option(min=0, help="Show the first items of each task as solved examples.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Ask no more items of each task than this.")] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Ask in plain text, and not as conversations by the chat template.")
    ] = False,
    lm_eval: Annotated[
        list[str] | None,
        typer.Option("--lm-eval", metavar="TASK", help="A task of lm-eval, where that is installed; several times."),
    ] = None,
    lm_eval_include: Annotated[
        Path | None, typer.Option("--lm-eval-include", metavar="DIR", help="A folder with more of its YAML tasks.")
    ] = None,
    quantization: Quantization = "auto",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help=f"Write {RESULT} and {PAGE} into this folder.")
    ] = None,
) -> None:
    """Measure adapters side by side with the base: perplexity on texts, accuracy on tasks."""
    from livery.evaluation.lm_eval_tasks import LmEvalTasks
    from livery.evaluation.pieces import Windows
    from livery.evaluation.table import print_report

    subjects = read_subjects(text or (), task or (), shots=shots, limit=limit, chat=not plain)
    tasks = LmEvalTasks(tuple(lm_eval or ()), lm_eval_include, limit, shots or None, not plain) if lm_eval else None
    if not subjects and tasks is None:
        raise typer.BadParameter(
            "give something to measure on: a text with --text FILE, questions with --task FILE, --lm-eval TASK"
        )
    try:
        check_folder("--out", out and out.expanduser())
    except Unwritable as refused:
        raise CommandFailed(str(refused)) from None
    asked = Asked(tuple(names or ()), subjects, Windows(window, stride, tokens), tasks, quantization)
    report = evaluated(reach, asked, model, adapters)
    reach.print(as_json(report), lambda _: print_report(report, Console()))
    if out is not None:
        write(report, out.expanduser())
    others = [variant for variant in report.variants if variant.role != "base"]
    if others and all(variant.failed for variant in others):
        raise typer.Exit(1)


def read_subjects(
    texts: Sequence[Path], tasks: Sequence[Path], *, shots: int = 0, limit: int | None = None, chat: bool = True
) -> tuple[Subject, ...]:
    """Raises CommandFailed."""
    from livery.evaluation.subjects import SubjectUnusable, read_task, read_text

    try:
        found: list[Subject] = [read_text(file) for file in texts]
        found += [read_task(file, shots=shots, limit=limit, chat=chat) for file in tasks]
    except SubjectUnusable as unusable:
        raise CommandFailed(str(unusable)) from None
    except OSError as error:
        raise CommandFailed(f"{error.filename} can't be read: {error.strerror}") from None
    return tuple(found)


def evaluated(reach: Reach, asked: Asked, model: str | None, adapters: Path | None) -> Report:
    """Where the options say. Raises CommandFailed, ModelNotFound, ModelRefused, typer.BadParameter."""
    if (model is None) != (adapters is None):
        raise typer.BadParameter("--model and --adapters go together: a base, and the folder with its adapters")
    if model is not None and (reach.data is not None or reach.url_given):
        raise typer.BadParameter("give either --model and --adapters, or --data, or --url")
    if asked.quantization != "auto" and model is None and reach.data is None:
        raise typer.BadParameter(
            "--quantization goes with --data or --model, which load the base here; a server computes on the base it has"
        )
    check_quantization(asked.quantization)
    if model is None and reach.data is None:
        return _run(partial(_there, reach, asked))
    from livery.commands import eval_found, eval_here

    if model is not None and adapters is not None:
        found = eval_found.in_folder(model, adapters.expanduser(), asked.names)
    else:
        found = eval_found.in_data(reach.place(), asked.names)
    found = replace(found, quantization=asked.quantization)
    return _run(partial(eval_here.evaluate_found, found, asked.subjects, asked.windows, asked.lm_eval))


async def _there(reach: Reach, asked: Asked, progress: Progress) -> Report:
    from livery.commands.eval_there import evaluate_there

    return await evaluate_there(
        reach.url, reach.key, asked.names, asked.subjects, asked.windows, asked.lm_eval, progress
    )


def _run(work: Callable[[Progress], Awaitable[Report]]) -> Report:
    """Raises CommandFailed."""
    from livery.evaluation.subjects import SubjectUnusable

    async def run() -> Report:
        return await work(tell)

    with bar("evaluating", 0, pieces=True) as tell:
        try:
            return asyncio.run(run())
        except SubjectUnusable as unusable:
            raise CommandFailed(str(unusable)) from None
        except REFUSALS as refused:
            raise CommandFailed(words(refused)) from refused


def as_json(report: Report) -> Json:
    """The document as --json prints it."""
    made: Json = msgspec.to_builtins(report)
    return made


def write(report: Report, folder: Path) -> None:
    """Raises CommandFailed."""
    from livery.evaluation.page import write_page

    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RESULT).write_text(report.to_json(), encoding="utf-8")
        write_page(report, folder / PAGE)
    except OSError as error:
        raise CommandFailed(f"--out {folder} can't be written: {error.strerror}") from None
