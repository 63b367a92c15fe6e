"""Does an adapter fit this base model? Names, kinds, shapes and ranks, from headers alone: no weights, no torch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from statistics import median

from livery_adapters.base_model import BaseModel, ModuleShape
from livery_adapters.effect import AdapterEffect
from livery_adapters.grown import added_rows, grown
from livery_adapters.layout import AdapterManifest, FullTensor, TargetTensors, Task
from livery_adapters.refusal import DEFAULT_LIMITS, AdapterRefused, Limits
from livery_adapters.tasks import check_head
from livery_adapters.types import type_of
from livery_adapters.types.base import untargeted, vocabulary_of
from livery_adapters.weightless import NONE

_ROUTERS = frozenset({"gate", "router", "shared_expert_gate"})  # what models call them, as the last part of a path
_EXPERT = re.compile(r"\.experts\.[0-9]+\.")  # linear in the name, which is not a pattern's but the file's

MUCH = 0.05  # relative error of a module beyond which an approximation is worth a warning


@dataclass(frozen=True, slots=True)
class ModuleCoverage:
    """What an adapter holds for one module, and what it does there once that was measured.

    `rank` is 0 for a change without one. `relative` is ‖W_adapted - W‖/‖W‖, `error` that of an approximation.
    """

    kind: str
    rank: int
    dtype: str
    nbytes: int
    relative: float | None = None
    error: float | None = None


@dataclass(frozen=True, slots=True)
class CoverageReport:
    """What an adapter changes in a base. `modules` counts adapted modules by the last part of their path.

    `modules_by_path` has one entry per changed module or parameter. What follows it is None until an engine has
    measured the adapter (`with_effect`): the spread of the modules' ‖ΔW‖/‖W‖ (still None where no W is known), whether
    the form that is served is PEFT's exactly, and the largest error of a module if not. `task` is what the adapter was
    trained to give, `num_labels` how many classes its head tells apart; 0 for one that doesn't classify.
    `added_tokens` are rows that it has beyond the base's vocabulary (`livery_adapters.grown`).
    `beside` is what lies beside the adapter's files and differs from the base's (`livery_adapters.beside.compare`).
    """

    digest: str
    base: str
    peft_type: str
    adapted: int
    modules: Mapping[str, int]
    ranks: tuple[int, ...]
    dtypes: tuple[str, ...]
    nbytes: int
    warnings: tuple[str, ...]
    modules_by_path: Mapping[str, ModuleCoverage] = field(default_factory=dict)
    smallest_effect: float | None = None
    median_effect: float | None = None
    largest_effect: float | None = None
    exact: bool | None = None
    error: float | None = None
    task: Task = "generate"
    num_labels: int = 0
    added_tokens: int = 0
    beside: Mapping[str, object] = field(default_factory=dict)

    def with_effect(self, effect: AdapterEffect) -> CoverageReport:
        """The report with what an engine measured, per module and in sum.

        Modules that only the engine knows of, such as a head that changes with the embedding it is tied to, join.
        """
        modules = dict(self.modules_by_path)
        for path, measured in effect.modules.items():
            held = modules.get(path) or ModuleCoverage("tied", measured.rank, "", 0)
            modules[path] = replace(held, relative=measured.relative, error=measured.error)
        moved = [measured.relative for measured in effect.modules.values()] or [0.0]
        known = [each for each in moved if each is not None]
        spread = (min(known), median(known), max(known)) if len(known) == len(moved) else (None, None, None)
        return replace(
            self,
            modules_by_path=modules,
            smallest_effect=spread[0],
            median_effect=spread[1],
            largest_effect=spread[2],
            exact=effect.exact,
            error=effect.error,
            warnings=(*self.warnings, *_lost(effect)),
        )

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def check_against(
    manifest: AdapterManifest, base: BaseModel, limits: Limits = DEFAULT_LIMITS, approximate: int = 0
) -> CoverageReport:
    """Check every tensor of an adapter against the base. Raises AdapterRefused.

    `approximate` is the rank to which `convert` will factorise what has no exact form or too large a rank; 0: none.
    """
    if manifest.peft_type == NONE:
        return _report(manifest, base)
    hint = _hint(manifest, base)
    added = added_rows(manifest, base.shapes)
    base = replace(base, shapes=grown(base.shapes, added))
    _check_fused(manifest, base)
    known = [target for target in manifest.targets if target.module in base.modules]
    if not known and not _elsewhere(manifest, base):
        modules = {target.module: None for target in manifest.targets} | {full.module: None for full in manifest.full}
        raise AdapterRefused(
            "no_matching_module",
            f"none of the adapter's {len(modules)} modules is in the base (adapter: {_some(modules)}; base: "
            f"{_some(base.modules)}). {hint}",
        )
    if known and not any(_fits(target, base.modules[target.module]) for target in known):
        target = known[0]
        raise AdapterRefused(
            "wrong_base",
            f"not one module fits: {_difference(target, base.modules[target.module])}. {hint}",
        )
    kind = type_of(manifest.peft_type)
    check = kind.check
    for target in manifest.targets:
        _check_target(manifest, target, base, hint)
        _check_rank(target, limits, approximate)
        if check is not None:
            check(target, base.shapes, manifest.settings)
    if kind.check_settings is not None:
        kind.check_settings(manifest.settings, base.shapes)
    for full in manifest.full:
        _check_full(full, base, hint)
    if manifest.head is not None:
        check_head(manifest.head, base)
    _check_saved(manifest, base)
    return replace(_report(manifest, base), added_tokens=added)


def _check_fused(manifest: AdapterManifest, base: BaseModel) -> None:
    """Adapters made before transformers 5 have a pair per expert, where the base holds all experts as one."""
    single = next((t.module for t in manifest.targets if base.shapes.experts and _EXPERT.search(t.module)), None)
    if single is not None:
        raise AdapterRefused(
            "unfused_experts",
            f"the file adapts {single}, a single expert, and this base holds all experts of a layer as one parameter; "
            "load the adapter with PEFT on transformers 5 or newer and save it again: it fuses the experts' pairs",
        )


def _elsewhere(manifest: AdapterManifest, base: BaseModel) -> bool:
    """Whether anything but linear modules and embeddings of the base is changed, or a module replaced in full."""
    shapes = base.shapes
    return any(target.path in shapes.experts or target.module in shapes.plain for target in manifest.targets) or any(
        full.module in shapes.modules or full.module in shapes.plain for full in manifest.full
    )


def _check_target(manifest: AdapterManifest, target: TargetTensors, base: BaseModel, hint: str) -> None:
    left_out_by = manifest.common.targets.left_out_by(target.module)
    if left_out_by and not target.named and target.module not in base.shapes.tied:
        raise untargeted(target.module, left_out_by)  # the manifest let it pass as a tied head
    if target.kind == "experts":
        if target.path not in base.shapes.experts:
            raise AdapterRefused("unknown_tensor", f"the base has no experts' parameter {target.path}. {hint}")
    elif target.kind == "plain":
        if target.module not in base.shapes.plain:
            raise AdapterRefused("unknown_tensor", f"the base has no replaceable module {target.module}. {hint}")
    else:
        shape = base.modules.get(target.module)
        if shape is None:
            raise AdapterRefused("unknown_tensor", f"{_unadaptable(target.module)}. {hint}")
        if not _fits(target, shape):
            raise AdapterRefused("wrong_shape", f"{_difference(target, shape)}. {hint}")


def _unadaptable(module: str) -> str:
    name = module.rpartition(".")[2]
    if name not in _ROUTERS:
        return f"the base has no adaptable module {module}"
    return (
        f"{module} is not among what adapters may change in this base: a router can't be served; train again with "
        f"exclude_modules=[{name!r}]"
    )


def _check_rank(target: TargetTensors, limits: Limits, approximate: int) -> None:
    if target.rank <= limits.max_rank or (target.reducible and approximate):
        return
    reduced = ", or add it with --approximate RANK to serve its best approximation" if target.reducible else ""
    raise AdapterRefused(
        "rank_over_limit",
        f"{target.module} has rank {target.rank} and the limit is {limits.max_rank}; raise --max-rank or train a "
        f"smaller one{reduced}",
    )


def _check_saved(manifest: AdapterManifest, base: BaseModel) -> None:
    """Every module of the base that `modules_to_save` names must be in the file, as PEFT demands at load."""
    there = {full.path for full in manifest.full}
    shapes = base.shapes
    named = [module for module in (*shapes.modules, *shapes.plain) if manifest.common.saves(module)]
    for module in named:
        parameters = shapes.plain.get(module, ("weight",))
        missing = [name for name in parameters if f"{module}.{name}" not in there]
        if missing:
            raise AdapterRefused(
                "missing_tensor",
                f"modules_to_save names {module} and the file lacks its {missing[0]}; save the adapter again, or "
                "remove the name from adapter_config.json",
            )


def _check_full(full: FullTensor, base: BaseModel, hint: str) -> None:
    shape = base.modules.get(full.module)
    if shape is None and full.module not in base.shapes.plain:
        raise AdapterRefused(
            "unknown_tensor",
            f"{full.entry.name} is a complete parameter of {full.module}, which is not among what adapters may replace "
            f"in this base: a router, for example, can't be served. {hint}",
        )
    expected = _expected(full, base)
    if expected is None:
        raise AdapterRefused(
            "unknown_tensor",
            f"{full.entry.name}: the base's {full.module} has no parameter {full.parameter!r}. {hint}",
        )
    if full.entry.shape != expected:
        resized = _only_rows_differ(full.entry.shape, expected, vocabulary_of(base.shapes))
        raise AdapterRefused(
            "resized_vocabulary" if resized else "wrong_shape",
            f"{full.entry.name} is {list(full.entry.shape)} and the base's {full.parameter} is {list(expected)}"
            + (": vocabularies may be grown, embedding and head alike, and never shrunk" if resized else "")
            + f". {hint}",
        )


def _only_rows_differ(found: tuple[int, ...], expected: tuple[int, ...], rows: int) -> bool:
    """Whether it is an embedding or a head of another vocabulary, and all else as it must be."""
    different = [mine for size, mine in zip(found, expected, strict=False) if size != mine]
    return len(found) == len(expected) and different == [rows]


def _expected(full: FullTensor, base: BaseModel) -> tuple[int, ...] | None:
    """The shape of the base's own parameter, None where the module has none of that name."""
    shape = base.modules.get(full.module)
    if shape is None:
        plain = base.shapes.plain[full.module].get(full.parameter)
        return plain
    if full.parameter == "bias":
        return (shape.out_features,) if shape.has_bias else None
    if full.parameter != "weight":
        return None
    natural = (shape.in_features, shape.out_features)
    return natural if shape.kind == "embedding" or shape.input_first else natural[::-1]


