"""The PEFT types that can't be served, and why: each changes more than what a module does to one token's row.

A type has no place here once it has a canonical form, exact or approximate.
"""

from __future__ import annotations

from livery_adapters.refusal import AdapterRefused

_PROMPT = "it puts trained vectors before the prompt, which lengthens every sequence"
_SVD = "it works in singular vectors of the base's weights that are not in the file and have no sign of their own"

REASONS = {
    "ADAMSS": "which outputs its subspaces write to comes from clustering the base's weights and is not in the file",
    "ADAPTION_PROMPT": "it adds trained keys and values to the attention of some layers",
    "CARTRIDGE": "it puts a trained cache of keys and values before the prompt, which lengthens every sequence",
    "CPT": _PROMPT,
    "FROD": "it rebuilds whole weights from a basis that several modules share, of which the file holds a part only",
    "LILY": "it mixes its experts by the average over all tokens of a batch, so that requests would change each other",
    "MULTITASK_PROMPT_TUNING": _PROMPT,
    "POLY": "it mixes several adapters by a task that every request would have to name",
    "PREFIX_TUNING": "it puts trained keys and values before the prompt, which lengthens every sequence",
    "PROMPT_TUNING": _PROMPT,
    "PSOFT": _SVD,
    "P_TUNING": _PROMPT,
    "SHADOW": "it runs a second network beside the base's layers",
    "TINYLORA": "which of its vectors a module uses follows from the order in which training visited the modules, "
    "and that is not in the file",
    "UNILORA": "the file holds one vector, and which of its numbers go where is drawn anew for all modules in turn",
    "WAVEFT": "its weights come out of a wavelet reconstruction that isn't implemented here",
    "XLORA": "it mixes several adapters anew for every token by a classifier of its own, in a second pass",
}
# What older versions of PEFT called it.
RENAMED = {"BONE": "MISS"}


def refuse(name: str) -> AdapterRefused | None:
    """The refusal of a type that is known and can't be served (unsupported_peft_type), else None."""
    if name in RENAMED:
        return AdapterRefused(
            "unsupported_peft_type",
            f"peft_type is {name!r}, which PEFT now calls {RENAMED[name]!r}; load it with a current PEFT and save it "
            "again",
        )
    if name in REASONS:
        return AdapterRefused(
            "unsupported_peft_type",
            f"peft_type is {name!r}, which can't be served beside other adapters: {REASONS[name]}. Train it as LORA, "
            "or merge it into the base if PEFT can",
        )
    return None
