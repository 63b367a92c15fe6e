"""`livery adapters check`: would this adapter be taken, what would it change, and is it applied as PEFT applies it.

A running server checks it with `--url`. Otherwise it goes through the server's own intake here, into a folder that
is thrown away: with the model loaded here (`--model`), or against shapes alone (`--data`, `--shapes-only`).
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.markup import escape

from livery.adapter_views import Json
from livery.adding import AddOptions
from livery.commands import shown
from livery.commands.asking import CommandFailed
from livery.commands.backends import EVERYWHERE, is_remote, local_directory, open_server
from livery.commands.offline import LocalBackend, Need, Place, open_local
from livery.commands.reach import REFUSALS, MaxAdapterBytes, MaxRank, Reach, ask, reaches, words
from livery.data_folder import DataFolder
from livery_adapters.fetching import copy_directory
from livery_adapters.finite import check_finite
from livery_adapters.manifest import read_manifest
from livery_adapters.refusal import DEFAULT_LIMITS, AdapterRefused, Limits
from livery_adapters.store import BlobStore
from livery_adapters.text_side import profile_beside

CHECKED = "checked"  # the one name in the registry of a check
NO_BASE = "not checked against a base; add --model, --data or --url"


@reaches
def check(
    reach: Reach,
    source: Annotated[
        str, typer.Argument(help="A directory that save_pretrained wrote, or hf://, s3://, gs://, az://.")
    ],
    model: Annotated[
        str | None,
        typer.Option(help="The base model it is for, loaded here. With neither base nor server: files only."),
    ] = None,
    approximate: Annotated[
        int | None,
        typer.Option(min=1, max=4096, metavar="RANK", help="Factorise a type that has no exact form to this rank."),
    ] = None,
    shapes_only: Annotated[
        bool, typer.Option("--shapes-only", help="Don't load the model: leave out what only running it shows.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify-with-peft", help="Load the model here and compare its logits with PEFT's.")
    ] = False,
    max_rank: MaxRank = DEFAULT_LIMITS.max_rank,
    max_adapter_bytes: MaxAdapterBytes = DEFAULT_LIMITS.max_weight_bytes,
) -> None:
    """Say whether an adapter would be taken, what it changes, and why it wouldn't. Exit status 1 when not."""
    limits = Limits(max_rank=max_rank, max_weight_bytes=max_adapter_bytes)
    try:
        answer = _answer(reach, source, model, approximate or 0, shapes_only, verify, limits)
    except CommandFailed as failed:
        if not isinstance(failed.__cause__, AdapterRefused):
            raise
        _say_refused(failed.__cause__, as_json=reach.as_json)
        raise typer.Exit(1) from None
    reach.print(answer, shown.report)
    if not answer["ok"]:
        _say_difference(answer["peft"], approximate)
        raise typer.Exit(1)


def _answer(
    reach: Reach, source: str, model: str | None, approximate: int, shapes_only: bool, verify: bool, limits: Limits
) -> Json:
    if reach.data is not None and model is not None:
        raise typer.BadParameter("--model and --data both name a base: give one of them")
    here = reach.data is not None or model is not None
    if verify and (shapes_only or not here):
        raise typer.BadParameter("--verify-with-peft loads the model here: name it with --model or --data")
    if not here and (reach.url_given or is_remote(source)):
        return ask(open_server(reach.url, reach.key), lambda backend: backend.inspect(source, approximate))
    if not here:
        return _files(local_directory(source), limits)

    async def examined(backend: LocalBackend) -> Json:
        if verify:
            return await _verified(backend, source, approximate)
        return await backend.inspect(source, approximate)

    with tempfile.TemporaryDirectory(prefix="livery-check-") as scratch:
        if reach.data is not None:
            known = DataFolder(reach.place().data).base()
            if known is None:
                raise CommandFailed(
                    f"no server has run on --data {reach.data} yet, so its base model isn't known; give --model instead"
                )
            DataFolder(Path(scratch)).write_base(msgspec.structs.replace(known, registry="", blob_store=""))
        place = Place(Path(scratch), None, model)
        return ask(
            open_local(
                place, Need(base=True, creates=True, proves=verify or (model is not None and not shapes_only)), limits
            ),
            examined,
        )


async def _verified(backend: LocalBackend, source: str, approximate: int) -> Json:
    """Take it in, and let PEFT read what was taken."""
    from livery.commands.verify_peft import verify_with_peft  # needs torch

    record = await backend.add(CHECKED, source, AddOptions(approximate=approximate))
    version = await asyncio.to_thread(backend.library.registry.version, CHECKED, "1")
    assert backend.prover is not None
    if version.facts.weightless:
        raise CommandFailed(f"{source} is a profile over the base: it has no weights that PEFT could verify")
    peft = await asyncio.to_thread(verify_with_peft, backend.prover, backend.library.candidate(version.facts))
    return {"ok": peft["ok"], "coverage": record["coverage"], "peft": peft}


def _files(path: Path, limits: Limits) -> Json:
    """What the files say by themselves. Raises CommandFailed from AdapterRefused."""
    try:
        with (
            tempfile.TemporaryDirectory(prefix="livery-check-") as scratch,
            BlobStore(Path(scratch), limits).incoming() as incoming,
        ):
            copy_directory(path, incoming, [EVERYWHERE])
            manifest = read_manifest(incoming.path, limits, digest=incoming.seal())
            check_finite(incoming.path, manifest)
            profile_beside(incoming.beside, None)
    except REFUSALS as refused:
        raise CommandFailed(words(refused)) from refused
    return {
        "ok": True,
        "files": {
            "digest": manifest.digest,
            "peft_type": manifest.peft_type,
            "base_in_config": manifest.base_name,
            "adapted": len(manifest.targets),
            "max_rank": manifest.max_rank,
            "nbytes": manifest.nbytes,
            "config": dict(manifest.facts),
        },
        "note": NO_BASE,
    }


def _say_refused(refused: AdapterRefused, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"ok": False, "code": refused.code, "message": refused.message}, indent=2))
    else:
        console = Console(stderr=True, soft_wrap=True)
        console.print(f"[red]refused[/] ({refused.code}): {escape(refused.message)}", highlight=False)


def _say_difference(peft: Json, approximate: int | None) -> None:
    remedy = "this is a fault of Livery: please report it with the adapter"
    if approximate:
        remedy = f"that is the approximation to rank {approximate}: a higher one comes closer"
    console = Console(stderr=True, soft_wrap=True)
    console.print(
        f"[red]error:[/] under this adapter the engine's logits differ from PEFT's by {peft['difference']:.1e} of the "
        f"largest (allowed: {peft['tolerance']:.0e}); {remedy}",
        highlight=False,
    )
