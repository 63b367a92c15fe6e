"""Does an adapter fit this base model? Names, kinds, shapes and ranks, from headers alone: no weights, no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import islice

from livery_adapters.base_model import BaseModel, ModuleShape
from livery_adapters.layout import AdapterManifest, BaseCopy, TargetTensors
from livery_adapters.refusal import DEFAULT_LIMITS, AdapterRefused, Limits


@dataclass(frozen=True, slots=True)
class CoverageReport:
    """What an adapter changes in a base. `modules` counts adapted modules by the last part of their path."""

    digest: str
    base: str
    peft_type: str
    adapted: int
    modules: Mapping[str, int]
    ranks: tuple[int, ...]
    dtypes: tuple[str, ...]
    nbytes: int
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def check_against(manifest: AdapterManifest, base: BaseModel, limits: Limits = DEFAULT_LIMITS) -> CoverageReport:
    """Check every tensor of an adapter against the base. Raises AdapterRefused."""
    hint = _hint(manifest, base)
    known = [target for target in manifest.targets if target.module in base.modules]
    if not known:
        raise AdapterRefused(
            "no_matching_module",
            f"none of the adapter's {len(manifest.targets)} modules is in the base (adapter: "
            f"{_some(target.module for target in manifest.targets)}; base: {_some(base.modules)}). {hint}",
        )
    if not any(_fits(target, base.modules[target.module]) for target in known):
        target = known[0]
        raise AdapterRefused(
            "wrong_base",
            f"not one module fits: {_difference(target, base.modules[target.module])}. {hint}",
        )
    for target in manifest.targets:
        _check_target(target, base, limits, hint)
    for copy in manifest.base_copies:
        _check_copy(copy, base, hint)
    return _report(manifest, base)


def _check_target(target: TargetTensors, base: BaseModel, limits: Limits, hint: str) -> None:
    shape = base.modules.get(target.module)
    if shape is None:
        raise AdapterRefused("unknown_tensor", f"the base has no adaptable module {target.module}. {hint}")
    if not _fits(target, shape):
        raise AdapterRefused("wrong_shape", f"{_difference(target, shape)}. {hint}")
    if target.rank > limits.max_rank:
        raise AdapterRefused(
            "rank_over_limit",
            f"{target.module} has rank {target.rank} and the limit is {limits.max_rank}; raise the limit or train a "
            "smaller one",
        )


def _check_copy(copy: BaseCopy, base: BaseModel, hint: str) -> None:
    shape = base.modules.get(copy.module)
    if shape is None:
        raise AdapterRefused(
            "unknown_tensor",
            f"{copy.tensor} is a full weight and not a low-rank pair; replaced modules are not supported yet. {hint}",
        )
    rows = (shape.in_features, shape.out_features)
    expected = rows if shape.kind == "embedding" else rows[::-1]
    if copy.shape != expected:
        raise AdapterRefused(
            "wrong_shape",
            f"{copy.tensor} is {list(copy.shape)} and the base's weight is {list(expected)}: resized vocabularies are "
            f"not supported yet; train without adding tokens. {hint}",
        )


def _fits(target: TargetTensors, shape: ModuleShape) -> bool:
    mine = (target.kind, target.in_features, target.out_features)
    return mine == (shape.kind, shape.in_features, shape.out_features)


def _difference(target: TargetTensors, shape: ModuleShape) -> str:
    return (
        f"{target.module} is adapted as {target.kind} {target.in_features} -> {target.out_features} and the base has "
        f"{shape.kind} {shape.in_features} -> {shape.out_features}"
    )


def _hint(manifest: AdapterManifest, base: BaseModel) -> str:
    trained = f"was trained on {manifest.base_name!r}" if manifest.base_name else "names no base model"
    return f"This adapter {trained}; this server runs {base.name!r}: use an adapter trained on it"


def _some(names: Iterable[str]) -> str:
    listed = list(islice(names, 3))
    return ", ".join(listed[:2]) + (", ..." if len(listed) > 2 else "")


def _report(manifest: AdapterManifest, base: BaseModel) -> CoverageReport:
    targets = manifest.targets
    return CoverageReport(
        digest=manifest.digest,
        base=base.name,
        peft_type=manifest.peft_type,
        adapted=len(targets),
        modules=dict(sorted(Counter(target.module.rsplit(".", 1)[-1] for target in targets).items())),
        ranks=tuple(sorted({target.rank for target in targets})),
        dtypes=tuple(sorted({target.dtype for target in targets})),
        nbytes=manifest.nbytes,
        warnings=_warnings(manifest, base),
    )


def _warnings(manifest: AdapterManifest, base: BaseModel) -> tuple[str, ...]:
    found = []
    declared = manifest.base_name
    if declared and _last_part(declared) != _last_part(base.name):
        found.append(f"trained on {declared!r}, served on {base.name!r}: the shapes fit, the weights may not")
    if manifest.targets_by_pattern:
        found.append("target_modules is a pattern, which is not run: the tensors in the file say what is adapted")
    if all(target.scale == 0 for target in manifest.targets):
        found.append("every module is scaled by zero: this adapter changes nothing")
    return tuple(found)


def _last_part(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1].lower()
