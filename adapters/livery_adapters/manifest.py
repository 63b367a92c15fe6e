"""Reading an adapter directory: configuration and tensor headers, validated, without torch and without the base.

limits = Limits(max_rank=64)
manifest = read_manifest(Path("adapters/pirate"), limits)   # AdapterRefused if the files are no good
report = check_against(manifest, base, limits)              # does it fit this base?
check_finite(Path("adapters/pirate"), manifest)             # livery_adapters.finite: no NaN or infinity
adapter = convert(Path("adapters/pirate"), manifest, base_weights)   # livery_adapters.formats: torch tensors
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from livery_adapters.coverage import CoverageReport, check_against
from livery_adapters.layout import AdapterManifest, FullTensor, TargetTensors, digest_of
from livery_adapters.peft_config import CommonSettings, check_fields, common_settings
from livery_adapters.refusal import DEFAULT_LIMITS, AdapterRefused, Limits
from livery_adapters.strict_json import parse_object
from livery_adapters.tasks import taken_out, task_of
from livery_adapters.tensor_file import (
    CONFIG_NAME,
    FILE_NAMES,
    INTEGERS,
    WEIGHTS_NAME,
    TensorEntry,
    bad_dtype,
    open_weights,
    parse_header,
    read_config_bytes,
)
from livery_adapters.types import type_of
from livery_adapters.types.base import PeftType, untargeted
from livery_adapters.weightless import NO_HEADER, NO_TENSORS, NONE, says_none, weightless_manifest

__all__ = [
    "FILE_NAMES",
    "AdapterManifest",
    "AdapterRefused",
    "CoverageReport",
    "FullTensor",
    "Limits",
    "TargetTensors",
    "check_against",
    "digest_of",
    "read_manifest",
]

_ROOT = "base_model."
_PREFIX = "base_model.model."
_COPY = ".modules_to_save."  # beside resized embeddings PEFT saves such a module under two names, and reads the other
_ADAPTER = "default"  # PEFT's name for the only adapter, which files of its older versions still carry
_SHOWN_FIELDS = ("r", "lora_alpha", "use_rslora", "target_modules", "modules_to_save", "task_type", "peft_version")


Parse = Callable[[bytes, bytes, int, Limits], AdapterManifest]  # as `parse_manifest`


def read_manifest(
    directory: Path, limits: Limits = DEFAULT_LIMITS, digest: str | None = None, parse: Parse | None = None
) -> AdapterManifest:
    """Read and validate the adapter in `directory`; other files there are ignored. Raises AdapterRefused.

    One that says it has no weights needs no file of them.

    Reads the weights once from end to end for the digest, so call it off the event loop; with `digest`, that of
    files whose contents were verified before, only their headers. `parse` takes the place of `parse_manifest` where
    what it gives may be known.
    """
    data = read_config_bytes(directory, limits)
    if says_none(data) and not os.path.lexists(directory / WEIGHTS_NAME):
        manifest = (parse or parse_manifest)(data, NO_HEADER, len(NO_TENSORS), limits)
        sums = {CONFIG_NAME: hashlib.sha256(data).hexdigest(), WEIGHTS_NAME: hashlib.sha256(NO_TENSORS).hexdigest()}
        return replace(manifest, digest=digest or digest_of(sums))
    with open_weights(directory, limits) as file:
        manifest = (parse or parse_manifest)(data, file.header, file.size, limits)
        if digest is None:
            digest = digest_of({CONFIG_NAME: hashlib.sha256(data).hexdigest(), WEIGHTS_NAME: file.sha256()})
    return replace(manifest, digest=digest)


def parse_manifest(data: bytes, header: bytes, size: int, limits: Limits) -> AdapterManifest:
    """What the configuration and the header of a weights file of `size` bytes say, without a digest.

    Depends on nothing else. Raises AdapterRefused.
    """
    config = parse_object(data, CONFIG_NAME, code="bad_json")
    if config.get("peft_type") == NONE:
        return weightless_manifest(config, header, size + len(data))
    kind = type_of(config.get("peft_type"))
    check_fields(config, kind.rules)
    common, settings = common_settings(config), kind.parse(config)
    entries = parse_header(header, size, limits)
    found = _sort_tensors(entries, kind, common)
    targets = tuple(_target(module, roles, kind, common, settings) for module, roles in found.modules.items())
    if not targets and not found.full:
        raise AdapterRefused("no_matching_module", f"{WEIGHTS_NAME} holds nothing but tensors that all modules share")
    head, full = taken_out(found.full.values())
    invocation = kind.invocation(settings) if kind.invocation else ()
    _check_late_start(invocation, targets, found)
    return AdapterManifest(
        digest="",
        peft_type=kind.name,
        common=common,
        settings=settings,
        targets=targets,
        shared=found.shared,
        full=full,
        tensors=entries,
        nbytes=size + len(data),
        facts={name: config[name] for name in _SHOWN_FIELDS if name in config},
        invocation=invocation,
        warnings=kind.warn(targets, settings) if kind.warn else (),
        task=task_of(config.get("task_type"), head),
        head=head,
    )


@dataclass(slots=True)
class _Sorted:
    """The tensors of a file: by module and role, of no module by role, complete parameters by path and `own`."""

    modules: dict[str, dict[str, TensorEntry]] = field(default_factory=dict)
    shared: dict[str, TensorEntry] = field(default_factory=dict)
    full: dict[tuple[str, bool], FullTensor] = field(default_factory=dict)


def _sort_tensors(entries: Collection[TensorEntry], kind: PeftType[Any], common: CommonSettings) -> _Sorted:
    found = _Sorted()
    names = {entry.name for entry in entries}
    twins = {name: name.replace(_COPY, ".", 1) for name in names if _COPY in name}
    copied = names.intersection(twins.values())
    for entry in entries:
        if twins.get(entry.name) in copied:
            continue
        role = kind.shared.get(entry.name.removeprefix(_ROOT)) if entry.name.startswith(_ROOT) else None
        if role is not None:
            _check_dtype(entry, role, kind)
            found.shared[role] = entry
            continue
        parts = _parts(entry.name, kind)
        module, role = _role(parts, kind)
        _check_dtype(entry, role, kind)
        if role is not None:
            roles = found.modules.setdefault(module, {})
            if role in roles:
                raise AdapterRefused("duplicate_tensor", f"{module} has {role} twice; keep one and save again")
            roles[role] = entry
        else:
            full = _full(entry, parts, kind, common, tuned=entry.name in copied)
            if found.full.setdefault((full.path, full.own), full) is not full:
                raise AdapterRefused("duplicate_tensor", f"{full.path} is there twice; keep one and save again")
    return found


def _check_dtype(entry: TensorEntry, role: str | None, kind: PeftType[Any]) -> None:
    if (entry.dtype in INTEGERS) != (role in kind.integers):
        raise bad_dtype(entry.name, entry.dtype)


def _parts(name: str, kind: PeftType[Any]) -> list[str]:
    """The dotted parts of a tensor's name after PEFT's prefix and without the adapter's name."""
    if not name.startswith(_PREFIX):
        raise _unknown(name, kind)
    parts = name.removeprefix(_PREFIX).split(".")
    for index in (-1, -2):
        if len(parts) > 2 and parts[index] == _ADAPTER:
            del parts[index]
            break
    if len(parts) < 2:
        raise _unknown(name, kind)
    return parts