def _fits(target: TargetTensors, shape: ModuleShape) -> bool:
    return (
        target.kind in (shape.kind, "rows")
        and target.in_features in (None, shape.in_features)
        and target.out_features in (None, shape.out_features)
    )


def _difference(target: TargetTensors, shape: ModuleShape) -> str:
    mine = " -> ".join("any" if size is None else str(size) for size in (target.in_features, target.out_features))
    return (
        f"{target.module} is adapted as {target.kind} {mine} and the base has "
        f"{shape.kind} {shape.in_features} -> {shape.out_features}"
    )


def _hint(manifest: AdapterManifest, base: BaseModel) -> str:
    trained = f"was trained on {manifest.base_name!r}" if manifest.base_name else "names no base model"
    return f"This adapter {trained}; this server runs {base.name!r}: use an adapter trained on it"


def _some(names: Iterable[str]) -> str:
    listed = list(islice(names, 3))
    return ", ".join(listed[:2]) + (", ..." if len(listed) > 2 else "")


def _report(manifest: AdapterManifest, base: BaseModel) -> CoverageReport:
    modules = _modules(manifest)
    return CoverageReport(
        digest=manifest.digest,
        base=base.name,
        peft_type=manifest.peft_type,
        adapted=len(modules),
        modules=dict(sorted(Counter(path.rsplit(".", 1)[-1] for path in modules).items())),
        ranks=tuple(sorted({target.rank for target in manifest.targets if target.rank})),
        dtypes=tuple(sorted({entry.dtype for entry in manifest.tensors})),
        nbytes=manifest.nbytes,
        warnings=_warnings(manifest, base),
        modules_by_path=modules,
        task=manifest.task,
        num_labels=manifest.head.entry.shape[0] if manifest.head else 0,
    )


