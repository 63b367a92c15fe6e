"""The PEFT types that are understood: one small module each, and no torch in any of them.

How to add a type, say IA3 (peft_type "IA3"):

1. `types/ia3.py` defines, and nothing else does:
   - a frozen dataclass of settings: what the type's own fields mean for the forward;
   - `RULES = FieldRules(read=..., harmless=..., refused=...)`: every field of PEFT's configuration class that is not
     in COMMON_READ or COMMON_HARMLESS (peft_config.py), in exactly one of the three; a test compares with PEFT;
   - `parse(config) -> settings` with the helpers `whole`, `number`, `flag`, `module_names`, `token_ids`, `patterns`;
   - `target(module, roles, settings) -> TargetTensors`: are all roles there (`need`), do shapes fit each other
     (`wrong_shape`), which kind of module, which rank (0: none), which features in and out (None: the shapes don't
     say). The base is not known yet: `check(target, shapes, settings)` is where it is, after kind and features have
     been compared;
   - `IA3 = PeftType("IA3", RULES, suffixes={"ia3_l": "ia3_l"}, prefixes=("ia3_",), parse=parse, target=target)`.
     Suffixes are what follows the module's path in PEFT's saved file (`get_peft_model_state_dict`), without the
     adapter's name: "base_model.model.X.ia3_l" -> module X, suffix "ia3_l". Tensors that belong to no module
     ("base_model.vera_A") go into `shared`, keyed by what follows "base_model.".
2. `formats/ia3.py` (torch) defines `convert_module(target, tensors, settings, base) -> Change`, where `tensors` has
   the module's tensors by role and the shared ones, and `CONVERSION = Conversion(convert_module)`; see
   formats/base.py for a type that has no exact form, or that makes tensors for all modules at once.
3. One line in TYPES below and one in CONVERSIONS in formats/__init__.py.
4. A test against PEFT's own forward on two families, random non-zero weights.

Done for every type, before and after: limits of the files, fields nobody knows, tensors of modules that
`target_modules` leaves out, `modules_to_save`, trained biases, copies of base weights, finiteness, coverage, and
tied heads. `base.weight(m)` and `base.bias(m)` already show a weight or bias that the adapter replaces in full; a
change without `weight` or `bias` gets it put in afterwards, so compute `bias` (complete) only where the type alters it.
Refuse what can't be served with `AdapterRefused(code, message)`: the thing, its value, the remedy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from livery_adapters.refusal import AdapterRefused
from livery_adapters.types.adalora import ADALORA
from livery_adapters.types.base import PeftType
from livery_adapters.types.beft import BEFT
from livery_adapters.types.dense import C3A, FOURIERFT, HIRA, OSF, RANDLORA, ROAD, SHIRA, SUPERTUNING
from livery_adapters.types.glora import GLORA
from livery_adapters.types.ia3 import IA3
from livery_adapters.types.ln_tuning import LN_TUNING
from livery_adapters.types.lora import LORA
from livery_adapters.types.low_rank import DEFT, DELORA, GRALORA, HRA, MISS
from livery_adapters.types.lycoris import LOHA, LOKR
from livery_adapters.types.oft import BOFT, OFT
from livery_adapters.types.peanut import PEANUT
from livery_adapters.types.refused import refuse
from livery_adapters.types.trainable_tokens import TRAINABLE_TOKENS
from livery_adapters.types.vblora import VBLORA
from livery_adapters.types.vera import PVERA, VERA

_ALL: tuple[PeftType[Any], ...] = (
    *(ADALORA, BEFT, BOFT, C3A, DEFT, DELORA, FOURIERFT, GLORA, GRALORA, HIRA, HRA, IA3, LN_TUNING, LOHA, LOKR),
    *(LORA, MISS, OFT, OSF, PEANUT, PVERA, RANDLORA, ROAD, SHIRA, SUPERTUNING, TRAINABLE_TOKENS, VBLORA, VERA),
)
TYPES: Mapping[str, PeftType[Any]] = {kind.name: kind for kind in _ALL}


def type_of(name: object) -> PeftType[Any]:
    """The type of this `peft_type`. Raises AdapterRefused (unsupported_peft_type)."""
    found = TYPES.get(name) if isinstance(name, str) else None
    if found is None:
        reason = refuse(name) if isinstance(name, str) else None
        if reason is not None:
            raise reason
        shown = repr(name)[:80]
        raise AdapterRefused(
            "unsupported_peft_type",
            f"peft_type is {shown}; supported are {', '.join(sorted(TYPES))}. Train it as LORA, or merge it into "
            "the base",
        )
    return found
