"""`livery adapters`: the verbs that change what is served."""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from msgspec import structs

from livery.adding import AddOptions, Running
from livery.commands import shown
from livery.commands.asking import CommandFailed
from livery.commands.backends import is_remote
from livery.commands.held import Quantization
from livery.commands.offline import Need
from livery.commands.reach import MaxAdapterBytes, MaxRank, Reach, reaches
from livery.evaluation.gate import Bar, Metric, Than
from livery_adapters.profile import EMPTY, MAX_PROFILE_BYTES, PROFILE_NAME, Profile, ProfileInvalid, parse_profile
from livery_adapters.refusal import DEFAULT_LIMITS, Limits
from livery_adapters.registry import Sticky
from livery_adapters.tensor_file import WEIGHTS_NAME

Name = Annotated[str, typer.Argument(help="An adapter's name.")]
Expected = Annotated[
    int | None,
    typer.Option(
        "--expected-generation", min=0, metavar="N", help="Refuse when the name was changed since; 0: must be new."
    ),
]


class RunningRequests(StrEnum):
    """What becomes of requests on older versions."""

    finish = "finish"
    abort = "abort"


class StickyTo(StrEnum):
    """Whom an alias keeps on one target."""

    user = "user"
    key = "key"
    none = "none"


@reaches
def add(
    reach: Reach,
    name: Name,
    source: Annotated[
        str,
        typer.Argument(
            help="A directory that save_pretrained wrote, or hf://, s3://, gs://, az://; base: a profile alone."
        ),
    ],
    pin: Annotated[bool, typer.Option("--pin", help="Keep it in memory from the server's start.")] = False,
    no_activate: Annotated[bool, typer.Option("--no-activate", help="Keep serving the version before.")] = False,
    approximate: Annotated[
        int | None,
        typer.Option(min=1, max=4096, metavar="RANK", help="Factorise a type that has no exact form to this rank."),
    ] = None,
    expected_generation: Expected = None,
    profile: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Its profile, instead of the profile.yaml beside it.")
    ] = None,
    use_template: Annotated[
        bool, typer.Option("--use-template", help="Render conversations with the chat template beside the weights.")
    ] = False,
    use_tokenizer: Annotated[
        bool, typer.Option("--use-tokenizer", help="Know the tokens that the tokenizer beside the weights adds.")
    ] = False,
    prove: Annotated[
        bool, typer.Option("--prove", help="With --data: try it on the model here, as a server would.")
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="With --data: the base model, if no server has run there yet.")
    ] = None,
    max_rank: MaxRank = DEFAULT_LIMITS.max_rank,
    max_adapter_bytes: MaxAdapterBytes = DEFAULT_LIMITS.max_weight_bytes,
) -> None:
    """Take in a new version of an adapter and serve it."""
    if reach.data is None and (prove or model is not None):
        raise typer.BadParameter("--prove and --model go with --data: a server always tries adapters, on its own model")
    options = AddOptions(
        True if pin else None,
        expected_generation,
        approximate or 0,
        not no_activate,
        _wanted_profile(source, profile, use_template, use_tokenizer),
    )
    reach.run(
        lambda backend: backend.add(name, source, options),
        shown.record,
        Need(base=True, creates=True, proves=prove),
        model=model,
        limits=Limits(max_rank=max_rank, max_weight_bytes=max_adapter_bytes),
    )


@reaches
def push(
    reach: Reach,
    name: Name,
    weights: Annotated[
        Path, typer.Argument(metavar="FILE", help="adapter_model.safetensors, or the directory that has it.")
    ],
    keep: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Keep the newest N versions of the name, drop older ones.")
    ] = None,
    no_activate: Annotated[bool, typer.Option("--no-activate", help="Keep serving the version before.")] = False,
    running: Annotated[
        RunningRequests, typer.Option(help="Requests on older versions finish there, or end with what they have.")
    ] = RunningRequests.finish,
    expected_generation: Expected = None,
    prove: Annotated[
        bool, typer.Option("--prove", help="With --data: try them on the model here, as a server would.")
    ] = False,
    max_rank: MaxRank = DEFAULT_LIMITS.max_rank,
    max_adapter_bytes: MaxAdapterBytes = DEFAULT_LIMITS.max_weight_bytes,
) -> None:
    """Take in new weights of an adapter, with the configuration and the profile of its active version."""
    if reach.data is None and prove:
        raise typer.BadParameter("--prove goes with --data: a server always tries adapters, on its own model")
    file = weights / WEIGHTS_NAME if weights.is_dir() else weights
    how: Running = running.value
    options = AddOptions(expected_generation=expected_generation, activate=not no_activate, keep=keep or 0, running=how)
    reach.run(
        lambda backend: backend.push(name, file, options),
        shown.pushed,
        Need(base=True, proves=prove),
        limits=Limits(max_rank=max_rank, max_weight_bytes=max_adapter_bytes),
    )


