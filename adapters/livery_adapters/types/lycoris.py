"""LoHa and LoKr: a rank and an alpha per module, as LyCORIS has them."""

from __future__ import annotations

from dataclasses import dataclass

from livery_adapters.layout import TargetTensors
from livery_adapters.patterns import NamePatterns
from livery_adapters.peft_config import Config, FieldRules, number, patterns, whole
from livery_adapters.refusal import AdapterRefused
from livery_adapters.types.base import PeftType, Roles, need, one_dtype, wrong_shape

_READ = frozenset({"r", "alpha", "rank_pattern", "alpha_pattern"})
# `use_effective_conv2d` concerns convolutions alone; the tensors say how LoKr was decomposed.
_HARMLESS = frozenset({"rank_dropout", "module_dropout", "use_effective_conv2d", "init_weights"})


@dataclass(frozen=True, slots=True)
class LycorisSettings:
    """Patterns keep the file's order: the first that matches counts."""

    rank: int
    alpha: float
    rank_patterns: NamePatterns[int]
    alpha_patterns: NamePatterns[float]

    def rank_of(self, module: str) -> int:
        return self.rank_patterns.first(module, self.rank)

    def scale_of(self, module: str) -> float:
        """alpha / r, also where no tensor shows r because both sides are full."""
        return self.alpha_patterns.first(module, self.alpha) / self.rank_of(module)


def parse(config: Config) -> LycorisSettings:
    """Validate the fields of a LoHa or LoKr configuration. Raises AdapterRefused."""
    return LycorisSettings(
        rank=whole(config.get("r", 8), "r"),
        alpha=number(config.get("alpha", 8), "alpha"),
        rank_patterns=patterns(config, "rank_pattern", whole),
        alpha_patterns=patterns(config, "alpha_pattern", number),
    )


def _check_rank(module: str, rank: int, settings: LycorisSettings) -> None:
    if rank != settings.rank_of(module):
        raise AdapterRefused(
            "rank_mismatch",
            f"{module}: the tensors have rank {rank} and adapter_config.json says {settings.rank_of(module)} (r or "
            "rank_pattern); the two files don't belong together",
        )


def loha_target(module: str, roles: Roles, settings: LycorisSettings) -> TargetTensors:
    """Check the two pairs of one module; their product has the rank r². Raises AdapterRefused."""
    pairs = need(module, roles, "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    left, right = pairs[0].shape, pairs[1].shape
    alike = left == pairs[2].shape and right == pairs[3].shape
    if not alike or len(left) != 2 or len(right) != 2 or left[1] != right[0] or 0 in left + right:
        raise wrong_shape(module, roles, "twice [out, rank] and [rank, in]")
    _check_rank(module, left[1], settings)
    one_dtype(module, roles)
    return TargetTensors(
        module=module,
        kind="linear",
        tensors=roles,
        rank=left[1] ** 2,
        reducible=True,
        scale=settings.scale_of(module),
        in_features=right[1],
        out_features=left[0],
    )


def lokr_target(module: str, roles: Roles, settings: LycorisSettings) -> TargetTensors:
    """Check the two sides of one module, each in full or decomposed. Raises AdapterRefused."""
    rows_1, columns_1 = _side(module, roles, "lokr_w1", settings)
    rows_2, columns_2 = _side(module, roles, "lokr_w2", settings)
    one_dtype(module, roles)
    return TargetTensors(
        module=module,
        kind="linear",
        tensors=roles,
        scale=settings.scale_of(module),
        in_features=columns_1 * columns_2,
        out_features=rows_1 * rows_2,
    )


def _side(module: str, roles: Roles, name: str, settings: LycorisSettings) -> tuple[int, int]:
    """Rows and columns of one factor of the Kronecker product."""
    factors = (f"{name}_a", f"{name}_b")
    if name in roles:
        shape = roles[name].shape
        if len(shape) != 2 or 0 in shape or any(factor in roles for factor in factors):
            raise wrong_shape(module, roles, f"{name} [out, in], or {name}_a and {name}_b,")
        return shape[0], shape[1]
    left, right = (entry.shape for entry in need(module, roles, *factors))
    if len(left) != 2 or len(right) != 2 or left[1] != right[0] or 0 in left + right:
        raise wrong_shape(module, roles, f"{name}_a [out, rank] and {name}_b [rank, in]")
    _check_rank(module, left[1], settings)
    return left[0], right[1]


LOHA = PeftType(
    name="LOHA",
    rules=FieldRules(read=_READ, harmless=_HARMLESS),
    suffixes={name: name for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")},
    prefixes=("hada_",),
    parse=parse,
    target=loha_target,
)
LOKR = PeftType(
    name="LOKR",
    rules=FieldRules(read=_READ, harmless=_HARMLESS | {"rank_dropout_scale", "decompose_both", "decompose_factor"}),
    suffixes={name: name for name in ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")},
    prefixes=("lokr_",),
    parse=parse,
    target=lokr_target,
)
