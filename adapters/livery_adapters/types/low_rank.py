"""Types whose ΔW is of low rank once their own parameters, or the base's weight, are multiplied out.

HRA (Householder reflections), MiSS (one block repeated along the input), DeLoRA (normalised pairs), DEFT (a subspace
removed and filled anew) and GraLoRA (a grid of small pairs).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from livery_adapters.layout import TargetTensors
from livery_adapters.patterns import NamePatterns
from livery_adapters.peft_config import Config, FieldRules, bad_field, flag, number, patterns, whole
from livery_adapters.refusal import AdapterRefused
from livery_adapters.types.base import PeftType, Roles, is_pair, need, one_dtype, wrong_shape


def check_rank(module: str, found: int, expected: int, fields: str = "r") -> None:
    """The rank of the tensors must be the configuration's. Raises AdapterRefused (rank_mismatch)."""
    if found != expected:
        raise AdapterRefused(
            "rank_mismatch",
            f"{module}: the tensors have rank {found} and adapter_config.json says {expected} ({fields}); the two "
            "files don't belong together",
        )


def _one_of(config: Config, name: str, default: str, *values: str) -> str:
    value = config.get(name, default)
    if value not in values:
        raise bad_field(name, value, " or ".join(repr(known) for known in values))
    return str(value)


# -- HRA -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HraSettings:
    """`orthogonal`: the vectors are made so by Gram and Schmidt first."""

    rank: int
    orthogonal: bool


def _parse_hra(config: Config) -> HraSettings:
    return HraSettings(whole(config.get("r", 8), "r"), flag(config, "apply_GS"))


def _hra_target(module: str, roles: Roles, settings: HraSettings) -> TargetTensors:
    (vectors,) = need(module, roles, "hra_u")
    if len(vectors.shape) != 2 or 0 in vectors.shape:
        raise wrong_shape(module, roles, "[in, rank]")
    check_rank(module, vectors.shape[1], settings.rank)
    return TargetTensors(
        module=module, kind="linear", tensors=roles, rank=vectors.shape[1], in_features=vectors.shape[0]
    )


HRA = PeftType(
    name="HRA",
    rules=FieldRules(read=frozenset({"r", "apply_GS"}), harmless=frozenset({"init_weights"})),
    suffixes={"hra_u": "hra_u"},
    prefixes=("hra_",),
    parse=_parse_hra,
    target=_hra_target,
)


# -- MiSS ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MissSettings:
    """`variant` says how the block is used; "mini" repeats a block of `width` columns along the output as well."""

    rank: int
    variant: Literal["plain", "mini", "bat"]
    width: int


def _parse_miss(config: Config) -> MissSettings:
    variant = config.get("init_weights", True)
    if variant == "bat":
        return MissSettings(whole(config.get("r", 64), "r"), "bat", 0)
    if variant == "mini":
        return MissSettings(whole(config.get("r", 64), "r"), "mini", whole(config.get("mini_r", 1), "mini_r"))
    if not isinstance(variant, bool):
        raise bad_field("init_weights", variant, "true, false, 'bat' or 'mini'")
    return MissSettings(whole(config.get("r", 64), "r"), "plain", 0)


def _miss_target(module: str, roles: Roles, settings: MissSettings) -> TargetTensors:
    (block,) = need(module, roles, "miss_block")
    if settings.variant == "bat":
        if len(block.shape) != 3 or block.shape[1] != block.shape[2] or 0 in block.shape:
            raise wrong_shape(module, roles, "[blocks, rank, rank]")
        check_rank(module, block.shape[1], settings.rank)
        return TargetTensors(module=module, kind="linear", tensors=roles, out_features=block.shape[0] * block.shape[1])
    if len(block.shape) != 2 or 0 in block.shape or settings.width not in (0, block.shape[1]):
        raise wrong_shape(module, roles, f"[rank, {settings.width}]" if settings.width else "[rank, out]")
    check_rank(module, block.shape[0], settings.rank)
    out_features = None if settings.width else block.shape[1]
    return TargetTensors(module=module, kind="linear", tensors=roles, rank=block.shape[0], out_features=out_features)


MISS = PeftType(
    name="MISS",
    rules=FieldRules(read=frozenset({"r", "mini_r", "init_weights"}), harmless=frozenset({"miss_dropout"})),
    suffixes={"miss_block": "miss_block"},
    prefixes=("miss_",),
    parse=_parse_miss,
    target=_miss_target,
)


# -- DeLoRA ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DeloraSettings:
    """The trained strength of a module is in the file; patterns keep the file's order."""

    rank: int
    rank_patterns: NamePatterns[int]

    def rank_of(self, module: str) -> int:
        return self.rank_patterns.first(module, self.rank)


def _parse_delora(config: Config) -> DeloraSettings:
    return DeloraSettings(whole(config.get("r", 8), "r"), patterns(config, "rank_pattern", whole))


