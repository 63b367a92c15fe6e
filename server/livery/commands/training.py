"""`livery adapters train`: from a YAML file and data to an adapter that is checked, measured and, asked for, served."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from livery.adapter_views import Json
from livery.commands import shown
from livery.commands.asking import CommandFailed
from livery.commands.backends import new_directory
from livery.commands.held import Held
from livery.commands.offline import LocalBackend, Need, Place, open_local
from livery.commands.progress import bar, loss_bar
from livery.commands.reach import AsJson, ask, tell, words
from livery.commands.shown_training import note, show_data, show_trained, warn
from livery.commands.train_target import Kept, Target
from livery.engine.base import EngineConfig, ModelRefused
from livery.engine.quantization import check_flag, choose_quantization
from livery.models import ResolvedModel, base_digest, resolve_model
from livery.text import Tokenizer
from livery.training.curve import draw
from livery.training.dataset import Data, prepare
from livery.training.examples import DataInvalid
from livery.training.libraries import LibraryMissing, check_installed, quieten, versions
from livery.training.run_file import Adapter, AnyRun, SpecInvalid, read_run
from livery.training.start import Start, find_start
from livery.training.work import REPORT_NAME, Work, WorkInvalid, finished_report, kept_settings
from livery_adapters.refusal import TAKEN_IN
from livery_adapters.shortage import SHORTAGE_ERRORS, lacks_memory

if TYPE_CHECKING:
    from livery.commands.proof import OfflineProver
    from livery.training.measure import Measured
    from livery.training.trainer import Trained

PICTURE_NAME = "loss.svg"
_ALIKE = 0.02  # of a loss: the engine's and PEFT's may differ by, where they round differently


@dataclass(frozen=True, slots=True)
class Asked:
    """A run as it was asked for: its file's content, where that lies, its base, the adapter that it goes on with."""

    run: AnyRun
    folder: Path
    base: ResolvedModel
    out: Path
    start: Start | None


