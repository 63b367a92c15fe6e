"""Reading an adapter directory: configuration and tensor headers, validated, without torch and without the base.

limits = Limits(max_rank=64)
manifest = read_manifest(Path("adapters/pirate"), limits)   # AdapterRefused if the files are no good
report = check_against(manifest, base, limits)              # does it fit this base?
check_finite(Path("adapters/pirate"), manifest)             # livery_adapters.finite: no NaN or infinity
adapter = convert(Path("adapters/pirate"), manifest, base_weights)   # livery_adapters.formats: torch tensors
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from livery_adapters.coverage import CoverageReport, check_against
from livery_adapters.layout import AdapterManifest, BaseCopy, Kind, TargetTensors, digest_of
from livery_adapters.peft_config import LoraSettings, parse_lora_config
from livery_adapters.refusal import DEFAULT_LIMITS, AdapterRefused, Limits
from livery_adapters.strict_json import parse_object
from livery_adapters.tensor_file import (
    CONFIG_NAME,
    FILE_NAMES,
    WEIGHTS_NAME,
    TensorEntry,
    read_config_bytes,
    read_weights,
)

__all__ = [
    "FILE_NAMES",
    "AdapterManifest",
    "AdapterRefused",
    "BaseCopy",
    "CoverageReport",
    "Limits",
    "TargetTensors",
    "check_against",
    "digest_of",
    "read_manifest",
]

_PREFIX = "base_model.model."
_HALVES: dict[str, tuple[Kind, int]] = {
    "lora_A": ("linear", 0),
    "lora_B": ("linear", 1),
    "lora_embedding_A": ("embedding", 0),
    "lora_embedding_B": ("embedding", 1),
}
_SHOWN_FIELDS = ("r", "lora_alpha", "use_rslora", "target_modules", "task_type", "peft_version")


def read_manifest(directory: Path, limits: Limits = DEFAULT_LIMITS) -> AdapterManifest:
    """Read and validate the adapter in `directory`; other files there are ignored. Raises AdapterRefused.

    Reads the weights once from end to end for the digest, so call it off the event loop.
    """
    data = read_config_bytes(directory, limits)
    config = parse_object(data, CONFIG_NAME, code="bad_json")
    settings = parse_lora_config(config)
    entries, size, weights_hash = read_weights(directory, limits)
    targets, copies = _sort_tensors(entries, settings)
    return AdapterManifest(
        digest=digest_of({CONFIG_NAME: hashlib.sha256(data).hexdigest(), WEIGHTS_NAME: weights_hash}),
        peft_type="LORA",
        base_name=settings.base_name,
        targets=targets,
        base_copies=copies,
        tensors=entries,
        nbytes=size + len(data),
        targets_by_pattern=settings.targets.names is None,
        facts={name: config[name] for name in _SHOWN_FIELDS if name in config},
    )


def _sort_tensors(
    entries: Iterable[TensorEntry], settings: LoraSettings
) -> tuple[tuple[TargetTensors, ...], tuple[BaseCopy, ...]]:
    pairs: dict[tuple[str, Kind], list[TensorEntry | None]] = {}
    copies: list[BaseCopy] = []
    for entry in entries:
        module, rest = _split(entry.name)
        half = _HALVES.get(rest)
        if half is not None:
            kind, index = half
            pair = pairs.setdefault((module, kind), [None, None])
            if pair[index] is not None:
                raise AdapterRefused("duplicate_tensor", f"{module} has {rest} twice; keep one and save again")
            pair[index] = entry
        elif rest in ("weight", "base_layer"):
            copies.append(BaseCopy(module, entry.name, entry.shape))
        else:
            raise _unknown(entry.name)
    if not pairs:
        raise AdapterRefused(
            "no_matching_module",
            f"{WEIGHTS_NAME} holds no lora_A and lora_B tensors; copy the adapter PEFT's save_pretrained made, not "
            "a whole model",
        )
    # First, because tying also adapts the head, which target_modules doesn't name.
    _check_tying((kind for _, kind in pairs), settings)
    targets = tuple(_target(module, kind, a, b, settings) for (module, kind), (a, b) in pairs.items())
    return targets, tuple(copies)


def _split(name: str) -> tuple[str, str]:
    """Split a tensor's name into module path and what it is: a key of _HALVES, "base_layer" or "weight"."""
    if not name.startswith(_PREFIX):
        raise _unknown(name)
    parts = name.removeprefix(_PREFIX).split(".")
    if parts[-1] == "weight" and len(parts) > 1:
        del parts[-1]
        if parts[-1] not in ("default", "lora_A", "lora_B", "base_layer"):
            return ".".join(parts), "weight"
    elif not any(part.startswith("lora_embedding_") for part in parts[-2:]):
        raise _unknown(name)
    if parts[-1] == "default":
        del parts[-1]
    if len(parts) < 2:
        raise _unknown(name)
    return ".".join(parts[:-1]), parts[-1]


def _target(
    module: str, kind: Kind, a: TensorEntry | None, b: TensorEntry | None, settings: LoraSettings
) -> TargetTensors:
    if a is None or b is None:
        there = a or b
        raise AdapterRefused(
            "missing_half",
            f"{module} has only {there.name if there else 'nothing'}; both halves (A and B) are needed: save the "
            "adapter again",
        )
    if not settings.targets.covers(module):
        raise AdapterRefused(
            "untargeted_tensor",
            f"the file adapts {module}, which target_modules, exclude_modules or layers_to_transform leave out (PEFT "
            "would ignore it); correct adapter_config.json or save the adapter again",
        )
    _check_pair(module, a, b, settings.rank_of(module))
    rank = a.shape[0]
    return TargetTensors(
        module=module,
        kind=kind,
        rank=rank,
        scale=settings.scale_of(module, rank),
        in_features=a.shape[1],
        out_features=b.shape[0],
        dtype=a.dtype,
        a=a.name,
        b=b.name,
    )


def _check_pair(module: str, a: TensorEntry, b: TensorEntry, rank: int) -> None:
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or 0 in a.shape + b.shape:
        raise AdapterRefused(
            "wrong_shape",
            f"{module}: A is {list(a.shape)} and B is {list(b.shape)}; [rank, in] and [out, rank] are needed",
        )
    if a.shape[0] != rank:
        raise AdapterRefused(
            "rank_mismatch",
            f"{module}: the tensors have rank {a.shape[0]} and adapter_config.json says {rank} (r or rank_pattern); "
            "the two files don't belong together",
        )
    if a.dtype != b.dtype:
        raise AdapterRefused("bad_dtype", f"{module}: A is {a.dtype} and B is {b.dtype}; save both in one dtype")


def _check_tying(kinds: Iterable[Kind], settings: LoraSettings) -> None:
    if settings.ties_weights and "embedding" in kinds:
        raise AdapterRefused(
            "unsupported_field",
            "ensure_weight_tying is true and an embedding is adapted: adapters shared between embedding and head are "
            "not supported yet; train with ensure_weight_tying=False",
        )


def _unknown(name: str) -> AdapterRefused:
    return AdapterRefused(
        "unknown_tensor",
        f"tensor {name} is not part of a plain LoRA adapter; expected {_PREFIX}<module>.lora_A.weight and lora_B, as "
        "PEFT's save_pretrained writes them",
    )
