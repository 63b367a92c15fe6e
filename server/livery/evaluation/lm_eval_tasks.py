"""lm-eval's tasks, for all variants in one batch. Needs the package `lm_eval`.

lm-eval asks one model at a time, and asks every model the same. So it is run once over a model that only writes down
what it is asked; then all variants answer everything side by side; then it is run for each variant over its answers,
which is when metrics, filters and few-shot examples are its own affair, as they should be.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from livery.chat_template import ChatTemplate, Conversation
from livery.evaluation import measured
from livery.evaluation.measured import Columns
from livery.evaluation.report import Measure, Row, SubjectReport
from livery.evaluation.scorer import BASE_LABEL, QuestionRefused, Scorer, Variant, VariantFailed
from livery.evaluation.subjects import SubjectUnusable

PACKAGE = "lm-eval"
_95 = 1.96  # standard errors on either side
_HELLO = ({"role": "user", "content": "Hello"},)
_BASE = Variant(BASE_LABEL, role="base")
_WORDLESS = (
    "lm-eval writes conversations once for all, as the base does: its own template and the words of its profile are no "
    "part of these scores"
)
_MOST = 256  # tokens of an answer, where its task doesn't say: lm-eval's own default
Kind = Literal["loglikelihood", "loglikelihood_rolling", "generate_until"]


@dataclass(frozen=True, slots=True)
class LmEvalTasks:
    """Tasks by name, from the package or from YAML files in `include`; `limit` items of each, `shots` examples."""

    names: tuple[str, ...]
    include: Path | None = None
    limit: int | None = None
    shots: int | None = None
    chat: bool = True


def require() -> None:
    """Raises SubjectUnusable where the package isn't installed."""
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        raise SubjectUnusable(
            f'--lm-eval needs the package {PACKAGE}, which isn\'t installed here: pip install "{PACKAGE}"'
        ) from None


@dataclass(frozen=True, slots=True)
class Request:
    """What lm-eval asks of a model; equal ones have equal answers."""

    kind: Kind
    arguments: str  # as JSON

    @classmethod
    def of(cls, kind: Kind, arguments: Sequence[Any]) -> Request:
        return cls(kind, json.dumps(list(arguments), sort_keys=True))


Render = Callable[[Sequence[Mapping[str, str]], bool], str]


async def reports(
    scorer: Scorer,
    variants: Sequence[Variant],
    tasks: LmEvalTasks,
    failed: dict[str, str],
    note: Callable[[str, Sequence[str]], None],
    run_all: Callable[[Sequence[Callable[[], Awaitable[None]]]], Awaitable[None]],
) -> list[SubjectReport]:
    """One for each task. A variant that fails is added to `failed`; what its numbers leave out is noted by its label.

    Raises SubjectUnusable.
    """
    require()
    render = await _template(scorer)
    asked: dict[Request, None] = {}  # in the order in which they come
    manager = await asyncio.to_thread(_manager, tasks)
    found = await asyncio.to_thread(_evaluated, tasks, manager, render, asked, None)
    answers: dict[str, dict[Request, Any]] = {one.label: {} for one in variants if one.label not in failed}

    refused: dict[str, str] = {}

    async def answer(variant: Variant, request: Request) -> None:
        if variant.label in failed or variant.label in refused:
            return
        try:
            answers[variant.label][request] = await _answered(scorer, variant, request)
        except QuestionRefused as why:
            refused.setdefault(variant.label, str(why))
        except VariantFailed as why:
            failed.setdefault(variant.label, str(why))

    going = [variant for variant in variants if variant.label in answers]
    await run_all([partial(answer, variant, request) for request in asked for variant in going])
    results = {}
    for variant in going:
        if variant.label in refused:
            note(variant.label, [f"lm-eval's tasks can't be asked of it: {refused[variant.label]}"])
        elif variant.label not in failed:
            if tasks.chat and variant.role != "base" and await _has_words(scorer, variant):
                note(variant.label, [_WORDLESS])
            results[variant.label] = await asyncio.to_thread(
                _evaluated, tasks, manager, render, asked, answers[variant.label]
            )
    return [_report(name, variants, results, tasks) for name in found["samples"]]


