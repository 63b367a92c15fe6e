"""BEFT: a trained vector added to a module's output, on top of its bias."""

from __future__ import annotations

from livery_adapters.layout import TargetTensors
from livery_adapters.peft_config import FieldRules
from livery_adapters.types.base import PeftType, Roles, need, no_settings, wrong_shape


def _target(module: str, roles: Roles, settings: None) -> TargetTensors:
    (vector,) = need(module, roles, "beft_bias")
    if len(vector.shape) != 2 or vector.shape[0] != 1 or 0 in vector.shape:
        raise wrong_shape(module, roles, "[1, out]")
    return TargetTensors(module=module, kind="linear", tensors=roles, out_features=vector.shape[1])


BEFT: PeftType[None] = PeftType(
    name="BEFT",
    rules=FieldRules(read=frozenset(), harmless=frozenset({"init_weights"})),
    suffixes={"beft_bias": "beft_bias"},
    prefixes=("beft_",),
    parse=no_settings,
    target=_target,
)
