"""`livery adapters merge`: several adapters made into one ahead of time, in a data folder or as a directory."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from livery.adapter_views import Json
from livery.adding import AddOptions
from livery.commands import shown
from livery.commands.adapters_change import weighted
from livery.commands.asking import CommandFailed
from livery.commands.backends import new_directory
from livery.commands.files_here import files_here
from livery.commands.offline import LocalBackend, Need
from livery.commands.progress import bar
from livery.commands.reach import MaxAdapterBytes, MaxRank, Reach, reaches
from livery.lease import task_of
from livery.proving import reference
from livery_adapters.fetching import copy_directory
from livery_adapters.refusal import DEFAULT_LIMITS, TAKEN_IN, AdapterRefused, Limits
from livery_adapters.registry import NamedVersion
from livery_adapters.store import Incoming

if TYPE_CHECKING:
    from livery_adapters.making.merge import MergeReport


class Method(StrEnum):
    """How the ΔW of several adapters become one; livery_adapters.making.combine says what each does."""

    linear = "linear"
    ties = "ties"
    dare_linear = "dare_linear"
    dare_ties = "dare_ties"


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to merge and how. `parts`: names, with @VERSION or without, and their weights."""

    parts: tuple[tuple[str, float], ...]
    method: Method
    density: float
    rank: int | None
    seed: int


@reaches
def merge(
    reach: Reach,
    name: Annotated[str, typer.Argument(help="What the merged adapter is called.")],
    parts: Annotated[list[str], typer.Argument(metavar="ADAPTER[@VERSION][=WEIGHT]...", help="What to merge.")],
    method: Annotated[Method, typer.Option(help="How: a plain sum, or one that settles conflicts.")] = Method.linear,
    density: Annotated[
        float, typer.Option(metavar="SHARE", help="Of each ΔW's entries, kept by all methods but linear.")
    ] = 1.0,
    rank: Annotated[int | None, typer.Option(min=1, help="Rank of the result; else the sum of the parts'.")] = None,
    seed: Annotated[int, typer.Option(help="Decides what DARE drops.")] = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write a new directory and leave the data folder as it is.")
    ] = None,
    no_activate: Annotated[bool, typer.Option("--no-activate", help="Keep serving the version before.")] = False,
    model: Annotated[str | None, typer.Option(help="The base model, if its server's name for it isn't here.")] = None,
    max_rank: MaxRank = DEFAULT_LIMITS.max_rank,
    max_adapter_bytes: MaxAdapterBytes = DEFAULT_LIMITS.max_weight_bytes,
) -> None:
    """Merge adapters of a data folder into one plain LoRA (with --data; loads the model here)."""
    recipe = Recipe(tuple(weighted(part, negative=True) for part in parts), method, density, rank, seed)

    out = None if out is None else new_directory(out)

    async def made(backend: LocalBackend) -> Json:
        if out is not None:
            report = await _merge(backend, recipe, await _versions(backend, recipe), out, TAKEN_IN)
            return {"directory": str(out), "merge": _told(report)}
        return await _taken(backend, name, recipe, AddOptions(activate=not no_activate))

    limits = Limits(max_rank=max_rank, max_weight_bytes=max_adapter_bytes)
    show = _written if out is not None else shown.record
    reach.run_here(made, show, Need(base=True, proves=True), model=model, limits=limits)


async def _taken(backend: LocalBackend, name: str, recipe: Recipe, options: AddOptions) -> Json:
    """Merge, and take the result in as a version that knows its parents."""
    versions = await _versions(backend, recipe)
    parents = [(version.facts.digest, weight) for version, (_, weight) in zip(versions, recipe.parts, strict=True)]
    with tempfile.TemporaryDirectory(prefix="livery-merge-") as scratch:
        merged = Path(scratch) / "merged"
        report = await _merge(backend, recipe, versions, merged, backend.library.limits)

        async def fill(incoming: Incoming) -> str:
            await asyncio.to_thread(copy_directory, merged, incoming, [merged])
            return " + ".join(f"{weight:g} × {part}" for part, weight in recipe.parts)

        record = await backend.take(name, fill, "merge", options, parents)
    return {**record, "merge": _told(report)}


