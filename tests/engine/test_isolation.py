"""One adapter's infinities reach nobody else: not in its batch, and not through the memory it leaves behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from peft import LoraConfig

from engine.families import LLAMA_LINEAR, save
from engine.oracle import Bench, Oracle, ref, save_adapter
from livery.engine.base import EngineConfig
from livery.engine.pending import NOTHING_ALLOWED
from livery.engine.plan import NOT_FINITE

MAX_LEN = 64
PROMPTS = [[5, 6, 7, 8, 9], [11, 12], [13, 14, 15], [16] * 9]


@pytest.mark.parametrize("kernels", ["auto", "torch"])
@pytest.mark.parametrize(("family", "speculate"), [("llama", 0), ("gemma2", 4)])
def test_an_overflowing_adapter_hurts_only_its_own_request(
    family: str, speculate: int, kernels: str, tmp_path: Path
) -> None:
    base = save(family, tmp_path)
    poison = save_adapter(base, tmp_path / "poison", 1, LoraConfig(r=4, target_modules=LLAMA_LINEAR), std=1e15)
    good = save_adapter(base, tmp_path / "good", 2, LoraConfig(r=4, target_modules=LLAMA_LINEAR))
    config = EngineConfig(
        str(base),
        kernels=kernels,
        speculate=speculate,
        block_size=4,
        max_batch_tokens=8,
        max_model_len=MAX_LEN,
        kv_memory_bytes=1 << 16,
        adapter_memory_bytes=1 << 20,
        threads=1,
    )
    bench, oracle = Bench(config), Oracle(base, MAX_LEN)
    oracle.assert_visible(PROMPTS[0], good)
    for round_ in range(4):  # later rounds get the blocks that held the poisoned keys and values
        bench.add(f"poison{round_}", PROMPTS[round_], ref(poison), max_tokens=6)
        bench.add(f"good{round_}", PROMPTS[round_], ref(good), max_tokens=6)
        bench.add(f"base{round_}", PROMPTS[round_], None, max_tokens=6)
        results = bench.run()
        failed = results[f"poison{round_}"]
        assert failed.error == NOT_FINITE
        assert 0 < failed.read <= len(PROMPTS[round_]), "what was computed for it is told, to be counted"
        oracle.assert_same(PROMPTS[round_], results[f"good{round_}"], good, count=6)
        oracle.assert_same(PROMPTS[round_], results[f"base{round_}"], None, count=6)
    assert bench.core.stats().blocks_free == bench.core.stats().blocks_total


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_fields_that_leave_no_token_blame_no_adapter_and_keep_the_prompts_blocks(
    temperature: float, tmp_path: Path
) -> None:
    """The words are found only on the way: the first token is allowed, what must follow it isn't."""
    base = save("llama", tmp_path)
    config = EngineConfig(
        str(base), block_size=4, max_model_len=MAX_LEN, kv_memory_bytes=1 << 16, adapter_memory_bytes=1 << 20, threads=1
    )
    bench, prompt = Bench(config), [7, 8, 9, 10, 11, 12, 13, 14, 15]
    fields = {"allowed_token_ids": (5,), "bad_words": ((5, 5),), "temperature": temperature}
    bench.add("none left", prompt, None, max_tokens=6, **fields)
    failed = bench.run()["none left"]
    assert (failed.tokens, failed.error) == ([5], NOTHING_ALLOWED)
    bench.add("after", prompt, None, max_tokens=2)
    assert bench.run()["after"].cached == 8