@reaches
def activate(
    reach: Reach,
    name: Name,
    version: Annotated[str, typer.Argument(help="A version's number, or at least 8 digits of its digest.")],
    if_better_than: Annotated[
        Than | None, typer.Option(help="Measure it first, and only serve it where it is better than this.")
    ] = None,
    metric: Annotated[Metric | None, typer.Option(help="With --if-better-than: by what.")] = None,
    on: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="With --if-better-than: a text, or questions as JSON lines; on all of them."),
    ] = None,
    by: Annotated[
        float,
        typer.Option(min=0, max=1, help="At least so much better: of the perplexity, or of the items, as in 0.01."),
    ] = 0.0,
    sure: Annotated[bool, typer.Option("--sure", help="And beyond chance: the interval leaves out 0.")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="Ask questions in plain text, not as conversations.")] = False,
    quantization: Quantization = "auto",
    expected_generation: Expected = None,
) -> None:
    """Serve another version of an adapter, or (--if-better-than) only where it measures better: else status 3."""
    if if_better_than is None:
        if metric is not None or on or by or sure or plain or quantization != "auto":
            raise typer.BadParameter(
                "--metric, --on, --by, --sure, --plain and --quantization go with --if-better-than"
            )
        reach.run(lambda backend: backend.activate(name, version, expected_generation), shown.record, Need(base=True))
        return
    if metric is None or not on:
        raise typer.BadParameter(
            "--if-better-than needs --metric perplexity|accuracy and --on FILE: a text for perplexity, questions as "
            "JSON lines for accuracy"
        )
    from livery.commands.gating import activated_if_better

    asked = Bar(if_better_than, metric, tuple(on), by, sure, not plain)
    activated_if_better(reach, name, version, asked, quantization, expected_generation)


@reaches
def rollback(reach: Reach, name: Name, expected_generation: Expected = None) -> None:
    """Serve the version that was active before."""
    reach.run(lambda backend: backend.rollback(name, expected_generation), shown.record)


@reaches
def rm(
    reach: Reach,
    name: Name,
    drain: Annotated[float, typer.Option(min=0, max=600, metavar="SECONDS", help="Wait for requests under way.")] = 0.0,
    expected_generation: Expected = None,
) -> None:
    """Take an adapter out of service; requests under way finish."""
    reach.run(
        lambda backend: backend.retire(name, drain_s=drain, expected_generation=expected_generation), shown.retired
    )


@reaches
def pin(reach: Reach, name: Name) -> None:
    """Load an adapter now and whenever the server starts, and keep it in memory."""
    reach.run(lambda backend: backend.pin(name, True), shown.record)


@reaches
def unpin(reach: Reach, name: Name) -> None:
    """Let an adapter leave memory when others need the room."""
    reach.run(lambda backend: backend.pin(name, False), shown.record)


@reaches
def prefetch(reach: Reach, name: Name) -> None:
    """Have the server load an adapter before a request asks for it."""
    reach.run(lambda backend: backend.prefetch(name), shown.record)


Tenant = Annotated[str, typer.Argument(help="The tenant that may use it.")]


@reaches
def share(reach: Reach, name: Name, tenant: Tenant) -> None:
    """Let another tenant use an adapter, by its name in full, until it is deleted."""
    reach.run(lambda backend: backend.share(name, tenant), shown.shared)


@reaches
def unshare(reach: Reach, name: Name, tenant: Tenant) -> None:
    """Share an adapter with a tenant no longer."""
    reach.run(lambda backend: backend.share(name, tenant, shared=False), shown.shared)


