"""Full fine-tunes of tiny models, saved as users save theirs, and their adapters."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from engine.families import save
from livery.engine.model import base_shapes
from livery_adapters.base_model import BaseShapes
from livery_adapters.making.extract import Aim, ExtractReport, extract
from livery_adapters.making.extract_checkpoint import Checkpoint
from livery_adapters.making.extract_plan import Side

Change = Callable[[Any], None]
FULL = Aim(rank=10_000)


def load(path: Path, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="eager").eval()


@cache
def shapes(path: Path) -> BaseShapes:
    return base_shapes(str(path))


def all_of_it(model: Any) -> None:
    """Every parameter, each by a few percent: the linear ones at full rank."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.05 * weight.std() * torch.randn(weight.shape, generator=generator)


def linear_only(rank: int, noise: float = 0.0) -> Change:
    """The linear modules of the layers, at this rank beside full-rank noise."""

    def change(model: Any) -> None:
        generator = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.dim() == 2 and ".layers." in name:
                    halves = (torch.randn(side, rank, generator=generator) for side in weight.shape)
                    one, other = halves
                    weight += 0.02 * one @ other.T + noise * torch.randn(weight.shape, generator=generator)

    return change


def pair(
    folder: Path,
    family: str = "llama",
    change: Change = all_of_it,
    dtypes: tuple[torch.dtype, torch.dtype] = (torch.float32, torch.float32),
    shards: str | None = None,
) -> tuple[Path, Path]:
    """A base and a full fine-tune in fp32 of its numbers, saved in these dtypes.

    `shards` is the most that one file of the latter holds, such as "20KB".
    """
    base = save(family, folder / "base")
    before = load(base).to(dtypes[0])
    after = copy.deepcopy(before).float()
    change(after)
    before.save_pretrained(base)
    tuned = folder / "tuned"
    after.to(dtypes[1]).save_pretrained(tuned, **({"max_shard_size": shards} if shards else {}))
    return base, tuned


def extracted(base: Path, tuned: Path, out: Path, aim: Aim = FULL, **options: Any) -> ExtractReport:
    """As the command does it."""
    found = shapes(base)
    sides = [
        Side.of(Checkpoint.open(path), found, AutoConfig.from_pretrained(path).tie_word_embeddings)
        for path in (base, tuned)
    ]
    return extract(sides[0], sides[1], found, aim, out, **options)


def edit(file: Path, **changes: Tensor | None) -> None:
    """Replace, add or (None) drop tensors of a model's file, keyed by full name with "__" for dots."""
    tensors = {**load_file(file), **{name.replace("__", "."): tensor for name, tensor in changes.items()}}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, file, {"format": "pt"})
