"""Is a fast answer still the right one: greedy answers alone against the same answers under load.

The same fixed prompt goes to every model of a target twice: first with nothing else running, then among the
other requests of a full closed loop. Where two targets serve the same models, their answers alone are compared too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from livery_loadtest.client import Record
from livery_loadtest.closed_loop import Send, closed_loop
from livery_loadtest.workload import Phase, Request, Scenario, Workload, round_requests

FIXED_PROMPT = "The best way to spend a long and quiet evening at home with a good friend is"


@dataclass(frozen=True, slots=True)
class Difference:
    """One model whose answer changed; `at_character` is where the two texts part."""

    model: str
    alone: str
    under_load: str
    at_character: int


@dataclass(frozen=True, slots=True)
class CheckResult:
    """`equal` of `compared` answers were the same alone and under load; `failed` got no answer at all.

    `distinct_answers` says how many different texts the models gave alone: one text from every adapter would
    mean that no adapter was applied. `same_as` counts, per other target, the equal answers, and `alike` is how much
    of an answer it shares up to the first difference, on average: a peer that rounds otherwise parts at near ties.
    """

    target: str
    compared: int
    equal: int
    failed: int
    distinct_answers: int
    differences: tuple[Difference, ...]
    answers: dict[str, str]
    same_as: dict[str, int]
    alike: dict[str, float] = field(default_factory=dict)


async def check_target(
    target: str,
    send: Send,
    models: Sequence[str],
    workload: Workload,
    on_done: Callable[[], None],
) -> CheckResult:
    """Ask every model alone, then again among `workload.requests` others. `models` has the base first."""
    probes = [Request(model, FIXED_PROMPT, workload.max_tokens) for model in models]
    alone = await closed_loop(send, probes, 1, on_done)
    scenario = Scenario.MIXED if len(models) > 1 else Scenario.BASE
    others = round_requests(workload, scenario, models[0], models[1:], Phase.CHECK, 0)
    mixed, places = _interleave(probes, others)
    records = await closed_loop(send, mixed, workload.streams, on_done)
    return _compare(target, alone, [records[place] for place in places])


def check_request_count(models: int, workload: Workload) -> int:
    """How many requests check_target sends for one target."""
    return 2 * models + workload.requests


def _interleave(probes: Sequence[Request], others: Sequence[Request]) -> tuple[list[Request], list[int]]:
    """Spread the probes evenly among the others; also where they ended up."""
    total = len(probes) + len(others)
    places = [index * total // len(probes) for index in range(len(probes))]
    rest = iter(others)
    probe = iter(probes)
    return [next(probe) if index in set(places) else next(rest) for index in range(total)], places


def _compare(target: str, alone: Sequence[Record], loaded: Sequence[Record]) -> CheckResult:
    pairs = list(zip(alone, loaded, strict=True))
    answered = [(a, b) for a, b in pairs if a.error is None and b.error is None]
    differences = tuple(
        Difference(a.model, a.text, b.text, _parting(a.text, b.text)) for a, b in answered if a.text != b.text
    )
    return CheckResult(
        target=target,
        compared=len(answered),
        equal=len(answered) - len(differences),
        failed=len(pairs) - len(answered),
        distinct_answers=len({record.text for record in alone if record.error is None}),
        differences=differences,
        answers={record.model: record.text for record in alone if record.error is None},
        same_as={},
    )


def _parting(left: str, right: str) -> int:
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))


def compare_targets(results: Sequence[CheckResult], labels: Mapping[str, Sequence[str]]) -> list[CheckResult]:
    """Add to each result how many answers equal those of every other target.

    `labels` has each target's models in order, the base first: bases are compared with each other even where
    their names differ, adapters by name.
    """
    named = {
        result.target: {
            ("" if model == labels[result.target][0] else model): text for model, text in result.answers.items()
        }
        for result in results
    }
    compared = []
    for result in results:
        mine = named[result.target]
        others = {name: texts for name, texts in named.items() if name != result.target}
        shared = {
            name: [_alike(text, texts[model]) for model, text in mine.items() if model in texts]
            for name, texts in others.items()
        }
        compared.append(
            replace(
                result,
                same_as={
                    name: sum(text == texts.get(model) for model, text in mine.items())
                    for name, texts in others.items()
                },
                alike={name: sum(parts) / len(parts) for name, parts in shared.items() if parts},
            )
        )
    return compared


def _alike(left: str, right: str) -> float:
    """The share of two texts up to where they part."""
    longer = max(len(left), len(right))
    return _parting(left, right) / longer if longer else 1.0