async def _has_words(scorer: Scorer, variant: Variant) -> bool:
    """Whether its conversations are written otherwise than the base's."""
    try:
        return await scorer.chat(variant, _HELLO) != await scorer.chat(_BASE, _HELLO)
    except VariantFailed:  # they aren't told to everybody
        return True


# -- how a model answers what lm-eval asks ---------------------------------------------------------------


async def _answered(scorer: Scorer, variant: Variant, request: Request) -> Any:  # noqa: ANN401
    arguments = json.loads(request.arguments)
    if request.kind == "loglikelihood":
        return await _loglikelihood(scorer, variant, *arguments)
    if request.kind == "loglikelihood_rolling":
        return await _rolling(scorer, variant, *arguments)
    return await _generated(scorer, variant, *arguments)


async def _loglikelihood(scorer: Scorer, variant: Variant, context: str, continuation: str) -> tuple[float, bool]:
    """As `TemplateLM._encode_pair`: encoded together, the context's last spaces being the continuation's; too much is
    cut off in front.
    """
    spaces = len(context) - len(context.rstrip())
    if spaces:
        context, continuation = context[:-spaces], context[-spaces:] + continuation
    if context:
        begins = await _begins(scorer, context)
        before = [*begins, *await scorer.encode(context)]
        whole = [*begins, *await scorer.encode(context + continuation)]
        tail = whole[len(before) :]
    else:
        before, tail = [await scorer.first_token()], await scorer.encode(continuation)
    tokens = [*before, *tail][-scorer.longest :]
    found = await scorer.likelihood(variant, tokens, len(tokens) - len(tail))
    return sum(found.logprobs), found.greedy


async def _rolling(scorer: Scorer, variant: Variant, text: str) -> float:
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    tokens, first = await scorer.encode(text), await scorer.first_token()
    windows = get_rolling_token_windows(tokens, first, scorer.longest - 1, 1)
    wanted = []
    for before, predicted in map(make_disjoint_window, windows):
        wanted.append(scorer.likelihood(variant, [*before, *predicted], len(before)))
    return sum(sum(one.logprobs) for one in await asyncio.gather(*wanted))


async def _generated(scorer: Scorer, variant: Variant, context: str, settings: Mapping[str, Any]) -> str:
    until = settings.get("until") or []
    stops = [until] if isinstance(until, str) else list(until)
    if settings.get("do_sample") or float(settings.get("temperature") or 0) > 0:
        raise SubjectUnusable("an lm-eval task samples its answers (do_sample); only greedy ones are evaluated")
    most = int(settings.get("max_gen_toks") or settings.get("max_new_tokens") or _MOST)
    tokens = [*await _begins(scorer, context), *await scorer.encode(context)]
    return await scorer.answer(variant, tokens[-(scorer.longest - most) :], most, stops)


async def _begins(scorer: Scorer, text: str) -> list[int]:
    """What the model expects before a text, unless that begins with it, as one from a chat template may."""
    begins = await scorer.beginning()
    return [] if begins and (await scorer.encode(text))[: len(begins)] == begins else begins


