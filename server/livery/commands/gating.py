"""`livery adapters activate … --if-better-than`: a version is served only where it measures better."""

from __future__ import annotations

import json
from dataclasses import dataclass

import msgspec
import typer

from livery.adapter_views import Json
from livery.commands import shown
from livery.commands.asking import CommandFailed
from livery.commands.backends import Backend, open_server
from livery.commands.eval_there import version_there
from livery.commands.evaluating import Asked, evaluated, read_subjects
from livery.commands.offline import Need, open_local
from livery.commands.reach import Reach, ask
from livery.evaluation.gate import Bar, Metric, Than, better, wanted
from livery.evaluation.pieces import Windows
from livery.evaluation.report import Report, VariantReport
from livery.evaluation.scorer import BASE_LABEL

NOT_BETTER = 3  # exit status: it was measured, and isn't


@dataclass(frozen=True, slots=True)
class Verdict:
    """`generation` is the name's when it was judged: whatever changed since, the judgement is of something else."""

    better: bool
    words: str
    generation: int
    version: int
    digest: str
    report: Report


def judged(reach: Reach, name: str, version: str, bar: Bar, quantization: str = "auto") -> Verdict:
    """Measure a version beside what it is to be better than. Changes nothing.

    Raises CommandFailed for names and versions that aren't there, files that nothing can be measured on, variants that
    gave no numbers, and a name that was changed between the two looks at it.
    """
    stands = standing(reach, name, version)
    if bar.than is Than.active and stands["active"] is None:
        raise CommandFailed(
            f"{name} has no active version that version {stands['version']} could be better than; compare it with the "
            "base (--if-better-than base), or activate it without --if-better-than"
        )
    if stands["active"] == stands["version"]:
        raise CommandFailed(f"version {stands['version']} of {name} is active already: nothing was measured or changed")
    texts, tasks = (bar.files, ()) if bar.metric is Metric.perplexity else ((), bar.files)
    subjects = read_subjects(texts, tasks, chat=bar.chat)
    asked = Asked((f"{name}@{stands['version']}",), subjects, Windows(), quantization=quantization)
    report = evaluated(reach, asked, None, None)
    mine, other = _sides(report, name, stands, bar)
    for one in (mine, other):
        if one.failed:
            raise CommandFailed(f"{one.label} gives no numbers to be compared: {one.failed}")
        for subject in report.subjects:
            if not subject.row(one.label).measures:
                raise CommandFailed(f"{one.label} gives no numbers on {subject.name} to be compared: {one.notes[0]}")
        for note in one.notes:
            shown.complain(f"{one.label}: {note}")
    found = [better(subject, mine.label, other.label, bar) for subject in report.subjects]
    return Verdict(
        all(passed for passed, _ in found),
        "; ".join(words for _, words in found),
        stands["generation"],
        stands["version"],
        stands["digest"],
        report,
    )


def _sides(report: Report, name: str, stands: Json, bar: Bar) -> tuple[VariantReport, VariantReport]:
    """The version that was meant, and what it is to be better than.

    Raises CommandFailed where the name, which was looked at again to be measured, no longer stood as before.
    """
    by_version = {one.version: one for one in report.variants if one.role != "base"}
    mine = by_version.get(stands["version"])
    other = report.variant(BASE_LABEL) if bar.than is Than.base else by_version.get(stands["active"])
    if mine is None or mine.role != "candidate" or other is None or other.role == "candidate":
        raise CommandFailed(
            f"{name} was changed meanwhile: version {stands['version']} was to be measured beside "
            f"{'the base' if bar.than is Than.base else 'version ' + str(stands['active'])}, and somebody activated "
            "another one or retired the name. Nothing was changed; give the command again"
        )
    return mine, other


def standing(reach: Reach, name: str, version: str) -> Json:
    """The version meant, which is active, and the name's generation, as of one look. Raises CommandFailed."""

    async def look(backend: Backend) -> Json:
        record = await backend.show(name)
        wanted = await version_there(backend, name, version)
        return {
            "generation": record["generation"],
            "active": record.get("version"),
            "version": wanted["version"],
            "digest": wanted["digest"],
        }

    if reach.data is None:
        return ask(open_server(reach.url, reach.key), look)
    return ask(open_local(reach.place(), Need(base=True)), look)


def activated_if_better(
    reach: Reach, name: str, version: str, bar: Bar, quantization: str, expected_generation: int | None = None
) -> None:
    """Activate a version that was judged better, unless its name was changed meanwhile; print the record.

    `quantization` is how a base that is loaded here is held.

    Raises CommandFailed, and typer.Exit with status 3 where it isn't better: nothing is changed then.
    """
    verdict = judged(reach, name, version, bar, quantization)
    if not verdict.better:
        if reach.as_json:
            typer.echo(json.dumps(_told(verdict), indent=2))
        shown.complain(f"{name} {verdict.version} is not {wanted(bar)}: {verdict.words}. Nothing was changed.")
        raise typer.Exit(NOT_BETTER)
    generation = verdict.generation if expected_generation is None else expected_generation

    async def activate(backend: Backend) -> Json:
        return {**await backend.activate(name, verdict.digest, generation), **_told(verdict)}

    def show(answer: Json) -> None:
        shown.say(f"{name} {verdict.version} is {wanted(bar)}: {verdict.words}")
        shown.record(answer)

    reach.run(activate, show, Need(base=True))


def _told(verdict: Verdict) -> Json:
    evaluation: Json = msgspec.to_builtins(verdict.report)
    return {"judgement": {"better": verdict.better, "words": verdict.words, "evaluation": evaluation}}
