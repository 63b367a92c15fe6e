"""`livery adapters extract`: what a full fine-tune changed of its base, made into an adapter that PEFT loads."""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from livery.adapter_views import Json
from livery.commands import shown
from livery.commands.asking import CommandFailed
from livery.commands.backends import new_directory
from livery.commands.progress import bar
from livery.commands.reach import REFUSALS, AsJson, tell, words
from livery.engine.base import ModelRefused
from livery.models import ResolvedModel, base_digest, resolve_model
from livery_adapters.refusal import DEFAULT_LIMITS
from livery_adapters.shortage import SHORTAGE_ERRORS, lacks_memory
from livery_adapters.tensor_file import WEIGHTS_NAME

if TYPE_CHECKING:
    from livery_adapters.making.extract import Aim, ExtractReport
    from livery_adapters.making.extract_checkpoint import Checkpoint

REPORT_NAME = "extraction.json"
ENERGY = 0.9  # of ‖ΔW‖², kept by default
WINDOW = 512  # tokens of text read at once
_UNRELATED = 0.7  # two models that were trained apart differ by more of their size; a fine-tune by a few hundredths
_ROUNDING = 0.5  # of ΔW


class Precision(StrEnum):
    """Of the numbers of low-rank pairs; what is carried as it is keeps the tuned model's."""

    float32 = "float32"
    bfloat16 = "bfloat16"


def extract(
    base: Annotated[str, typer.Option(help="The model that will be served: a directory, a hub id, a GGUF file.")],
    tuned: Annotated[str, typer.Option(help="The model that was trained from it, whole.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new directory for the adapter.")],
    rank: Annotated[str, typer.Option(metavar="auto|N", help="Of every module, or chosen for each.")] = "auto",
    energy: Annotated[
        float | None, typer.Option(metavar="SHARE", help=f"With auto: how much of ‖ΔW‖² to keep; else {ENERGY:g}.")
    ] = None,
    error: Annotated[
        float | None, typer.Option(metavar="SHARE", help="With auto: how much of ‖ΔW‖ may be left out, instead.")
    ] = None,
    max_rank: Annotated[int, typer.Option(min=1, help="With auto: the highest that a module may get.")] = 256,
    dtype: Annotated[Precision, typer.Option(help="Of the low-rank pairs.")] = Precision.float32,
    text: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Compare perplexity and predictions with the tuned model's on this text."),
    ] = None,
    text_tokens: Annotated[int, typer.Option(min=2, help="How many tokens of --text to read.")] = 2048,
    as_json: AsJson = False,
) -> None:
    """Make an adapter of what a full fine-tune changed: low-rank for linear modules, the rest as it is.

    Interrupted, it goes on where it was when the same command is given again.
    """
    wanted = _aim(rank, energy, error, max_rank, dtype)
    try:
        answer = _extracted(resolve_model(base), resolve_model(tuned), new_directory(out), wanted, text, text_tokens)
    except REFUSALS as refused:
        raise CommandFailed(words(refused)) from refused
    tell(answer, _show, as_json=as_json)


def _aim(rank: str, energy: float | None, error: float | None, most: int, dtype: Precision) -> Aim:
    """Raises typer.BadParameter."""
    import torch

    from livery_adapters.making.extract import Aim

    precision = getattr(torch, dtype.value)
    if rank != "auto":
        if not rank.isdecimal() or int(rank) < 1:
            raise typer.BadParameter(f"--rank is {rank!r}; give a whole number from 1 up, or auto")
        if energy is not None or error is not None:
            raise typer.BadParameter("--energy and --error choose a rank for each module: they go with --rank auto")
        return Aim(rank=int(rank), dtype=precision)
    if energy is not None and error is not None:
        raise typer.BadParameter("--energy and --error say the same in two ways: give one of them")
    for name, value in (("--energy", energy), ("--error", error)):
        if value is not None and not 0 <= value <= 1:
            raise typer.BadParameter(f"{name} is {value}; it is a share, from 0 to 1")
    allowed = error if error is not None else math.sqrt(1 - (ENERGY if energy is None else energy))
    return Aim(error=allowed, most=most, dtype=precision)