def _delora_target(module: str, roles: Roles, settings: DeloraSettings) -> TargetTensors:
    a, b, strength, norms = need(module, roles, "delora_A", "delora_B", "delora_lambda", "delora_w_norm")
    if not is_pair(a, b) or strength.shape != (1,) or norms.shape != a.shape[1:]:
        raise wrong_shape(module, roles, "[rank, in], [out, rank], [1] and [in]")
    check_rank(module, a.shape[0], settings.rank_of(module), "r or rank_pattern")
    return TargetTensors(
        module=module,
        kind="linear",
        tensors=roles,
        rank=a.shape[0],
        in_features=a.shape[1],
        out_features=b.shape[0],
    )


DELORA = PeftType(
    name="DELORA",
    rules=FieldRules(
        read=frozenset({"r", "rank_pattern"}),
        harmless=frozenset({"delora_lambda", "lambda_pattern", "module_dropout", "init_weights"}),
    ),
    suffixes={name: name for name in ("delora_A", "delora_B", "delora_lambda", "delora_w_norm")},
    prefixes=("delora_",),
    parse=_parse_delora,
    target=_delora_target,
)


# -- DEFT ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DeftSettings:
    """`orthogonal`: the projection is by the Q of P = QR, else by P and relu(P). `fills`: R is put in its place."""

    rank: int
    alpha: float
    orthogonal: bool
    fills: bool


def _parse_deft(config: Config) -> DeftSettings:
    method = _one_of(config, "decomposition_method", "qr", "qr", "relu")
    return DeftSettings(
        rank=whole(config.get("r", 8), "r"),
        alpha=number(config.get("alpha") or 0, "alpha"),
        orthogonal=method == "qr",
        fills=not flag(config, "para"),
    )


def _deft_target(module: str, roles: Roles, settings: DeftSettings) -> TargetTensors:
    names = ("deft_P", "deft_R") if settings.fills else ("deft_P",)
    p, *rest = need(module, roles, *names)
    if len(p.shape) != 2 or 0 in p.shape or any(len(r.shape) != 2 or r.shape[0] != p.shape[1] for r in rest):
        raise wrong_shape(module, roles, "[out, rank] and [rank, in]")
    rank = p.shape[1]
    check_rank(module, rank, min(settings.rank, p.shape[0]))
    return TargetTensors(
        module=module,
        kind="linear",
        tensors=roles,
        rank=rank,
        scale=settings.alpha / rank if settings.alpha else 1.0,
        in_features=rest[0].shape[1] if rest else None,
        out_features=p.shape[0],
    )


DEFT = PeftType(
    name="DEFT",
    rules=FieldRules(
        read=frozenset({"r", "alpha", "decomposition_method", "para"}),
        harmless=frozenset({"deft_dropout", "init_scale", "init_weights"}),
    ),
    suffixes={"deft_P": "deft_P", "deft_R": "deft_R"},
    prefixes=("deft_",),
    parse=_parse_deft,
    target=_deft_target,
)


# -- GraLoRA ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GraloraSettings:
    """`blocks` cut input and output; `hybrid` is the rank of an ordinary pair beside the grid, 0 for none."""

    rank: int
    blocks: int
    hybrid: int
    alpha: float


def _parse_gralora(config: Config) -> GraloraSettings:
    return GraloraSettings(
        rank=whole(config.get("r", 32), "r"),
        blocks=whole(config.get("gralora_k", 2), "gralora_k"),
        hybrid=whole(config.get("hybrid_r", 0), "hybrid_r", least=0),
        alpha=number(config.get("alpha", 64), "alpha"),
    )


def _gralora_target(module: str, roles: Roles, settings: GraloraSettings) -> TargetTensors:
    a, b = need(module, roles, "gralora_A", "gralora_B")
    blocks, rank = settings.blocks, settings.rank
    three = len(a.shape) == 3 and len(b.shape) == 3 and 0 not in a.shape + b.shape
    if not three or a.shape[0] != blocks or b.shape[0] != blocks or a.shape[2] != b.shape[1] or rank % blocks:
        raise wrong_shape(module, roles, f"[{blocks}, in/{blocks}, rank] and [{blocks}, rank, out/{blocks}]")
    check_rank(module, a.shape[2], rank)
    in_features, out_features = blocks * a.shape[1], blocks * b.shape[2]
    if settings.hybrid:
        pair = need(module, roles, "gralora_A_general", "gralora_B_general")
        if [entry.shape for entry in pair] != [(settings.hybrid, in_features), (out_features, settings.hybrid)]:
            raise wrong_shape(module, roles, f"[{settings.hybrid}, in] and [out, {settings.hybrid}]")
    one_dtype(module, roles)
    return TargetTensors(
        module=module,
        kind="linear",
        tensors=roles,
        rank=rank * blocks + settings.hybrid,
        scale=settings.alpha / (rank + settings.hybrid),
        in_features=in_features,
        out_features=out_features,
    )


GRALORA = PeftType(
    name="GRALORA",
    rules=FieldRules(
        read=frozenset({"r", "gralora_k", "hybrid_r", "alpha"}),
        harmless=frozenset({"gralora_dropout", "init_weights"}),
    ),
    suffixes={
        "gralora_A": "gralora_A",
        "gralora_B": "gralora_B",
        "gralora_A_general.weight": "gralora_A_general",
        "gralora_B_general.weight": "gralora_B_general",
    },
    prefixes=("gralora_",),
    parse=_parse_gralora,
    target=_gralora_target,
)