def _role(parts: list[str], kind: PeftType[Any]) -> tuple[str, str | None]:
    """The module and the role of a tensor; no role when none of the type's suffixes fits."""
    for count in range(min(3, len(parts) - 1), 0, -1):
        role = kind.suffixes.get(".".join(parts[-count:]))
        if role is not None:
            return ".".join(parts[:-count]), role
    return "", None


def _full(
    entry: TensorEntry, parts: list[str], kind: PeftType[Any], common: CommonSettings, *, tuned: bool
) -> FullTensor:
    """A complete parameter; the base says later whether the module has one of that name.

    `tuned`: the file has it as one of `modules_to_save` as well, though only for being tied to one.
    """
    *path, parameter = parts
    if path[-2:] == ["token_adapter", "base_layer"]:
        del path[-2]
    if path[-1] in kind.copies and len(path) > 1:
        module = ".".join(path[:-1])
        if left_out_by := common.targets.left_out_by(module):
            raise untargeted(module, left_out_by)
        return FullTensor(module, parameter, entry, own=True)
    if any(part.startswith(kind.prefixes) for part in (*path, parameter)):
        raise _unknown(entry.name, kind)
    if path[-1] in ("base_layer", "original_module") and len(path) > 1:
        return FullTensor(".".join(path[:-1]), parameter, entry, own=False)
    module = ".".join(path)
    return FullTensor(module, parameter, entry, own=tuned or common.saves(module))


def _target(
    module: str, roles: dict[str, TensorEntry], kind: PeftType[Any], common: CommonSettings, settings: object
) -> TargetTensors:
    assert kind.target is not None, "only a type with suffixes has tensors of a module"
    target = kind.target(module, roles, settings)
    # Tying also adapts the head, which target_modules doesn't name: only the base knows whether this module is one.
    if not (target.named or common.ties_weights) and (left_out_by := common.targets.left_out_by(module)):
        raise untargeted(module, left_out_by)
    return target


def _check_late_start(invocation: tuple[int, ...], targets: tuple[TargetTensors, ...], found: _Sorted) -> None:
    """An adapter that starts in the middle of a text can't change what earlier tokens see. Raises AdapterRefused."""
    other = next(
        (target.path for target in targets if target.kind != "linear"), next((path for path, _ in found.full), None)
    )
    if invocation and other is not None:
        raise AdapterRefused(
            "unsupported_combination",
            f"the adapter starts at its invocation tokens and also changes {other}, which PEFT applies from the first "
            "token on; train it with low-rank pairs on linear modules only",
        )


def _unknown(name: str, kind: PeftType[Any]) -> AdapterRefused:
    suffixes = sorted(kind.suffixes)
    listed = ", ".join(suffixes[:2]) + (", ..." if len(suffixes) > 2 else "")
    return AdapterRefused(
        "unknown_tensor",
        f"tensor {name} is not part of a {kind.name} adapter; expected {_PREFIX}<module>. followed by {listed}, as "
        "PEFT's save_pretrained writes them",
    )
