"""Evaluation in this machine's own engine: a base, adapters as directories or from a data folder, no server.

    report = evaluate_directories("smollm2-135m-instruct", {"mine": Path("out")}, texts=[Path("held-out.txt")])
    report.subject("held-out.txt").row("mine").measures["perplexity"].value

The engine is the one that `livery serve` has, in a process of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from livery.adapter_text import AdapterText
from livery.commands.eval_files import check_invocation, in_directory
from livery.commands.shown import stage
from livery.engine.base import AdapterPart, AdapterRef, EngineConfig, EngineInfo
from livery.engine.client import EngineClient
from livery.evaluation.by_engine import EngineScorer, Voice
from livery.evaluation.evaluate import Progress, evaluate
from livery.evaluation.lm_eval_tasks import LmEvalTasks
from livery.evaluation.pieces import Windows
from livery.evaluation.report import Report
from livery.evaluation.scorer import BASE_LABEL, Variant, VariantFailed
from livery.evaluation.subjects import Subject, read_task, read_text
from livery.foreign_templates import TemplateWorkers
from livery.models import ResolvedModel, base_digest, resolve_model
from livery.text import Tokenizer
from livery_adapters.profile import EMPTY, Profile, ProfileInvalid, recorded_profile
from livery_adapters.prover import Candidate
from livery_adapters.refusal import AdapterRefused
from livery_adapters.registry import VersionFacts
from livery_adapters.store import Hold

BASE = Variant(BASE_LABEL, role="base")
BLOCK = 8  # tokens
WHERE = "an engine on this machine"
_PROGRESS: Progress = lambda done, total: None  # noqa: E731


@dataclass(frozen=True, slots=True)
class Here:
    """An adapter whose files are on this machine: in a directory with its profile.yaml, or (`stored`) taken in by a
    registry, which has its `profile`.

    `hold` keeps stored files until the engine has ended; `gone` says why there are none.
    """

    variant: Variant
    directory: Path
    stored: Candidate | None = None
    profile: Profile = EMPTY
    weightless: bool = False  # a profile over the base
    hold: Hold | None = None
    gone: str = ""

    @classmethod
    def recorded(cls, variant: Variant, candidate: Candidate, facts: VersionFacts) -> Here:
        """Raises AdapterRefused for a profile that can't be read."""
        try:
            return cls(variant, candidate.path, candidate, recorded_profile(facts.profile), facts.weightless)
        except ProfileInvalid as invalid:
            raise AdapterRefused("bad_profile", f"{variant.label}: its profile can't be read ({invalid})") from None


@dataclass(frozen=True, slots=True)
class Found:
    """A base, the digest of its files, and adapters for it. `quantization` is how the base is held: EngineConfig's."""

    model: ResolvedModel
    digest: str
    adapters: tuple[Here, ...]
    quantization: str = "auto"


def evaluate_directories(
    model: str,
    adapters: Mapping[str, Path],
    *,
    texts: Sequence[Path] = (),
    tasks: Sequence[Path] = (),
    chat: bool = True,
    windows: Windows = Windows(),  # noqa: B008  (frozen)
    progress: Progress = _PROGRESS,
) -> Report:
    """The base and all adapters, by label, on text files and tasks (JSON lines; see livery.evaluation.subjects).

    Starts an engine in a process of its own and waits for its end; not to be called in an event loop. Raises
    SubjectUnusable, ModelNotFound, ModelRefused, EngineDead, OSError, and ValueError for BASE_LABEL, which the base
    has. An adapter that can't be applied or gives no numbers is a row without measures, and
    `report.variant(label).failed` says why.
    """
    if BASE_LABEL in adapters:
        raise ValueError(f"{BASE_LABEL!r} labels the base itself: give {adapters[BASE_LABEL]} another label")
    subjects: list[Subject] = [*map(read_text, texts), *(read_task(file, chat=chat) for file in tasks)]
    here = [Here(Variant(label, label), directory) for label, directory in adapters.items()]
    resolved = resolve_model(model)
    found = Found(resolved, base_digest(resolved.path), tuple(here))
    return asyncio.run(evaluate_found(found, subjects, windows, None, progress))


async def evaluate_found(
    found: Found,
    subjects: Sequence[Subject],
    windows: Windows,
    lm_eval: LmEvalTasks | None,
    progress: Progress = _PROGRESS,
) -> Report:
    """The base and all adapters found on all subjects; see `evaluate_directories`."""
    async with scoring(found) as (scorer, failed):
        return await evaluate(
            scorer,
            [BASE, *(one.variant for one in found.adapters)],
            subjects,
            base=found.model.name,
            base_digest=found.digest,
            where=WHERE + (f", the base in {found.quantization}" if found.quantization != "auto" else ""),
            failed=failed,
            windows=windows,
            lm_eval=lm_eval,
            progress=progress,
        )


@asynccontextmanager
async def scoring(found: Found) -> AsyncIterator[tuple[EngineScorer, list[tuple[Variant, str]]]]:
    """A started engine with these adapters; which it can't apply, and why. Raises ModelRefused, EngineDead."""
    tokenizer = await asyncio.to_thread(Tokenizer.from_directory, found.model.path)
    # Small blocks: choices behind one question compute again what of it fills none.
    config = EngineConfig(
        str(found.model.path),
        base_digest=found.digest,
        block_size=BLOCK,
        quantization=found.quantization,
        log_level="warning",
    )
    engine = EngineClient(config, stage)
    workers = TemplateWorkers()
    try:
        info = await engine.start()
        text = AdapterText(tokenizer, info.vocab_size, workers)
        refs: dict[str, AdapterRef] = {}
        voices: dict[str, Voice] = {}
        failed = []
        for one in found.adapters:
            try:
                ref, profile = await _as_served(one, info, text)
                added = 0 if ref is None else ref.added_tokens
                voices[one.variant.label] = Voice(await text.tokenizer(profile, added), profile)
                if ref is not None:
                    refs[one.variant.label] = ref
            except (AdapterRefused, OSError) as refused:
                failed.append((one.variant, _words(refused)))
        scorer = EngineScorer(engine, info, tokenizer, refs, voices)
        waiting = [one.variant for one in found.adapters if one.variant.label in voices]
        loads = await asyncio.gather(*(scorer.load(variant) for variant in waiting), return_exceptions=True)
        for variant, outcome in zip(waiting, loads, strict=True):
            if isinstance(outcome, VariantFailed):
                failed.append((variant, str(outcome)))
            elif outcome is not None:
                raise outcome
        yield scorer, failed
    finally:
        await engine.stop()
        workers.close()
        for one in found.adapters:
            if one.hold is not None:
                one.hold.release()


async def _as_served(adapter: Here, info: EngineInfo, text: AdapterText) -> tuple[AdapterRef | None, Profile]:
    """Its weights, None where it has none, and its profile. Raises AdapterRefused, OSError."""
    stored = adapter.stored
    if adapter.weightless:
        return None, adapter.profile
    if adapter.gone:
        raise AdapterRefused("blob_missing", adapter.gone)
    if stored is None:
        return await in_directory(adapter.directory, info, text)
    check_invocation(stored.invocation)
    part = AdapterPart(
        stored.weights, str(stored.path), approximate=stored.approximate, added_tokens=stored.added_tokens
    )
    return AdapterRef(stored.digest, (part,)), adapter.profile


def _words(refused: AdapterRefused | OSError) -> str:
    if isinstance(refused, AdapterRefused):
        return refused.message
    return f"its files can't be read: {refused.strerror}"
