"""What an evaluation on this machine is of: adapters in a folder, or versions that a data folder's registry has."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from livery.adapter_views import Json
from livery.commands.asking import CommandFailed
from livery.commands.eval_here import Found, Here
from livery.commands.files_here import hold_here
from livery.commands.offline import LocalBackend, Need, Place, open_local
from livery.commands.reach import ask
from livery.data_folder import DataFolder
from livery.evaluation.scorer import BASE_LABEL, Variant
from livery.models import base_digest, resolve_model
from livery_adapters.refusal import AdapterRefused
from livery_adapters.registry import NamedVersion, UnknownAdapter
from livery_adapters.tensor_file import CONFIG_NAME


def in_folder(model: str, root: Path, names: Sequence[str]) -> Found:
    """The adapters below a folder, or the one that it is. Raises CommandFailed, ModelNotFound."""
    if (root / CONFIG_NAME).is_file():
        found = {root.resolve().name: root}
    else:
        files = sorted((*root.glob(f"*/{CONFIG_NAME}"), *root.glob(f"*/*/{CONFIG_NAME}")))
        found = {str(file.parent.relative_to(root)): file.parent for file in files}
    if not found:
        raise CommandFailed(f"--adapters {root} holds no adapter: no folder in it has an {CONFIG_NAME}")
    if BASE_LABEL in found:
        raise CommandFailed(f"{found[BASE_LABEL]} is called as reports call the base model: rename that folder")
    for name in names:
        if name not in found:
            raise CommandFailed(f"--adapters {root} holds no adapter {name!r}; it has {', '.join(found)}")
    resolved = resolve_model(model)
    adapters = tuple(Here(Variant(name, name), found[name]) for name in dict.fromkeys(names or found))
    return Found(resolved, base_digest(resolved.path), adapters)


def in_data(place: Place, names: Sequence[str]) -> Found:
    """The base of a data folder, and the versions asked for beside what is active; all active ones, if none.

    Raises CommandFailed.
    """
    taken: list[Here] = []

    async def look(backend: LocalBackend) -> Json:
        for version, here in await asyncio.to_thread(_recorded, backend, names):
            taken.append(await _held(backend, version, here))
        return {"digest": backend.library.base.digest}

    told = ask(open_local(place, Need(base=True)), look)
    known = DataFolder(place.data).base()
    assert known is not None  # or the folder would not have been opened
    resolved = resolve_model(known.model)
    digest = base_digest(resolved.path)
    if digest != told["digest"]:
        raise CommandFailed(
            f"{known.model} is no longer the model that the adapters of {place.data} are for ({told['digest'][:12]}); "
            "evaluate them with --model and --adapters"
        )
    return Found(resolved, digest, tuple(taken))


async def _held(backend: LocalBackend, version: NamedVersion, here: Here) -> Here:
    """With its files on this machine; where there are none its row says why, and the others have numbers."""
    if here.weightless:
        return here
    try:
        return replace(here, hold=await hold_here(backend.library, version))
    except AdapterRefused as refused:
        return replace(here, gone=refused.message)


def _recorded(backend: LocalBackend, names: Sequence[str]) -> list[tuple[NamedVersion, Here]]:
    """Raises RegistryError, AdapterRefused."""
    registry = backend.library.registry
    found: dict[str, tuple[NamedVersion, Here]] = {}
    for asked in names or [brief.name for brief in registry.briefs() if brief.active is not None]:
        name, at, version = asked.partition("@")
        active = registry.get(name).active
        wanted = registry.version(name, version) if at else active
        if wanted is None:
            raise UnknownAdapter(name, f"it has no active version; name one of its versions, as in {name}@1")
        for one in (active, wanted):
            if one is not None:
                here = _here(backend, one, active=active is not None and one.number == active.number)
                found.setdefault(here.variant.label, (one, here))
    return list(found.values())


def _here(backend: LocalBackend, version: NamedVersion, *, active: bool) -> Here:
    label = version.name if active else f"{version.name}@{version.number}"
    variant = Variant(label, version.name, "active" if active else "candidate", version.number, version.facts.digest)
    return Here.recorded(variant, backend.library.candidate(version.facts), version.facts)
