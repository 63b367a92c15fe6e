"""LN tuning: trained copies of whole modules, norms as a rule; everything about them is done for all types."""

from __future__ import annotations

from livery_adapters.peft_config import FieldRules
from livery_adapters.types.base import PeftType, no_settings

LN_TUNING: PeftType[None] = PeftType(
    name="LN_TUNING",
    rules=FieldRules(read=frozenset()),
    suffixes={},
    prefixes=("ln_tuning_",),
    copies=("ln_tuning_layers",),
    parse=no_settings,
    target=None,
)