async def _template(scorer: Scorer) -> Render:
    """Renders a conversation as the base writes it."""
    source, named = await scorer.template()
    template = ChatTemplate(source, named) if source else None

    def render(messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        if template is None:
            raise SubjectUnusable("the base has no chat template; evaluate lm-eval's tasks with --plain")
        return template.render(Conversation(list(messages), add_generation_prompt=add_generation_prompt))

    return render


# -- lm-eval's side --------------------------------------------------------------------------------------


def _manager(tasks: LmEvalTasks) -> Any:  # noqa: ANN401
    """What finds tasks by name. Raises SubjectUnusable."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=None if tasks.include is None else str(tasks.include))
    for name in tasks.names:
        if name not in manager.all_tasks:
            raise SubjectUnusable(
                f"lm-eval has no task {name!r}; `lm-eval ls tasks` lists those there are, and --lm-eval-include names "
                "a folder with more"
            )
    return manager


def _evaluated(
    tasks: LmEvalTasks,
    manager: Any,  # noqa: ANN401
    render: Render,
    asked: dict[Request, None],
    answers: Mapping[Request, Any] | None,
) -> Any:  # noqa: ANN401
    """lm-eval's results over known answers; without any, what it asks is added to `asked`."""
    from lm_eval import simple_evaluate

    return simple_evaluate(
        model=_model(render, asked, answers),
        tasks=list(tasks.names),
        task_manager=manager,
        num_fewshot=tasks.shots,
        limit=tasks.limit,
        apply_chat_template=tasks.chat,
        bootstrap_iters=0,
    )


_NOTHING: Mapping[Kind, Any] = {"loglikelihood": (0.0, False), "loglikelihood_rolling": 0.0, "generate_until": ""}


def _model(render: Render, asked: dict[Request, None], answers: Mapping[Request, Any] | None) -> Any:  # noqa: ANN401
    """An lm-eval `LM` whose answers are known, or one that writes down what it is asked and says nothing."""
    from lm_eval.api.model import LM

    class Known(LM):  # type: ignore[misc]
        tokenizer_name = "livery"

        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            return self._all("loglikelihood", requests)

        def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
            return self._all("loglikelihood_rolling", requests)

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            return self._all("generate_until", requests)

        def apply_chat_template(
            self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
        ) -> str:
            return render(chat_history, add_generation_prompt)

        def chat_template(self, chat_template: bool | str = False) -> str:
            return "the base's"

        def _all(self, kind: Kind, requests: Sequence[Any]) -> list[Any]:
            keys = [Request.of(kind, request.args) for request in requests]
            if answers is None:
                asked.update(dict.fromkeys(keys))
                return [_NOTHING[kind]] * len(keys)
            return [answers[key] for key in keys]

    return Known()


def _report(name: str, variants: Sequence[Variant], results: Mapping[str, Any], tasks: LmEvalTasks) -> SubjectReport:
    """A task's metrics as lm-eval says them; differences over its items, where its metrics are means over these."""
    columns: dict[str, Columns] = {}
    primary, lower, items, shots = "", False, 0, 0
    for label, result in results.items():
        told = _told(result, name)
        first = _first_filter(result, name)
        samples = [one for one in result["samples"][name] if one.get("filter", first) == first]
        samples.sort(key=lambda one: one["doc_id"])
        primary, items = primary or next(iter(told)), len(samples)
        lower = result["higher_is_better"].get(name, {}).get(primary) is False
        shots = int(result["n-shot"].get(name) or 0)
        by_item = {
            metric: [float(sample[metric]) for sample in samples]
            for metric in told
            if all(isinstance(sample.get(metric), float | int) for sample in samples)
        }
        if primary in by_item:
            columns[label] = measured.of_items(by_item, primary)
    rows = {row.label: row for row in measured.rows(columns, variants, lower=lower)}
    return SubjectReport(
        name=name,
        kind="lm-eval",
        metric=primary,
        lower=lower,
        pieces=items,
        tokens=0,
        nbytes=0,
        rows=[_row(variant.label, results.get(variant.label), name, rows.get(variant.label)) for variant in variants],
        prompts="chat" if tasks.chat else "plain",
        shots=shots,
    )


def _first_filter(result: Any, name: str) -> str:  # noqa: ANN401
    """Of the ways in which a task looks at answers, the first."""
    return next((key.partition(",")[2] for key in result["results"][name] if "," in key), "none")


def _told(result: Any, name: str) -> dict[str, tuple[float, float | None]]:  # noqa: ANN401
    """Metrics with their standard errors: by name, those of a further filter with that behind it."""
    told, first, found = result["results"][name], _first_filter(result, name), {}
    for key, value in told.items():
        metric, comma, which = key.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, float | int):
            error = told.get(f"{metric}_stderr,{which}")
            found[metric if which == first else key] = (float(value), error if isinstance(error, float) else None)
    return found


def _row(label: str, result: Any, name: str, over_items: Row | None) -> Row:  # noqa: ANN401
    """lm-eval's numbers, with intervals over items where there are some, else of two standard errors."""
    if result is None:
        return Row(label)
    measures = {} if over_items is None else dict(over_items.measures)
    for metric, (value, error) in _told(result, name).items():
        around = None if error is None else (value - _95 * error, value + _95 * error)
        known = measures.get(metric)
        measures[metric] = Measure(value, around if known is None else known.interval)
    return Row(label, measures, [] if over_items is None else over_items.versus)