async def _versions(backend: LocalBackend, recipe: Recipe) -> list[NamedVersion]:
    """The versions that are merged. Raises RegistryError, AdapterRefused, CommandFailed."""
    registry, base = backend.library.registry, backend.library.base
    found = []
    for part, _ in recipe.parts:
        name, at, wanted = part.partition("@")
        if at:
            version = await asyncio.to_thread(registry.version, name, wanted)
        else:
            active = (await asyncio.to_thread(registry.get, name)).active
            if active is None:
                raise CommandFailed(f"{name!r} has no active version; name one, as in {name}@1")
            version = active
        if version.facts.base_digest != base.digest:
            raise AdapterRefused(
                "wrong_base", f"{part} was taken in for another base model than {base.name}; add it again"
            )
        if version.facts.weightless:
            raise AdapterRefused(
                "not_mergeable", f"{part} is a profile over the base and has no weights to merge; leave it out"
            )
        if version.facts.invocation:
            raise AdapterRefused(
                "not_mergeable",
                f"{part} is an activated adapter (aLoRA): it acts on a part of a prompt only, which a merged one "
                "can't; leave it out",
            )
        found.append(version)
    tasks = {task_of(version.facts): part for version, (part, _) in zip(found, recipe.parts, strict=True)}
    if len(tasks) > 1:
        raise AdapterRefused(
            "not_mergeable",
            f"{' and '.join(tasks.values())} were trained for different tasks ({', '.join(tasks)}), and a merged "
            "adapter has one; merge those of the same task",
        )
    return found


async def _merge(
    backend: LocalBackend, recipe: Recipe, versions: Sequence[NamedVersion], out: Path, limits: Limits
) -> MergeReport:
    async with files_here(backend.library, versions):
        return await asyncio.to_thread(_merge_here, backend, recipe, versions, out, limits)


def _merge_here(
    backend: LocalBackend, recipe: Recipe, versions: Sequence[NamedVersion], out: Path, limits: Limits
) -> MergeReport:
    """Convert the parts for the base in this process and write their merge to the new directory `out`. Blocks."""
    from livery.engine.stored import stored_manifest
    from livery_adapters.formats import convert  # these need torch
    from livery_adapters.making.merge import MergePart
    from livery_adapters.making.merge import merge as merged

    assert backend.prover is not None
    weights = backend.prover.runner.weights
    parts = []
    for version, (_, weight) in zip(versions, recipe.parts, strict=True):
        candidate = backend.library.candidate(version.facts)
        (stored,) = reference(candidate).parts
        manifest = stored_manifest(stored, backend.library.base)
        converted = convert(candidate.path, manifest, weights, candidate.approximate)
        # Of the same files at another rank it is another adapter.
        parts.append(MergePart(replace(converted, digest=candidate.digest), weight))
    with bar("merging modules", 0, pieces=True) as tell:
        return merged(
            parts,
            weights,
            recipe.method.value,
            density=recipe.density,
            rank=recipe.rank,
            seed=recipe.seed,
            out=out,
            base_name=backend.library.base.name,
            task=task_of(versions[0].facts),
            limits=limits,
            progress=tell,
        )


def _told(report: MergeReport) -> Json:
    """JSON of what was merged, without the modules."""
    facts = {name: value for name, value in asdict(report).items() if name != "modules"}
    parents = [{"digest": digest, "weight": weight} for digest, weight in report.parents]
    return {**facts, "parents": parents, "modules": len(report.modules)}


def _written(answer: Json) -> None:
    merged = answer["merge"]
    shown.print_facts({"directory": answer["directory"], "modules": merged["modules"], **shown.merged(merged)})