def train(
    run: Annotated[Path, typer.Argument(metavar="RUN.yaml", help="What to train, on what, and how.")],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="A new directory for the adapter.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only read the file and its data, and say what is in them.")
    ] = False,
    add_to: Annotated[
        str | None,
        typer.Option(metavar="URL|DIR", help="Add it to this server, or data folder, once it is trained."),
    ] = None,
    name: Annotated[str | None, typer.Option("--as", metavar="NAME", help="With --add-to: under this name.")] = None,
    alias: Annotated[
        str | None, typer.Option(metavar="NAME", help="With --add-to: and have this alias lead to it.")
    ] = None,
    key: Annotated[
        str | None, typer.Option(metavar="KEY", envvar="LIVERY_API_KEY", help="The server's API key.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train an adapter: LoRA, QLoRA, DoRA or rsLoRA on chats, preferences, text or documents.

    Interrupted, it goes on where it was when the same command is given again.
    """
    target = Target.of(add_to, name, alias, key)
    if out is None and not check:
        raise typer.BadParameter("--out is missing: name a new directory for the adapter")
    try:
        answer = _answer(run, out, check, target)
    except (SpecInvalid, DataInvalid, LibraryMissing, WorkInvalid) as refused:
        raise CommandFailed(str(refused)) from refused
    except OSError as error:
        raise CommandFailed(words(error)) from error
    tell(answer, show_data if check else show_trained, as_json=as_json)


def _answer(file: Path, out: Path | None, check: bool, target: Target | None) -> Json:
    run = read_run(file)
    if not check:
        check_installed()
        check_flag(run.quantization, run.device)
    start = find_start(run, file.parent)
    asked = Asked(run, file.parent, resolve_model(run.base), new_directory(out or Path("unnamed")), start)
    if start:
        _check_start(asked, start)
    elif run.adapter != Adapter():
        from livery.training.named import check_named  # needs torch

        check_named(run, asked.base.path)
    if target:
        target.check(run.base, base_digest(asked.base.path), start.rank if start else run.adapter.r)
    shown.stage("reading the data")
    with bar("reading examples", 0, pieces=True) as told:
        tokenizer, rendered_on = _tokenizer(asked)
        data = prepare(run, asked.folder, tokenizer, told)
    if check:
        return {"run": run.to_json(), "data": data.told()}
    warn(data.warnings)
    if data.broken:
        warn([f"{len(data.broken)} broken lines are left out, the first of them {data.broken[0]}"])
    settings = {"run": run.to_json(), "data": list(data.sha256), "base": base_digest(asked.base.path)}
    # The base's digest is of its weights: its tokenizer and chat template show in what they make of the data.
    settings |= {"examples_as_tokens": data.encoded} | rendered_on | _machine(asked)
    if start:
        settings["start_from"] = start.digest
    found = finished_report(asked.out)
    if found is None or found.get("settings") != json.loads(json.dumps(settings)):
        found = _trained(asked, data, settings)
    else:
        shown.stage(f"{asked.out} was trained by this very run already")
    if target is None:
        return found
    return found | {"added": _added(asked, data, target, found)}


def _tokenizer(asked: Asked) -> tuple[Tokenizer, Json]:
    """The base's, and what goes into the settings of the time that its chat template tells, if it does.

    It is that of the run's first process: whichever day it is gone on with, the examples are the same.
    """
    tokenizer = Tokenizer.from_directory(asked.base.path)
    if not tokenizer.tells_time:
        return tokenizer, {}
    kept = kept_settings(asked.out).get("rendered_on", "")
    try:
        began = datetime.fromisoformat(kept)
    except (TypeError, ValueError):
        began = datetime.now().replace(microsecond=0)
    return tokenizer.at(began), {"rendered_on": began.isoformat()}


def _machine(asked: Asked) -> Json:
    """What a run's numbers depend on here: where it computes, in which type, by which libraries.

    Raises CommandFailed, ModelRefused.
    """
    from livery.training.model import TrainingStopped, chosen_device, chosen_dtype  # these need torch and the extra

    run = asked.run
    try:
        device = chosen_device(run)
    except TrainingStopped as stopped:
        raise CommandFailed(str(stopped)) from stopped
    held = choose_quantization(EngineConfig(str(asked.base.path), quantization=run.quantization), device)
    dtype = str(chosen_dtype(run, device)).removeprefix("torch.")
    return {"device": device, "dtype": dtype, "libraries": versions(held.scheme.modules if held else ())}


def _added(asked: Asked, data: Data, target: Target, found: Json) -> Json:
    """Have it where it is to be served: active where it does better than the base, and than what its name serves, and
    the base is known to be the one that is served there.

    Raises CommandFailed.
    """
    from livery.commands.gating import standing
    from livery.commands.held_out import Unmeasured, compare  # needs torch

    digest, base = found["coverage"]["digest"], asked.run.base
    try:
        is_over = target.is_over(base, found["settings"]["base"])
    except CommandFailed as failed:
        raise CommandFailed(f"{failed}. The adapter is whole in {asked.out}") from failed
    kept = Kept.of(asked.out, target.active(base))
    warn(kept.doubts(base))
    better = _is_better(found["evaluation"])
    if better and is_over and (kept.active.digest is None or kept.is_active(digest)):
        return target.add(base, asked.out, kept, activate=True)
    added = target.add(base, asked.out, kept, activate=False)
    generation, digest = added["adapter"]["generation"], added["adapter"]["pushed"]["digest"]
    stands = standing(target.reach, target.name, digest)
    added["version"] = stands["version"]
    if better and is_over and stands["active"] == stands["version"]:  # its own profile came to the same
        return target.activate(base, asked.out, digest, generation) | {"profile": added["profile"]}
    if not better or not is_over:
        return added | {"base_known": is_over, "remedy": target.commands(stands["version"], better=False)}
    shown.stage(f"measuring {target.name} {stands['version']} and {stands['active']}, which is active")
    try:
        compared = compare(target.reach, target.name, stands["version"], asked.run, data.held_out)
    except Unmeasured as why:
        remedy = target.commands(stands["version"], better=True, quantization=asked.run.quantization)
        return added | {"active": stands["active"], "unmeasured": str(why), "remedy": remedy}
    judged = {"active": stands["active"], "compared": asdict(compared), "profile": added["profile"]}
    if not compared.is_better:
        return added | judged | {"remedy": target.commands(stands["version"], better=False)}
    return target.activate(base, asked.out, digest, generation) | judged


def _trained(asked: Asked, data: Data, settings: Json) -> Json:
    """Train, check, measure, and give the adapter its place. Raises CommandFailed and others."""
    quieten()
    from livery.training.model import TrainingStopped, free_memory  # these need torch and the extra
    from livery.training.trainer import total_steps
    from livery.training.trainer import train as trained_by

    with Work(asked.out, settings) as work:
        shown.stage(f"loading {asked.base.name} to train it")
        try:
            with loss_bar("training", total_steps(asked.run, len(data.train))) as watch:
                start = asked.start.path if asked.start else None
                trained = trained_by(asked.run, asked.base, data, work, watch, start)
        except TrainingStopped as stopped:
            raise CommandFailed(str(stopped)) from stopped
        except KeyboardInterrupt:
            step = work.newest()
            kept = f"step {step} is kept, and the same command goes on from there" if step else "nothing is kept yet"
            note(f"interrupted: {kept}")
            raise
        free_memory()  # of the model that was trained, before the engine loads its own
        shown.stage("checking the adapter as a server would")
        try:
            coverage, measured = _examined(asked, data, trained, work.adapter)
        except (*SHORTAGE_ERRORS, ModelRefused) as error:
            if isinstance(error, ModelRefused) and not lacks_memory(error):
                raise CommandFailed(f"the base can't be loaded to check the adapter: {error}; {_kept(work)}") from error
            if not lacks_memory(error):
                raise
            raise CommandFailed(
                f"there isn't enough memory to check and measure the adapter as a server would; {_kept(work)}, once "
                "other programs have ended"
            ) from error
        report = _report(asked, data, settings, trained) | {"coverage": coverage, "evaluation": measured}
        report["warnings"] = [*data.warnings, *coverage.get("warnings", ()), *coverage["unused"], *_doubts(measured)]
        title = f"{asked.run.kind} on {asked.base.name}: {asked.out.name}"
        picture = draw(title, trained.losses, trained.held_out)
        work.finish({REPORT_NAME: json.dumps(report, indent=2) + "\n", PICTURE_NAME: picture})
    return report


def _kept(work: Work) -> str:
    return f"it is trained, and kept in {work.folder}: give the same command again, which trains nothing anew"


def _report(asked: Asked, data: Data, settings: Json, trained: Trained) -> Json:
    return {
        "directory": str(asked.out),
        "base": asked.base.name,
        "settings": settings,
        "data": data.told(),
        "steps": trained.steps,
        "resumed_from": trained.resumed or None,
        "trained_numbers": trained.trained_numbers,
        "seconds": round(trained.seconds, 1),
        "device": trained.device,
        "losses": [[step, round(loss, 5)] for step, loss in trained.losses],
        "held_out_losses": [[step, round(loss, 5)] for step, loss in trained.held_out],
    }


def _check_start(asked: Asked, start: Start) -> None:
    """Whether it fits the base, to its last tensor: PEFT would leave new what it doesn't find. Raises CommandFailed."""
    try:
        found, _ = _inspected(asked, start.path, Need(base=True, creates=True))
    except CommandFailed as failed:
        raise CommandFailed(f"start_from is {asked.run.start_from}: {failed}") from failed
    coverage = found["coverage"]
    if rows := coverage["added_tokens"]:
        raise CommandFailed(
            f"start_from is {asked.run.start_from}, which has rows for {rows} tokens that {asked.run.base} doesn't "
            "have: a run trains with the base's own tokens. Name an adapter without them, or as base a model that was "
            "saved with them (resize_token_embeddings), and as start_from an adapter that was trained on that one"
        )
    warn(_beside_start(asked.run.start_from, coverage["beside"]))


def _beside_start(name: str, beside: Json) -> list[str]:
    """What lies beside it and is not used: examples are rendered and encoded as the base's, whatever it was trained on.

    `beside` is as livery_adapters.beside.compare has it.
    """
    found = []
    if beside.get("chat_template"):
        found.append(
            f"start_from is {name}, and its chat template (chat_template.jinja, or in tokenizer_config.json) differs "
            "from the base's, by which this run writes chats, as a server does unless the adapter is added with "
            "--use-template: if it was trained on chats of that template, put it into a copy of the base, and name "
            "that as base"
        )
    if beside.get("added_tokens") or beside.get("tokenizer"):
        found.append(
            f"start_from is {name}, and its tokenizer.json differs from the base's, by which this run encodes: if it "
            "was trained on texts that hold tokens of its own, they are now other tokens"
        )
    return found


def _examined(asked: Asked, data: Data, trained: Trained, adapter: Path) -> tuple[Json, Json]:
    """The coverage report, and what the engine and PEFT make of what was held out. Raises CommandFailed."""
    held = Held(trained.device, "float32" if trained.device == "cpu" else "auto", asked.run.quantization)
    found, prover = _inspected(asked, adapter, Need(base=True, creates=True, proves=True, held=held))
    coverage: Json = {**found["coverage"], "unused": list(found.get("unused", ()))}
    if trained.before is None or trained.after is None:
        return coverage, {}
    assert prover is not None  # as it was asked for
    measured = _measured(asked, data, prover, adapter)
    measured["peft"] = {"before": trained.before.told(), "after": trained.after.told()}
    return coverage, measured


def _inspected(asked: Asked, adapter: Path, need: Need) -> tuple[Json, OfflineProver | None]:
    """An adapter's coverage report over the run's base, and what tried it if `need` says so. Raises CommandFailed."""
    provers: list[OfflineProver | None] = []

    async def inspected(backend: LocalBackend) -> Json:
        provers.append(backend.prover)
        return await backend.inspect(str(adapter), 0)

    with tempfile.TemporaryDirectory(prefix="livery-train-") as scratch:
        found = ask(open_local(Place(Path(scratch), None, asked.run.base), need, TAKEN_IN), inspected)
    return found, provers[0]


def _measured(asked: Asked, data: Data, prover: OfflineProver, adapter: Path) -> Json:
    """Through the engine that serves it: what was held out, with what the run began from, and with the adapter."""
    from livery.commands.text_loss import installed, logits_of
    from livery.training.measure import measure

    run, count = asked.run, len(data.held_out)
    with bar("measuring what was held out", 2 * count, pieces=True) as told:
        begun = installed(prover, asked.start.path) if asked.start else None
        before = measure(run, lambda ids: logits_of(prover, begun, ids), data.held_out, None, told)
        if begun:
            prover.runner.evict(begun)
        digest = installed(prover, adapter)
        after: Measured = measure(
            run,
            lambda ids: logits_of(prover, digest, ids),
            data.held_out,
            before.answers,
            lambda done: told(count + done),
        )
    return {"examples": count, "before": before.told(), "after": after.told()}


def _is_better(measured: Json) -> bool:
    """Whether it did better on what was held out than what it began from, where anything was."""
    return not measured or measured["after"]["loss"] < measured["before"]["loss"]


def _doubts(measured: Json) -> list[str]:
    """What a user should look at before serving it."""
    if not measured:
        return []
    found, (before, after) = [], (measured["before"]["loss"], measured["after"]["loss"])
    if not _is_better(measured):
        found.append(
            f"the loss on what was held out went from {before:.3f} to {after:.3f}: it learnt nothing that holds there; "
            "look at loss.svg, and train for fewer steps, with a lower learning_rate or on more data"
        )
    peft = measured["peft"]["after"]["loss"]
    if abs(after - peft) > _ALIKE * max(abs(peft), 0.1):
        found.append(f"the engine's loss is {after:.4f} and PEFT's {peft:.4f}; they round differently on this base")
    return found
