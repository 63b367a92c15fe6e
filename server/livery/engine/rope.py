"""Length-dependent RoPE, fixed once.

transformers picks the frequencies of `dynamic` and `longrope` from the longest position of each call, so one
long request would change the others' tokens. Here the choice is made once, from the longest sequence the server
admits, and then holds for every call.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def freeze_rope(model: nn.Module, max_model_len: int) -> str:
    """Fix every length-dependent RoPE of the model as for a sequence of `max_model_len` tokens.

    Returns a name of the choice, for keys of caches: "static" when nothing depended on length.
    """
    frozen = [module for module in model.modules() if _is_dynamic(getattr(module, "rope_type", None))]
    for module in frozen:
        _freeze(module, max_model_len)
    return f"fixed@{max_model_len}" if frozen else "static"


def choice_for(model: nn.Module, max_model_len: int) -> str:
    """What `freeze_rope` will choose for that length, in words; empty where answers don't depend on it.

    Ask before the choice is made.
    """
    said = []
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        for layer_type, kind in (kinds if isinstance(kinds, dict) else {None: kinds}).items():
            if kind == "longrope":
                said.append(_longrope_choice(module, layer_type, max_model_len))
            elif _is_dynamic(kind):
                said.append(f"dynamic RoPE's frequencies for {max_model_len} tokens")
    return " and ".join(dict.fromkeys(said))


def _longrope_choice(module: nn.Module, layer_type: str | None, max_model_len: int) -> str:
    parameters: Any = getattr(module.config, "rope_parameters")  # noqa: B009 - of a module, which mypy takes for a Tensor
    original = (parameters if layer_type is None else parameters[layer_type])["original_max_position_embeddings"]
    return f"longrope's {'long' if max_model_len > original else 'short'} factors (long ones begin above {original})"


def _is_dynamic(rope_type: object) -> bool:
    kinds = rope_type.values() if isinstance(rope_type, dict) else [rope_type]
    return any(isinstance(kind, str) and ("dynamic" in kind or kind == "longrope") for kind in kinds)


def _freeze(module: nn.Module, max_model_len: int) -> None:
    device = next(module.buffers()).device
    longest = torch.tensor([[max_model_len - 1]], device=device)
    x = torch.zeros((1, 1, 1), device=device)
    kinds = module.rope_type
    with torch.no_grad():
        if isinstance(kinds, dict):
            for layer_type in kinds:
                module(x, longest, layer_type)
            module.rope_type = dict.fromkeys(kinds, "default")  # type: ignore[assignment]
        else:
            module(x, longest)
            # From here on the module's own update finds nothing to adapt.
            module.rope_type = "default"  # type: ignore[assignment]
