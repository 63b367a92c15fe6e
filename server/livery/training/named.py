"""Whether a base has what a run names of it. PEFT passes over names that fit nothing as long as another one fits."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from livery.training.run_file import Adapter, AnyRun, SpecInvalid

_LAYER = re.compile(r".*?\.[^.]*\.([0-9]+)\.")  # where PEFT finds the number of a module's layer
_SHOWN = 20  # names


def check_named(run: AnyRun, base: Path) -> None:
    """Compare modules and layers of `adapter` with the base's own, whose weights aren't read. Raises SpecInvalid."""
    wanted = run.adapter
    named = wanted.target_modules != ("all-linear",) or wanted.modules_to_save or wanted.layers
    if run.start_from or not named:
        return
    try:
        config = AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (ValueError, NotImplementedError, RuntimeError):
        return  # what can't be built is told where it is loaded
    _check_layers(wanted, model, run.base)
    for name in wanted.modules_to_save:  # by PEFT's rule, which isn't that for targets
        if not any(key.endswith(name) for key, _ in model.named_modules()):
            raise SpecInvalid(f"adapter.modules_to_save has {name}, {_missing(name, _whole(model), run.base)}")
    if wanted.target_modules != ("all-linear",):
        _check_targets(wanted, model, run.base)


def _check_layers(wanted: Adapter, model: nn.Module, base: str) -> None:
    there = {layer for key, _ in model.named_modules() if (layer := _layer(key)) is not None}
    for layer in wanted.layers:
        if layer not in there:
            has = f"{len(there)} layers, {min(there)} to {max(there)}" if there else "no numbered layers"
            raise SpecInvalid(f"adapter.layers has {layer}, and {base} has {has}: name those, or leave layers out")


def _check_targets(wanted: Adapter, model: nn.Module, base: str) -> None:
    keys = [key for key, _ in model.named_modules() if not _is_saved(key, wanted)]
    for name in wanted.target_modules:
        found = [key for key in keys if key == name or key.endswith(f".{name}")]
        if not found and any(key == name or key.endswith(f".{name}") for key, _ in model.named_modules()):
            raise SpecInvalid(
                f"adapter.target_modules has {name}, which modules_to_save trains whole: name it in one of them"
            )
        if not found:
            raise SpecInvalid(f"adapter.target_modules has {name}, {_missing(name, _targets(model), base)}")
        if wanted.layers and not any(_layer(key) in wanted.layers for key in found):
            raise SpecInvalid(
                f"adapter.target_modules has {name}, which isn't in any of the layers {_listed(wanted.layers)} of "
                f"{base}: leave it, or layers, out"
            )
    ends = tuple(f".{name}" for name in wanted.target_modules)
    with_one = {_layer(key) for key in keys if key.endswith(ends)}
    for layer in wanted.layers:
        if layer not in with_one:
            raise SpecInvalid(
                f"adapter.layers has {layer}, and that layer of {base} has none of target_modules, "
                f"{_listed(wanted.target_modules)}: leave it out, or name modules that it has"
            )


def _is_saved(key: str, wanted: Adapter) -> bool:
    """Whether PEFT takes a module for one that is trained whole, or for a part of one."""
    parts = key.split(".")
    return any(
        name.split(".") == parts[at : at + name.count(".") + 1]
        for name in wanted.modules_to_save
        for at in range(len(parts))
    )


def _layer(key: str) -> int | None:
    found = _LAYER.match(f"{key}.")
    return int(found[1]) if found else None


def _targets(model: nn.Module) -> set[str]:
    """Last parts of the names of what LoRA takes."""
    kinds = nn.Linear | nn.Embedding | Conv1D
    return {key.rpartition(".")[2] for key, module in model.named_modules() if isinstance(module, kinds)}


def _whole(model: nn.Module) -> set[str]:
    """Last parts of the names of modules with weights of their own."""
    return {key.rpartition(".")[2] for key, module in model.named_modules() if list(module.parameters(recurse=False))}


def _missing(name: str, there: set[str], base: str) -> str:
    near = difflib.get_close_matches(name, there, n=1)
    meant = f"; {near[0]} may be meant" if near else ""
    return f"which no module of {base} is called{meant}: it has {_listed(sorted(there))}"


def _listed(names: Iterable[object]) -> str:
    told = [str(name) for name in names]
    return ", ".join(told[:_SHOWN]) + (f" and {len(told) - _SHOWN} more" if len(told) > _SHOWN else "")