def _modules(manifest: AdapterManifest) -> dict[str, ModuleCoverage]:
    found = {
        target.path: ModuleCoverage(target.kind, target.rank, target.dtype, target.nbytes)
        for target in manifest.targets
    }
    for full in (*manifest.full, *([manifest.head] if manifest.head else [])):
        nbytes = full.entry.end - full.entry.begin
        known = found.get(full.module) or ModuleCoverage("full", 0, full.entry.dtype, 0)
        found[full.module] = replace(known, nbytes=known.nbytes + nbytes)
    return found


def _warnings(manifest: AdapterManifest, base: BaseModel) -> tuple[str, ...]:
    found = []
    declared = manifest.base_name
    if declared and not _same_model(declared, base.name):
        found.append(f"trained on {declared!r}, served on {base.name!r}: the shapes fit, the weights may not")
    if manifest.facts.get("target_modules") != "all-linear" and isinstance(manifest.facts.get("target_modules"), str):
        found.append("target_modules is a pattern, which is not run: the tensors in the file say what is adapted")
    if manifest.targets and not manifest.full and all(target.scale == 0 for target in manifest.targets):
        found.append("every module is scaled by zero: this adapter changes nothing")
    return (*found, *manifest.warnings)


def _lost(effect: AdapterEffect) -> tuple[str, ...]:
    """What an approximation leaves out, where that is a lot."""
    if effect.error <= MUCH:
        return ()
    return (
        f"approximated: up to {effect.error:.0%} of what a module changes is left out, so that answers may be far from "
        "the adapter's own; raise the rank of --approximate",
    )


def _same_model(declared: str, served: str) -> bool:
    """Whether two names are likely to mean one model: a directory's name may say more than the model's own."""
    one, other = (re.sub(r"[^a-z0-9]", "", name.rstrip("/").rsplit("/", 1)[-1].lower()) for name in (declared, served))
    return one in other or other in one
