"""VeRA and PVeRA: two random matrices that all modules share, and two trained vectors per module.

PVeRA trains a mean and a variance per rank, the mean in the first half; only the mean counts at inference.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from livery_adapters.layout import TargetTensors
from livery_adapters.peft_config import Config, FieldRules, flag, whole
from livery_adapters.refusal import AdapterRefused
from livery_adapters.types.base import PeftType, Roles, need, one_dtype, wrong_shape

RULES = FieldRules(
    read=frozenset({"r", "projection_prng_key", "save_projection"}),
    harmless=frozenset({"vera_dropout", "d_initial", "init_weights"}),
)


@dataclass(frozen=True, slots=True)
class VeraSettings:
    """`saved`: the shared matrices are in the file; otherwise they are drawn from `seed`.

    `means` is 2 for PVeRA, whose A and rank gains have a second half for the variance, else 1; `prefix` is how its
    tensors' names begin.
    """

    rank: int
    saved: bool
    seed: int
    prefix: str = "vera"
    means: int = 1


def parse(config: Config) -> VeraSettings:
    """Validate the fields of a VeRA configuration. Raises AdapterRefused."""
    return VeraSettings(
        rank=whole(config.get("r", 256), "r"),
        saved=flag(config, "save_projection", default=True),
        seed=whole(config.get("projection_prng_key", 0), "projection_prng_key", least=0),
    )


def parse_pvera(config: Config) -> VeraSettings:
    """Validate the fields of a PVeRA configuration. Raises AdapterRefused."""
    return replace(parse(config), prefix="pvera", means=2)


def target(module: str, roles: Roles, settings: VeraSettings) -> TargetTensors:
    """Check the two vectors of one module. Raises AdapterRefused."""
    out_gain, rank_gain = need(module, roles, f"{settings.prefix}_lambda_b", f"{settings.prefix}_lambda_d")
    if len(out_gain.shape) != 1 or len(rank_gain.shape) != 1:
        raise wrong_shape(module, roles, "[out] and [rank]")
    if rank_gain.shape[0] != settings.rank * settings.means:
        raise AdapterRefused(
            "rank_mismatch",
            f"{module}: the tensors have rank {rank_gain.shape[0] / settings.means:g} and adapter_config.json says "
            f"{settings.rank} (r); the two files don't belong together",
        )
    one_dtype(module, roles)
    return TargetTensors(
        module=module, kind="linear", tensors=roles, rank=settings.rank, out_features=out_gain.shape[0]
    )


VERA = PeftType(
    name="VERA",
    rules=RULES,
    suffixes={"vera_lambda_b": "vera_lambda_b", "vera_lambda_d": "vera_lambda_d"},
    prefixes=("vera_",),
    shared={"vera_A": "vera_A", "vera_B": "vera_B"},
    parse=parse,
    target=target,
)
PVERA = PeftType(
    name="PVERA",
    rules=FieldRules(
        read=frozenset({"r", "projection_prng_key", "save_projection"}),
        harmless=frozenset({"pvera_dropout", "d_initial", "init_weights", "generator_seed"}),
        refused={"sample_at_inference": "noise drawn anew for every token"},
    ),
    suffixes={"pvera_lambda_b": "pvera_lambda_b", "pvera_lambda_d": "pvera_lambda_d"},
    prefixes=("pvera_",),
    shared={"pvera_A": "pvera_A", "pvera_B": "pvera_B"},
    parse=parse_pvera,
    target=target,
)
