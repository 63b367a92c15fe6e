"""Adapters computed from device memory of their own, on a device as slow as can be: a piece arrives when it is awaited.

Everything but CUDA's streams and events runs as it does there. Pages are filled with NaN when they are given out, so
whatever is read before it was waited for, or from where it isn't, shows in the logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
import torch
from peft import LoraConfig
from torch import Tensor

from engine.families import linear_targets, save
from engine.oracle import Bench, ref, save_adapter
from engine.test_parity import TIGHT, kv_bytes, prompts
from engine.test_parity_parts import parts_mix
from livery.engine.arena import Arena
from livery.engine.base import AdapterRef, EngineConfig
from livery.engine.images import AdapterImage
from livery.engine.lora.bank import Arrival, Unit
from livery.engine.model import base_shapes
from livery.engine.pages import PAGE_BYTES, pages_for

NAN = 255  # as every byte: a NaN in fp32 and bf16


class LateArrival:
    """Copies pieces when somebody waits for them, those before them included, as a stream would."""

    def __init__(self, image: AdapterImage, targets: Sequence[Tensor]) -> None:
        self._image, self._targets = image, targets
        self._arrived = 0
        for target in targets:
            target.fill_(NAN)

    def done(self) -> bool:
        return self._arrived == len(self._targets)

    def wait(self, unit: Unit) -> None:
        for piece in range(self._arrived, self._image.last_piece.get(unit, -1) + 1):
            start, nbytes = self._image.pieces[piece].start, self._image.pieces[piece].nbytes
            self._targets[piece].copy_(self._image.memory[start : start + nbytes])
            self._arrived = piece + 1


class LateArena(Arena):
    def _copy(self, image: AdapterImage, targets: Sequence[Tensor], after: torch.cuda.Event | None) -> Arrival | None:
        return LateArrival(image, targets)


@pytest.fixture(scope="module", params=["llama", "qwen3-moe"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(request.param, tmp_path_factory.mktemp(request.param))


def served(bench: Bench, adapters: dict[str, AdapterRef]) -> dict[str, Tensor]:
    """Three requests under each; the logits of every token."""
    for number in range(3):
        for name, (prompt, adapter) in zip(
            adapters, zip(prompts(len(adapters), seed=number), adapters.values(), strict=True), strict=True
        ):
            bench.add(f"{name}-{number}", prompt, adapter, max_tokens=4)
    results = bench.run()
    assert not [result.error for result in results.values() if result.error]
    return {
        f"{name}@{position}": row for name, result in results.items() for position, row in sorted(result.logits.items())
    }


@pytest.mark.parametrize("arena", [Arena, LateArena])
def test_a_device_of_its_own_computes_the_same(base: Path, tmp_path: Path, arena: type[Arena]) -> None:
    by_hand = parts_mix(base_shapes(str(base)))
    family = "llama" if "llama" in str(base) else "qwen3-moe"
    lora = ref(save_adapter(base, tmp_path / "lora", 5, LoraConfig(r=4, target_modules=linear_targets(family))))
    adapters = {"lora": lora} | {name: AdapterRef.of(name, "") for name in by_hand}
    roomy = EngineConfig(str(base), kv_memory_bytes=4 * kv_bytes(base), adapter_memory_bytes=64 << 20, **TIGHT)
    in_place = Bench(roomy)
    in_place.runner.by_hand |= by_hand
    expected = served(in_place, adapters)
    sizes = [in_place.runner.read_adapter(adapter).sizes for adapter in adapters.values()]
    pages = sorted(sum(map(pages_for, pieces)) for pieces in sizes)
    tight = msgspec.structs.replace(roomy, adapter_memory_bytes=(pages[-1] + pages[0]) * PAGE_BYTES)
    bench = Bench(tight, arena)
    bench.runner.by_hand |= by_hand
    found = served(bench, adapters)
    stats = bench.core.stats()
    assert stats.adapter_evictions > 5, "the test means to reuse pages"
    assert stats.adapter_bytes <= tight.adapter_memory_bytes
    assert found.keys() == expected.keys()
    for key, row in expected.items():
        assert torch.allclose(found[key], row, rtol=0, atol=1e-5 * float(row.abs().max())), key


def test_pieces_come_in_the_order_of_their_layers_and_share_memory(base: Path) -> None:
    bench = Bench(EngineConfig(str(base), kv_memory_bytes=kv_bytes(base), adapter_memory_bytes=1 << 24, **TIGHT))
    bench.runner.by_hand |= parts_mix(base_shapes(str(base)))
    for name in bench.runner.by_hand:
        image = bench.runner.read_adapter(AdapterRef.of(name, ""))
        starts = [piece.start for piece in image.pieces]
        assert starts == sorted(starts) and sum(image.sizes) == image.nbytes
        layouts = bench.runner._bank.layouts
        groups = [unit for unit in image.last_piece if isinstance(unit, int) and not layouts[unit].is_head]
        order = [image.last_piece[unit] for unit in groups]
        assert order == sorted(order), name
        copied = image.copied_to(torch.device("cpu"))
        assert copied is image.packed, "on CPU the image itself is computed on"
