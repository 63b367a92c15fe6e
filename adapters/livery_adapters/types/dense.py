"""Types whose ΔW is of full rank and has no shorter form: served only as the best approximation of a given rank.

HiRA, C3A, FourierFT, RandLoRA, RoAd, SHiRA, Super-Tuning and OSF.
"""

from __future__ import annotations

from dataclasses import dataclass

from livery_adapters.base_model import BaseShapes
from livery_adapters.layout import TargetTensors
from livery_adapters.peft_config import Config, FieldRules, bad_field, flag, number, whole
from livery_adapters.refusal import AdapterRefused
from livery_adapters.types.base import PeftType, Roles, is_pair, need, no_settings, wrong_shape
from livery_adapters.types.low_rank import check_rank

# -- HiRA: ΔW = W ⊙ (B·A) --------------------------------------------------------------------------------


def _hira_target(module: str, roles: Roles, settings: None) -> TargetTensors:
    a, b = need(module, roles, "hira_A", "hira_B")
    if not is_pair(a, b):
        raise wrong_shape(module, roles, "[rank, in] and [out, rank]")
    return TargetTensors(module=module, kind="linear", tensors=roles, in_features=a.shape[1], out_features=b.shape[0])


HIRA: PeftType[None] = PeftType(
    name="HIRA",
    rules=FieldRules(read=frozenset(), harmless=frozenset({"r", "rank_pattern", "hira_dropout", "init_weights"})),
    suffixes={"hira_A": "hira_A", "hira_B": "hira_B"},
    prefixes=("hira_",),
    parse=no_settings,
    target=_hira_target,
)


# -- C3A: blocks of circulant matrices -------------------------------------------------------------------


def _c3a_target(module: str, roles: Roles, settings: None) -> TargetTensors:
    (kernel,) = need(module, roles, "c3a_kernel")
    if len(kernel.shape) != 3 or 0 in kernel.shape:
        raise wrong_shape(module, roles, "[out/size, in/size, size]")
    rows, columns, size = kernel.shape
    return TargetTensors(
        module=module, kind="linear", tensors=roles, in_features=columns * size, out_features=rows * size
    )


C3A: PeftType[None] = PeftType(
    name="C3A",
    rules=FieldRules(read=frozenset(), harmless=frozenset({"block_size", "block_size_pattern", "init_weights"})),
    suffixes={"c3a_kernel": "c3a_kernel"},
    prefixes=("c3a_",),
    parse=no_settings,
    target=_c3a_target,
)


# -- FourierFT: a few entries of the spectrum of ΔW ------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FourierSettings:
    """Which entries they are is drawn from `seed`; how many shows in the tensors."""

    seed: int
    scale: float


def _parse_fourier(config: Config) -> FourierSettings:
    return FourierSettings(
        seed=whole(config.get("random_loc_seed", 777), "random_loc_seed", least=0),
        scale=number(config.get("scaling", 150.0), "scaling"),
    )


def _fourier_target(module: str, roles: Roles, settings: FourierSettings) -> TargetTensors:
    (spectrum,) = need(module, roles, "fourierft_spectrum")
    if len(spectrum.shape) != 1 or 0 in spectrum.shape:
        raise wrong_shape(module, roles, "[entries]")
    return TargetTensors(module=module, kind="linear", tensors=roles, scale=settings.scale)


def _check_fourier(target: TargetTensors, shapes: BaseShapes, settings: FourierSettings) -> None:
    shape = shapes.modules[target.module]
    if target.tensors["fourierft_spectrum"].shape[0] > shape.in_features * shape.out_features:
        raise wrong_shape(target.module, target.tensors, f"at most {shape.in_features} · {shape.out_features} entries")


FOURIERFT = PeftType(
    name="FOURIERFT",
    rules=FieldRules(
        read=frozenset({"random_loc_seed", "scaling"}),
        harmless=frozenset({"n_frequency", "n_frequency_pattern", "init_weights"}),
    ),
    suffixes={"fourierft_spectrum": "fourierft_spectrum"},
    prefixes=("fourierft_",),
    parse=_parse_fourier,
    target=_fourier_target,
    check=_check_fourier,
)


# -- RandLoRA: as many random pairs as full rank takes, scaled -------------------------------------------