def _extracted(
    base: ResolvedModel, tuned: ResolvedModel, out: Path, aim: Aim, text: Path | None, text_tokens: int
) -> Json:
    """Raises AdapterRefused, ModelRefused, CommandFailed, OSError."""
    from livery_adapters.making.extract import settings_of  # these need torch
    from livery_adapters.making.extract_checkpoint import Checkpoint

    begins, ids = _read(base, text, text_tokens) if text else ([], [])
    one, other = Checkpoint.open(base.path), Checkpoint.open(tuned.path)
    made_of = _digest(settings_of(one, other, aim), one, other)
    answer = _finished(out, made_of) if ids else None
    if answer is None:
        # Its record is there before the text, whose models may need more memory than there is.
        answer = _made(base, tuned, one, other, out, aim, made_of)
    else:
        shown.stage(f"{out} was extracted from these two already: only the text is left to do")
    if ids:
        answer["text"] = {"file": str(text), **_compared(base, tuned, out, begins, ids)}
        answer["warnings"] += _doubts(answer["text"])
        _record_again(answer, out)
    return answer


def _made(
    base: ResolvedModel, tuned: ResolvedModel, one: Checkpoint, other: Checkpoint, out: Path, aim: Aim, made_of: str
) -> Json:
    """Raises AdapterRefused, ModelRefused, OSError."""
    from livery.commands.two_models import together
    from livery_adapters.making.extract import extract as extracted
    from livery_adapters.making.extract_plan import Side

    shown.stage("comparing the two models")
    models = together(base, tuned)

    def answer(report: ExtractReport) -> Json:
        warnings = [*models.warnings, *_warnings(report, aim)]
        return {**_told(report, out, warnings, sorted(models.beside)), "made_of": made_of}

    with bar("extracting modules", 0, pieces=True) as told:
        report = extracted(
            Side.of(one, models.shapes, models.base_tied),
            Side.of(other, models.shapes, models.tuned_tied),
            models.shapes,
            aim,
            out,
            base_name=base.name,
            beside=lambda report: {**models.beside, REPORT_NAME: _recorded(answer(report))},
            progress=told,
        )
    return answer(report)


