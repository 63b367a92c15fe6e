"""Adapters over quantised bases: every row is as PEFT computes it alone over the same base."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from bases import LINEAR, save
from checkpoints import quantized_base, written_out
from peft import (
    HRAConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    PeftModel,
    VeraConfig,
)
from torch import Tensor

from engine.oracle import TOLERANCE, VISIBLE, Bench, ref, save_tuned
from livery.engine.base import EngineConfig

pytestmark = [pytest.mark.quantization, pytest.mark.filterwarnings("ignore")]

SCHEMES = ("bnb-nf4", "bnb-nf4-double", "torchao-int8", "torchao-fp8")  # of --quantization, that a CPU computes
# Types that PEFT itself can't compute over such a base, as it reads the packed weight's shape or multiplies with it:
# they are judged over the same numbers written out in full, as all are.
PEFT_LACKS = {
    "bnb-nf4": {"loha", "lokr", "hra"},
    "bnb-nf4-double": {"loha", "lokr", "hra"},
    "torchao-int8": {"hra"},
    "torchao-fp8": {"hra"},
}
TYPES: dict[str, PeftConfig] = {
    "lora": LoraConfig(r=4, target_modules=LINEAR),
    "rslora": LoraConfig(r=4, use_rslora=True, lora_alpha=8, target_modules=LINEAR),
    "dora": LoraConfig(r=3, use_dora=True, target_modules=LINEAR),
    "ia3": IA3Config(target_modules=LINEAR, feedforward_modules=["down_proj"]),
    "loha": LoHaConfig(r=3, alpha=2, target_modules=LINEAR),
    "lokr": LoKrConfig(r=2, alpha=2, decompose_factor=4, decompose_both=True, target_modules=LINEAR),
    "vera": VeraConfig(r=6, target_modules=LINEAR[:1], d_initial=0.5, projection_prng_key=3),
    "oft": OFTConfig(r=0, oft_block_size=8, target_modules=LINEAR),
    "hra": HRAConfig(r=4, target_modules=LINEAR[:2]),
}


class Judge:
    """transformers and PEFT on one sequence alone, over one base."""

    def __init__(self, load: Callable[[], Any]) -> None:
        self._load = load
        self._models: dict[Path | None, Any] = {}

    def logits(self, tokens: list[int], adapter: Path | None) -> Tensor:
        """[tokens, vocabulary]"""
        if adapter not in self._models:
            model = self._load()
            self._models[adapter] = model if adapter is None else PeftModel.from_pretrained(model, adapter).eval()
        with torch.no_grad():
            found: Tensor = self._models[adapter](torch.tensor([tokens]), use_cache=False).logits[0]
        return found


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("qwen2", tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapters(base: Path) -> Iterator[dict[str, Path]]:
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed, (name, config) in enumerate(TYPES.items()):
            found[name] = save_tuned(base, base.parent / name, seed, config, std=0.2)
    yield found


def prompts(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, 97, (5 + 4 * (i % 3),), generator=generator).tolist() for i in range(count)]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_all_types_are_as_peft_computes_them(scheme: str, base: Path, adapters: dict[str, Path]) -> None:
    bench = Bench(EngineConfig(str(base), quantization=scheme, kv_memory_bytes=1 << 22, max_batch_tokens=13))
    quantized, plain = Judge(lambda: quantized_base(base, scheme)), Judge(lambda: written_out(base, scheme))
    choices = [None, *adapters.values()]
    asked = list(zip(prompts(2 * len(choices)), choices * 2, strict=True))
    for index, (prompt, choice) in enumerate(asked):
        bench.add(str(index), prompt, ref(choice) if choice else None, max_tokens=4)
    results = bench.run()
    worst: dict[str, float] = {}
    for index, (prompt, choice) in enumerate(asked):
        result, name = results[str(index)], choice.name if choice else "base"
        assert result.error is None, f"{name}: {result.error}"
        tokens = prompt + result.tokens
        judges = [plain, quantized] if name not in PEFT_LACKS[scheme] else [plain]
        for judge in judges:
            expected = judge.logits(tokens, choice)
            if choice is not None:
                moved = (expected - judge.logits(tokens, None)).abs().max() / expected.abs().max()
                assert moved > VISIBLE, f"{name} hardly moves the base"
            for position, row in result.logits.items():
                error = float((row - expected[position]).abs().max() / expected.abs().max())
                worst[name] = max(worst.get(name, 0.0), error)
    assert all(error < TOLERANCE for error in worst.values()), worst


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_peft_lacks_is_what_this_file_says(scheme: str, base: Path, adapters: dict[str, Path]) -> None:
    judge, failed = Judge(lambda: quantized_base(base, scheme)), set()
    for name, adapter in adapters.items():
        try:
            judge.logits([5, 6, 7], adapter)
        except (RuntimeError, NotImplementedError, AssertionError, TypeError, ValueError) as error:
            print(name, repr(error)[:300])
            failed.add(name)
    assert failed == PEFT_LACKS[scheme]