@reaches
def aliases(
    reach: Reach,
    after: Annotated[str, typer.Option(metavar="NAME", help="Begin behind this name.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most aliases to show.")] = 100,
) -> None:
    """List aliases by name."""
    reach.run(lambda backend: backend.aliases(after=after, limit=limit), shown.aliases)


@reaches
def alias(
    reach: Reach,
    name: Annotated[str, typer.Argument(help="An alias's name.")],
    targets: Annotated[
        list[str] | None, typer.Argument(metavar="[TARGET[=WEIGHT]]...", help="Adapters and their shares.")
    ] = None,
    sticky: Annotated[
        StickyTo | None,
        typer.Option(
            show_default=StickyTo.user.value,
            help="What keeps somebody on one target: the request's user, the API key, nothing.",
        ),
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete the alias.")] = False,
    expected_generation: Expected = None,
) -> None:
    """Share requests for a name out over adapters by weight; without targets, show how it stands."""
    if delete and targets:
        raise typer.BadParameter("--delete takes no targets")
    if sticky is not None and not targets:
        raise typer.BadParameter("--sticky goes with targets: name all that the alias is to have, as in a=0.9 b=0.1")
    if expected_generation is not None and not targets and not delete:
        raise typer.BadParameter("--expected-generation goes with targets or --delete: without them nothing is changed")
    if delete:
        reach.run(lambda backend: backend.delete_alias(name, expected_generation), shown.deleted)
    elif targets:
        wanted = [weighted(target) for target in targets]
        how: Sticky = (sticky or StickyTo.user).value
        reach.run(lambda backend: backend.set_alias(name, wanted, how, expected_generation), shown.alias)
    else:
        reach.run(lambda backend: backend.alias(name), shown.alias)


def weighted(text: str, *, negative: bool = False) -> tuple[str, float]:
    """NAME or NAME=WEIGHT, below zero where `negative` ones mean something. Raises typer.BadParameter."""
    name, given, number = text.partition("=")
    if not given:
        return name, 1.0
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not name or not math.isfinite(weight) or weight == 0 or (weight < 0 and not negative):
        which = "other than 0" if negative else "above 0"
        raise typer.BadParameter(f"{text!r} is not NAME=WEIGHT with a weight {which}, as in pirate=0.9")
    return name, weight


@reaches
def profile(
    reach: Reach,
    name: Name,
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="The profile it is to have, in YAML; an empty file: none.")
    ] = None,
    expected_generation: Expected = None,
) -> None:
    """Show an adapter's profile, or give it another one: a new version over the same weights."""
    if file is None and expected_generation is not None:
        raise typer.BadParameter("--expected-generation goes with FILE: without one nothing is changed")
    if file is None:
        reach.run(lambda backend: backend.profile(name), shown.profile)
    else:
        wanted = read_profile(file)
        reach.run(lambda backend: backend.set_profile(name, wanted, expected_generation), shown.record)


def _wanted_profile(source: str, file: Path | None, use_template: bool, use_tokenizer: bool) -> Profile | None:
    """The profile that the flags ask for, over the one that lies beside the weights; None where they ask for none.

    Raises CommandFailed.
    """
    if not use_template and not use_tokenizer:
        return read_profile(file) if file else None
    if file is None:
        if is_remote(source):
            raise CommandFailed(
                "--use-template and --use-tokenizer change a profile, and that of a URL isn't read here; give the "
                "whole profile with --profile FILE, with chat_template: adapter or tokenizer: adapter in it"
            )
        beside = Path(source) / PROFILE_NAME
        file = beside if beside.is_file() else None
    found = read_profile(file) if file else EMPTY
    if use_template:
        found = structs.replace(found, chat_template="adapter")
    return structs.replace(found, tokenizer="adapter") if use_tokenizer else found


def read_profile(file: Path) -> Profile:
    """The profile that a YAML file holds. Raises CommandFailed."""
    try:
        with file.open("rb") as stream:
            return parse_profile(stream.read(MAX_PROFILE_BYTES + 1), str(file))
    except OSError as error:
        raise CommandFailed(f"the profile {file} can't be read: {error.strerror}") from None
    except ProfileInvalid as invalid:
        raise CommandFailed(str(invalid)) from None
