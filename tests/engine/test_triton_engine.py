"""The whole engine on the kernels for CUDA, in Triton's interpreter, against PEFT and transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from torch import Tensor

import engine.triton_under_test  # noqa: F401 (skips where there is no Triton)
from engine.families import save
from engine.oracle import TOLERANCE, Bench, Oracle, ref, save_adapter
from engine.test_parity import MAX_LEN, ROOMY, kv_bytes, lora_mix, prompts
from livery.engine.base import EngineConfig
from livery.engine.plan import SequenceSlice
from livery.engine.runner import ModelRunner

pytestmark = pytest.mark.gpu

FAMILY = "llama"
LOW_RANK = 4  # adapters


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(FAMILY, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("adapters")
    mix = lora_mix(FAMILY).items()
    return [save_adapter(base, folder / name, seed, config) for seed, (name, config) in enumerate(mix)]


def test_a_mixed_batch_equals_each_row_alone(base: Path, adapters: list[Path]) -> None:
    # 20 tokens a step over contexts in blocks of 4: chunked prompts beside decoding rows.
    tight = {"block_size": 4, "max_batch_tokens": 20, "max_running": 8, "max_model_len": MAX_LEN, "threads": 1}
    bench = Bench(EngineConfig(str(base), kernels="triton", kv_memory_bytes=2 * kv_bytes(base), **ROOMY, **tight))
    assert bench.runner.info.kernels == "triton"
    oracle = Oracle(base, MAX_LEN)
    choices: list[Path | None] = [None, *adapters]
    requests = [(index, prompt[:10]) for index, prompt in enumerate(prompts(len(choices), seed=3))]
    for index, prompt in requests:
        adapter = choices[index % len(choices)]
        bench.add(str(index), prompt, ref(adapter) if adapter else None, max_tokens=3)
    results = bench.run()
    for index, prompt in requests:
        adapter = choices[index % len(choices)]
        if adapter is not None:
            oracle.assert_visible(prompt, adapter)
        oracle.assert_same(prompt, results[str(index)], adapter, count=3)


@pytest.fixture(scope="module")
def recording(base: Path, adapters: list[Path]) -> tuple[Bench, list[int]]:
    """An engine that records and replays its steps, its adapters in memory, and how many rows each replay had."""
    tight = {"block_size": 4, "max_batch_tokens": 64, "max_running": 3, "max_model_len": MAX_LEN, "threads": 1}
    config = EngineConfig(
        str(base), kernels="triton", graphs="on", overlap="on", kv_memory_bytes=2 * kv_bytes(base), **ROOMY, **tight
    )
    bench = Bench(config)
    for adapter in adapters[:LOW_RANK]:  # before any batch begins: none is late because its files were read slowly
        bench.add(f"first-{adapter.name}", [5, 6], ref(adapter), max_tokens=1)
    bench.run()
    return bench, count_replays(bench.runner)


@pytest.mark.parametrize("start", [0, 12])
def test_replayed_steps_take_other_adapters_than_they_were_recorded_with(
    base: Path, adapters: list[Path], recording: tuple[Bench, list[int]], start: int
) -> None:
    """One recording serves batches that grow, shrink, change adapters and begin to use one in mid-answer."""
    bench, replays = recording
    oracle = Oracle(base, MAX_LEN)
    low_rank = adapters[:LOW_RANK]
    asked = prompts(len(low_rank), seed=7)
    replays.clear()
    for index, (prompt, adapter) in enumerate(zip(asked, low_rank, strict=True)):
        bench.add(f"{start}-{index}", prompt[:8], ref(adapter), max_tokens=1 + 2 * index, adapter_start=start)
    results = bench.run()
    assert {1, 2, 3} <= set(replays), "batches of several sizes"
    if start == 0:
        for index, (prompt, adapter) in enumerate(zip(asked, low_rank, strict=True)):
            oracle.assert_same(prompt[:8], results[f"{start}-{index}"], adapter, count=1 + 2 * index)
        return
    for index, prompt in enumerate(asked):  # none of the first tokens' logits may know of the adapter
        result = results[f"{start}-{index}"]
        expected = oracle.logits(prompt[:8] + result.tokens, None)
        for position, logits in result.logits.items():
            error = float((logits - expected[position]).abs().max() / expected.abs().max())
            assert (error < TOLERANCE) == (position < start), (index, position, error)


def count_replays(runner: ModelRunner) -> list[int]:
    """Rows of each step that was replayed, as they come."""
    rows: list[int] = []
    graphs = runner._graphs
    if graphs is not None:
        run = graphs.run

        def counted(slices: Sequence[SequenceSlice], incoming: tuple[Tensor, Tensor] | None = None) -> Tensor | None:
            logits = run(slices, incoming)
            if logits is not None:
                rows.append(len(slices))
            return logits

        graphs.run = counted  # type: ignore[method-assign]
    return rows