@dataclass(frozen=True, slots=True)
class RandLoraSettings:
    """The random matrices are in the file."""

    rank: int
    alpha: float


def _parse_randlora(config: Config) -> RandLoraSettings:
    if not flag(config, "save_projection", default=True):
        raise AdapterRefused(
            "unsupported_field",
            "save_projection is false: PEFT draws RandLoRA's random matrices in a precision that depends on the "
            "machine; save the adapter again with save_projection=True where it was trained",
        )
    return RandLoraSettings(
        rank=whole(config.get("r", 32), "r"), alpha=number(config.get("randlora_alpha", 640), "randlora_alpha")
    )


def _randlora_target(module: str, roles: Roles, settings: RandLoraSettings) -> TargetTensors:
    strength, gain = need(module, roles, "randlora_lambda", "randlora_gamma")
    if len(strength.shape) != 2 or len(gain.shape) != 2 or strength.shape[1] != gain.shape[0] or 0 in gain.shape:
        raise wrong_shape(module, roles, "[rank, bases] and [bases, the smaller of in and out]")
    check_rank(module, strength.shape[0], settings.rank)
    return TargetTensors(module=module, kind="linear", tensors=roles, scale=settings.alpha / settings.rank)


def _check_randlora(target: TargetTensors, shapes: BaseShapes, settings: RandLoraSettings) -> None:
    shape = shapes.modules[target.module]
    smaller = min(shape.in_features, shape.out_features)
    bases = -(-smaller // settings.rank)
    if target.tensors["randlora_gamma"].shape != (bases, smaller):
        raise wrong_shape(target.module, target.tensors, f"[{settings.rank}, {bases}] and [{bases}, {smaller}]")


_RANDOM = ("randlora_A", "randlora_B")  # shared, and written once more for every module
RANDLORA = PeftType(
    name="RANDLORA",
    rules=FieldRules(
        read=frozenset({"r", "randlora_alpha", "save_projection"}),
        harmless=frozenset({"projection_prng_key", "sparse", "very_sparse", "randlora_dropout", "init_weights"}),
    ),
    suffixes={name: name for name in ("randlora_lambda", "randlora_gamma", *_RANDOM)},
    prefixes=("randlora_",),
    shared={name: name for name in _RANDOM},
    parse=_parse_randlora,
    target=_randlora_target,
    check=_check_randlora,
)


# -- RoAd: pairs of outputs turned and stretched ---------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RoadSettings:
    """`sharing` is how many angles there are for two outputs: 1, 2 or 4."""

    sharing: int
    group: int


def _parse_road(config: Config) -> RoadSettings:
    variant = config.get("variant", "road_1")
    if variant not in ("road_1", "road_2", "road_4"):
        raise bad_field("variant", variant, "'road_1', 'road_2' or 'road_4'")
    group = whole(config.get("group_size", 64), "group_size")
    if group % 2:
        raise bad_field("group_size", group, "an even number")
    return RoadSettings(int(str(variant)[-1]), group)


def _road_target(module: str, roles: Roles, settings: RoadSettings) -> TargetTensors:
    angles, lengths = need(module, roles, "road_theta", "road_alpha")
    if len(angles.shape) != 1 or angles.shape != lengths.shape or 2 * angles.shape[0] % settings.sharing:
        raise wrong_shape(module, roles, "twice the same number of values")
    out_features = 2 * angles.shape[0] // settings.sharing
    if not out_features or out_features % settings.group:
        raise wrong_shape(module, roles, f"values for a multiple of {settings.group} outputs (group_size)")
    return TargetTensors(module=module, kind="linear", tensors=roles, out_features=out_features)


ROAD = PeftType(
    name="ROAD",
    rules=FieldRules(read=frozenset({"variant", "group_size"}), harmless=frozenset({"init_weights"})),
    suffixes={"road_theta": "road_theta", "road_alpha": "road_alpha"},
    prefixes=("road_",),
    parse=_parse_road,
    target=_road_target,
)


# -- SHiRA: single entries of ΔW -------------------------------------------------------------------------


def _shira_target(module: str, roles: Roles, settings: None) -> TargetTensors:
    values, places = need(module, roles, "shira_weight", "shira_indices")
    if len(values.shape) != 1 or 0 in values.shape or places.shape != (2, *values.shape):
        raise wrong_shape(module, roles, "[entries] and [2, entries]")
    return TargetTensors(module=module, kind="linear", tensors=roles)


SHIRA: PeftType[None] = PeftType(
    name="SHIRA",
    rules=FieldRules(read=frozenset(), harmless=frozenset({"r", "mask_type", "random_seed", "init_weights"})),
    suffixes={"shira_weight": "shira_weight", "shira_indices": "shira_indices"},
    prefixes=("shira_",),
    integers=frozenset({"shira_indices"}),
    parse=no_settings,
    target=_shira_target,
)


# -- Super-Tuning: the largest entries of W, and an ordinary pair beside them -----------------------------


@dataclass(frozen=True, slots=True)
class SupertuningSettings:
    """`rank` is that of the pair beside the single entries, 0 for none."""

    rank: int
    alpha: float


def _parse_supertuning(config: Config) -> SupertuningSettings:
    rank = config.get("r")
    return SupertuningSettings(
        rank=0 if rank is None else whole(rank, "r"), alpha=number(config.get("lora_alpha") or 0, "lora_alpha")
    )


def _supertuning_target(module: str, roles: Roles, settings: SupertuningSettings) -> TargetTensors:
    if "supertuning_indices" not in roles:
        raise AdapterRefused(
            "missing_half",
            f"{module} has no supertuning_indices: which entries of the base are the largest differs between machines "
            "where some are equal; save the adapter again with save_precomputed_indices=True",
        )
    values, places = need(module, roles, "supertuning_values", "supertuning_indices")
    if len(values.shape) != 1 or 0 in values.shape or places.shape != values.shape:
        raise wrong_shape(module, roles, "[entries] twice")
    if not settings.rank:
        return TargetTensors(module=module, kind="linear", tensors=roles)
    a, b = need(module, roles, "supertuning_lora_A", "supertuning_lora_B")
    if not is_pair(a, b):
        raise wrong_shape(module, roles, "[rank, in] and [out, rank]")
    check_rank(module, a.shape[0], settings.rank)
    return TargetTensors(
        module=module,
        kind="linear",
        tensors=roles,
        scale=settings.alpha / settings.rank,
        in_features=a.shape[1],
        out_features=b.shape[0],
    )


SUPERTUNING = PeftType(
    name="SUPERTUNING",
    rules=FieldRules(
        read=frozenset({"r", "lora_alpha"}),
        harmless=frozenset({"sparsity", "select_top", "save_precomputed_indices", "lora_dropout", "init_weights"}),
    ),
    suffixes={
        "supertuning_values": "supertuning_values",
        "supertuning_indices": "supertuning_indices",
        "supertuning_lora_A.weight": "supertuning_lora_A",
        "supertuning_lora_B.weight": "supertuning_lora_B",
    },
    prefixes=("supertuning_",),
    integers=frozenset({"supertuning_indices"}),
    parse=_parse_supertuning,
    target=_supertuning_target,
)


# -- OSF: the lower part of W's singular values, trained anew --------------------------------------------


def _osf_target(module: str, roles: Roles, settings: None) -> TargetTensors:
    left, values, right = need(module, roles, "osf_U", "osf_S", "osf_V")
    three = len(left.shape) == 2 and len(right.shape) == 2 and 0 not in left.shape + right.shape
    if not three or values.shape != left.shape[1:] or values.shape != right.shape[:1]:
        raise wrong_shape(module, roles, "[out, values], [values] and [values, in]")
    return TargetTensors(
        module=module, kind="linear", tensors=roles, in_features=right.shape[1], out_features=left.shape[0]
    )


def _check_osf(target: TargetTensors, shapes: BaseShapes, settings: None) -> None:
    shape = shapes.modules[target.module]
    if target.tensors["osf_S"].shape[0] > min(shape.in_features, shape.out_features):
        raise wrong_shape(target.module, target.tensors, "no more values than the smaller side of the base's weight")


OSF: PeftType[None] = PeftType(
    name="OSF",
    rules=FieldRules(
        read=frozenset(), harmless=frozenset({"effective_rank", "rank_pattern", "target_svd_config", "init_weights"})
    ),
    suffixes={f"osf_svd_params.{part}_low": f"osf_{part}" for part in "USV"},
    prefixes=("osf_",),
    parse=no_settings,
    target=_osf_target,
    check=_check_osf,
)