def _digest(settings: Json, *models: Checkpoint) -> str:
    """Of what is extracted, and of the sizes and times of the files that hold the weights."""
    files = [(file, file.stat()) for model in models for file in model.files]
    told = [settings, [[str(file.resolve()), facts.st_size, facts.st_mtime_ns] for file, facts in files]]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _finished(out: Path, made_of: str) -> Json | None:
    """What an earlier run told of this very extraction, where it ended before it had read its text."""
    try:
        found = json.loads((out / REPORT_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    same = isinstance(found, dict) and found.get("made_of") == made_of and "text" not in found
    return found if same and (out / WEIGHTS_NAME).is_file() else None


def _recorded(answer: Json) -> bytes:
    return (json.dumps(answer, indent=2) + "\n").encode()


def _record_again(answer: Json, out: Path) -> None:
    """With what the text said. Raises CommandFailed."""
    from livery_adapters.making.extract_output import replace

    try:
        replace(out / REPORT_NAME, _recorded(answer))
    except OSError as failed:
        raise CommandFailed(
            f"{out / REPORT_NAME} can't be written: {failed.strerror}; the adapter in {out} is whole, and what the "
            "text said isn't kept: make room and give the same command again, which reads it anew"
        ) from failed


def _read(base: ResolvedModel, text: Path, most: int) -> tuple[list[int], list[int]]:
    """What the base expects before any text, and the first tokens of this one. Raises CommandFailed."""
    from livery.text import Tokenizer

    try:
        content = text.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise CommandFailed(f"--text {text} is not UTF-8 text; save it as such") from None
    tokenizer = Tokenizer.from_directory(base.path)
    ids = tokenizer.encode_bare(content)[:most]
    if len(ids) < 2:
        raise CommandFailed(f"--text {text} has {len(ids)} tokens, and at least 2 are needed to predict one")
    return tokenizer.beginning(), ids


def _compared(base: ResolvedModel, tuned: ResolvedModel, out: Path, begins: list[int], ids: list[int]) -> Json:
    """Raises CommandFailed."""
    from livery.commands.text_loss import compared, reading_prover

    try:
        prover = reading_prover(base.path, base_digest(base.path), WINDOW, shown.stage)
        with bar("reading text", 0, pieces=True) as told:
            found = compared(prover, tuned.path, [out], ids, WINDOW, told, begins)
    except (*SHORTAGE_ERRORS, ModelRefused) as error:
        if not lacks_memory(error):
            raise
        raise CommandFailed(
            "there isn't enough memory to compare the models on the text, one after the other; the adapter in "
            f"{out} is whole: end other programs and give the same command again, which goes on with the text"
        ) from error
    return {**{name: value for name, value in found.items() if name != "adapters"}, "adapter": found["adapters"][0]}


def _doubts(text: Json) -> list[str]:
    """What is odd about a fine-tune."""
    before, after = text["base"]["perplexity"], text["tuned"]["perplexity"]
    if after <= before:
        return []
    return [
        f"the tuned model reads this text worse than the base (perplexity {after:.2f} and {before:.2f}): are --base "
        "and --tuned swapped, or is the text unlike what the model was tuned on?"
    ]


def _warnings(report: ExtractReport, aim: Aim) -> list[str]:
    found = []
    short = {path: module for path, module in report.modules.items() if not module.reached}
    if short:
        worst = max(short, key=lambda path: short[path].error)
        found.append(
            f"{len(short)} modules need more than rank {aim.most} to leave out no more than {aim.error:.2f} of ΔW, the "
            f"worst {worst} ({short[worst].error:.2f}); raise --max-rank, and that of the server, or lower --energy"
        )
    highest = max(report.modules, key=lambda path: report.modules[path].rank)
    if (rank := report.modules[highest].rank) > DEFAULT_LIMITS.max_rank:
        found.append(
            f"{highest} has rank {rank}, and a server takes adapters up to {DEFAULT_LIMITS.max_rank}: start it with "
            f"--max-rank {rank} (`adapters add --data` has it as well)"
        )
    if report.nbytes > DEFAULT_LIMITS.max_weight_bytes:
        gigabytes = math.ceil(report.nbytes / 2**30)
        found.append(
            f"{WEIGHTS_NAME} has {report.nbytes} bytes, and a server takes up to {DEFAULT_LIMITS.max_weight_bytes}: "
            f"start it with --max-adapter-bytes {gigabytes}GiB (`adapters add --data` has it as well), or lower "
            "--energy, or use --dtype bfloat16"
        )
    if report.moved > _UNRELATED:
        found.append(
            f"the tuned model's linear modules are {report.moved:.2f} of their size away from the base's, as those of "
            "unrelated models are: was it really trained from this base?"
        )
    if report.rounding > _ROUNDING:
        found.append(
            f"{report.rounding:.0%} of what differs is no more than rounding of the base's weights to the tuned "
            "model's dtype; give the base in that dtype"
        )
    return found


def _told(report: ExtractReport, out: Path, warnings: list[str], beside: list[str]) -> Json:
    return {
        "directory": str(out),
        "error": report.error,
        "moved": report.moved,
        "added_tokens": report.added_tokens,
        "nbytes": report.nbytes,
        "resumed": report.resumed,
        "beside": beside,
        "warnings": warnings,
        "modules": {path: asdict(module) for path, module in report.modules.items()},
    }


def _show(answer: Json) -> None:
    """A line for the modules of each name, and what the text said."""
    by_name: defaultdict[str, list[Json]] = defaultdict(list)
    for path, module in answer["modules"].items():
        if module["form"] != "same" or module["bias"]:
            by_name[path.rpartition(".")[2]].append(module)
    rows = [_row(name, modules) for name, modules in sorted(by_name.items())]
    shown.print_table("", ("module", "of them", "carried as", "rank", "moved by", "error"), rows)
    facts = {
        "directory": answer["directory"],
        "size": shown.size(answer["nbytes"]),
        "left out": f"{answer['error']:.1%} of ΔW" if answer["error"] > 1e-4 else "nothing",
        "own tokens": answer["added_tokens"] or None,
        "finished before": f"{answer['resumed']} modules" if answer["resumed"] else None,
        "beside it": ", ".join(answer["beside"]),
    }
    shown.print_facts(facts)
    if "text" in answer:
        _show_text(answer["text"])
    for warning in answer["warnings"]:
        shown.say(f"warning: {warning}")


def _row(name: str, modules: list[Json]) -> list[str]:
    ranks = sorted(module["rank"] for module in modules if module["rank"])
    forms = sorted({module["form"] for module in modules} - {"same"})
    forms += ["bias"] if any(module["bias"] for module in modules) else []
    spread = f"{ranks[0]}" if ranks and ranks[0] == ranks[-1] else f"{ranks[0]}-{ranks[-1]}" if ranks else ""
    errors = [module["error"] for module in modules if module["rank"]]
    moved = max(module["moved"] for module in modules)
    return [
        name,
        str(len(modules)),
        ", ".join(forms),
        spread,
        f"{moved:.1e}",
        f"{max(errors):.3f}" if errors else "",
    ]


def _show_text(found: Json) -> None:
    names: dict[str, Any] = {"base alone": "base", "with the adapter": "adapter", "tuned model": "tuned"}
    rows = []
    for words_, key in names.items():
        one = found[key]
        far = (f"{one['kl']:.4f}", f"{one['same_best']:.1%}") if "kl" in one else ("", "")
        rows.append([words_, f"{one['perplexity']:.3f}", *far])
    columns = ("", "perplexity", "KL from tuned, nats a token", "same best token")
    shown.print_table(f"on {found['tokens']} tokens of {found['file']}", columns, rows)
