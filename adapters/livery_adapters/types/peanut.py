"""PEANuT: a small network turns the base's weight into one half of an ordinary pair."""

from __future__ import annotations

from dataclasses import dataclass

from livery_adapters.layout import TargetTensors
from livery_adapters.peft_config import Config, FieldRules, bad_field, number, shown, whole
from livery_adapters.refusal import AdapterRefused
from livery_adapters.types.base import PeftType, Roles, need, wrong_shape
from livery_adapters.types.low_rank import check_rank

ACTIVATIONS = ("relu", "gelu", "silu", "sigmoid", "tanh")
_DEEPEST = 8


@dataclass(frozen=True, slots=True)
class PeanutSettings:
    """`depth` encoders and as many decoders lie between the two outer layers."""

    rank: int
    depth: int
    scale: float
    activation: str


def inner_layers(depth: int) -> list[str]:
    """The roles of all encoders, then of all decoders, in the order in which they work."""
    return [f"peanut_{kind}.{index}" for kind in ("encoders", "decoders") for index in range(depth)]


def _parse(config: Config) -> PeanutSettings:
    activation, depth = config.get("act_fn", "relu"), whole(config.get("depth", 0), "depth", least=0)
    if activation not in ACTIVATIONS:
        raise AdapterRefused(
            "unsupported_field",
            f"act_fn is {shown(activation)} and known are {', '.join(ACTIVATIONS)}; train with one of these",
        )
    if depth > _DEEPEST:
        raise bad_field("depth", depth, f"at most {_DEEPEST}")
    return PeanutSettings(
        rank=whole(config.get("r", 32), "r"),
        depth=depth,
        scale=number(config.get("scaling", 1.0), "scaling"),
        activation=str(activation),
    )


def _target(module: str, roles: Roles, settings: PeanutSettings) -> TargetTensors:
    names = ["peanut_A", "peanut_B", *inner_layers(settings.depth)]
    a, b, *inner = need(module, roles, *names)
    two = len(a.shape) == 2 and a.shape == b.shape[::-1] and 0 not in a.shape
    if not two or len(roles) != len(names) or any(entry.shape != (a.shape[0], a.shape[0]) for entry in inner):
        raise wrong_shape(module, roles, f"[rank, out], [out, rank] and {len(inner)} of [rank, rank]")
    check_rank(module, a.shape[0], settings.rank)
    return TargetTensors(
        module=module,
        kind="linear",
        tensors=roles,
        rank=a.shape[0],
        scale=settings.scale,
        out_features=a.shape[1],
    )


PEANUT = PeftType(
    name="PEANUT",
    rules=FieldRules(read=frozenset({"r", "depth", "scaling", "act_fn"}), harmless=frozenset({"init_weights"})),
    suffixes={f"{role}.weight": role for role in ("peanut_A", "peanut_B", *inner_layers(_DEEPEST))},
    prefixes=("peanut_",),
    parse=_parse,
    target=_target,
)
