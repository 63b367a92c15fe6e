"""Is a fast answer still the right one: greedy tokens alone against in the mix, and against merged weights."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM

from livery.bench.bars import AS_MERGED, Row
from livery.bench.sizes import Sizes
from livery.bench.workbench import Workbench
from livery.engine.base import AdapterRef
from livery_loadtest.measures import Spread

PREFIX = "base_model.model."


def value_rows(bench: Workbench, adapters: Sequence[AdapterRef], sizes: Sizes) -> Iterator[Row]:
    """The base and every adapter answer a prompt each: alone, then all at once, and by plain transformers.

    Shares of equal answers; an answer counts when every token of it is equal.
    """
    asked = [(bench.tokens(sizes.check_prompt), sizes.check_tokens, adapter) for adapter in (None, *adapters)]
    alone = [bench.run([one])[0].tokens for one in asked]
    mixed = [answer.tokens for answer in bench.run(asked)]
    same = [left == right for left, right in zip(alone, mixed, strict=True)]
    yield _share(
        "greedy tokens in the mix equal to alone",
        same,
        f"{len(asked)} answers of {sizes.check_tokens} tokens, {len({tuple(tokens) for tokens in alone})} different",
    )
    model: Any = AutoModelForCausalLM.from_pretrained(bench.config.model_path, dtype=torch.float32).eval()
    right = []
    for (prompt, _, adapter), tokens in zip(asked, mixed, strict=True):
        with merged(model, adapter):
            right.append(chosen(model, prompt, tokens) == tokens)
    yield _share(
        "greedy tokens equal to merged weights",
        right,
        "W + s·B·A in fp32 by transformers; each token is the best after the ones before it",
    )


def chosen(model: torch.nn.Module, prompt: Sequence[int], tokens: Sequence[int]) -> list[int]:
    """What a plain forward would choose at each place of an answer, given the answer up to there.

    All of them equal to the answer means that greedy generation would have given this very answer.
    """
    with torch.inference_mode():
        logits: Tensor = model(torch.tensor([[*prompt, *tokens]]), use_cache=False).logits[0]
    return [int(token) for token in logits[len(prompt) - 1 : -1].argmax(-1)]


@contextmanager
def merged(model: torch.nn.Module, adapter: AdapterRef | None) -> Iterator[None]:
    """Adds an adapter's low-rank pairs to a model's weights as long as this lasts."""
    parameters = dict(model.named_parameters())
    changes = dict(_changes(Path(adapter.parts[0].path))) if adapter else {}
    plain = {name: parameters[name].data for name in changes}
    for name, change in changes.items():
        parameters[name].data = plain[name] + change
    try:
        yield
    finally:
        for name, weight in plain.items():
            parameters[name].data = weight


def _changes(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Parameter name -> s·B·A of an adapter written by livery_loadtest.random_adapters."""
    config = json.loads((folder / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / config["r"]
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 - not a mapping
            if key.endswith(".lora_A.weight"):
                module = key.removesuffix(".lora_A.weight")
                a, b = (file.get_tensor(f"{module}.lora_{half}.weight").float() for half in "AB")
                yield f"{module.removeprefix(PREFIX)}.weight", scale * (b @ a)


def _share(name: str, found: Sequence[bool], note: str) -> Row:
    share = sum(found) / len(found)
    return Row(name, Spread(share, share, share), AS_MERGED, note, {"equal": sum(found), "compared": len(found)})
