"""Every part of the canonical form, mixed freely in one batch, is what a dense model with those weights computes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig

from engine.by_hand import ReferenceModels, Scribe
from engine.families import FUSED, PATHS, linear_targets, save
from engine.oracle import Bench, ref, save_adapter
from engine.test_parity import MAX_LEN, TIGHT, kv_bytes, prompts
from livery.engine.base import AdapterRef, EngineConfig
from livery.engine.model import CANARY_TOLERANCE, base_shapes
from livery.engine.plan import NOT_FINITE
from livery_adapters.base_model import BaseShapes, ModuleShape
from livery_adapters.canonical import (
    BlockStage,
    CanonicalAdapter,
    EmbeddingChange,
    InputTransform,
    LinearChange,
    LowRank,
    tensors_of,
)

FAMILIES = ["llama", "qwen3", "gpt2", "gemma3", "qwen3-moe"]


def parts_mix(shapes: BaseShapes) -> dict[str, CanonicalAdapter]:
    """One adapter per part, and all parts together, by digest."""
    make = Scribe(shapes, seed=11)
    middle = ("q_proj", "up_proj", "o_proj", "c_attn", "c_proj", "down_proj")
    everything = make.linears(
        deltas=(make.low_rank, make.kronecker, make.shared, lambda shape: replace(make.low_rank(shape, 2), scale=0.5)),
        transform=make.transform,
        rows=make.rows,
        gain=True,
        bias=True,
    )
    adapters = {
        "transform": {"linears": make.linears(*middle, transform=make.transform)},
        "transform-all": {"linears": make.linears(transform=make.transform)},
        "deltas": {"linears": make.linears(deltas=(make.low_rank, make.low_rank, make.kronecker))},
        "kronecker": {"linears": make.linears(*middle, deltas=(make.kronecker,))},
        "shared": {"linears": make.linears(deltas=(make.shared,))},
        "rows": {"linears": make.linears("lm_head", *middle, rows=make.rows), "embeddings": make.embeddings(rows=True)},
        "weight": {"linears": make.linears("lm_head", *middle, weight=True)},
        "replaced": {
            "linears": make.linears(*middle, weight=True, transform=make.transform, rows=make.rows, bias=True),
            "embeddings": make.embeddings(weight=True, rows=True),
        },
        "gain": {"linears": make.linears(gain=True)},
        "bias": {"linears": make.linears(*middle, bias=True)},
        "plain": {"plain": make.plain()},
        "everything": {
            "linears": everything,
            "embeddings": make.embeddings(delta=True, rows=True, gain=True),
            "plain": make.plain(),
            "experts": make.experts(),
        },
    }
    if shapes.experts:
        changes = make.experts()
        adapters["experts"] = {"experts": changes}
        adapters["experts-down"] = {"experts": {path: c for path, c in changes.items() if path.endswith("down_proj")}}
    return {name: CanonicalAdapter(name, **parts) for name, parts in adapters.items()}


def poisoned(adapter: CanonicalAdapter) -> CanonicalAdapter:
    """The same with NaN in every tensor of numbers."""
    for tensor in tensors_of(adapter):
        if tensor.is_floating_point():
            tensor[..., ::3] = float("nan")
    return replace(adapter, digest="poison")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def base(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(family, tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("path", list(PATHS))
def test_every_part_in_one_batch(family: str, base: Path, path: str, tmp_path: Path) -> None:
    if path == "own" and family not in FUSED:
        pytest.skip("its own forward is what runs by default")
    adapters = parts_mix(base_shapes(str(base)))
    lora = save_adapter(base, tmp_path / "lora", 5, LoraConfig(r=4, target_modules=linear_targets(family)))
    tight = TIGHT | {"max_batch_tokens": 11, "max_running": 8}
    memory = {"kv_memory_bytes": 2 * kv_bytes(base), "adapter_memory_bytes": 64 << 20}
    bench = Bench(EngineConfig(str(base), **PATHS[path], **memory, **tight))
    bench.runner.by_hand |= adapters
    bench.runner.by_hand["poison"] = poisoned(parts_mix(base_shapes(str(base)))["everything"])
    oracle = ReferenceModels(base, MAX_LEN, adapters)
    choices: list[Path | None] = [None, lora, *map(Path, adapters), Path("poison")]
    requests = list(enumerate(prompts(2 * len(choices), seed=13)))
    for index, prompt in requests:
        choice = choices[index % len(choices)]
        reference = ref(lora) if choice is lora else AdapterRef.of(str(choice), "") if choice else None
        bench.add(str(index), prompt, reference, max_tokens=8)
    results = bench.run()
    for index, prompt in requests:
        choice = choices[index % len(choices)]
        if choice == Path("poison"):
            assert results[str(index)].error == NOT_FINITE
            continue
        if choice is not None:
            oracle.assert_visible(prompt, choice)
        oracle.assert_same(prompt, results[str(index)], choice, count=8)


def test_every_part_in_half_precision(base: Path) -> None:
    """Computed in bf16, which rounds each step of the base's own forward as well."""
    adapters = parts_mix(base_shapes(str(base)))
    memory = {"kv_memory_bytes": 2 * kv_bytes(base), "adapter_memory_bytes": 64 << 20}
    bench = Bench(EngineConfig(str(base), dtype="bfloat16", **memory, **TIGHT))
    bench.runner.by_hand |= adapters
    oracle = ReferenceModels(base, MAX_LEN, adapters)
    (prompt,) = prompts(1, seed=4)
    for name in adapters:
        bench.add(name, prompt, AdapterRef.of(name, ""), max_tokens=1)
    for name, result in bench.run().items():
        assert result.error is None, result.error
        expected = oracle.logits(prompt, Path(name))[-1]
        error = float((result.logits[len(prompt) - 1] - expected).abs().max() / expected.abs().max())
        assert error < CANARY_TOLERANCE[torch.bfloat16], f"{name}: logits differ by {error:.1e}"


def test_a_basis_shared_by_all_modules_is_held_once(base: Path) -> None:
    bench = Bench(EngineConfig(str(base), kv_memory_bytes=kv_bytes(base), adapter_memory_bytes=1 << 24, **TIGHT))
    make = Scribe(base_shapes(str(base)), seed=1)
    changes = make.linears(deltas=(make.shared,))
    adapter = CanonicalAdapter("shared", changes)
    bench.runner.by_hand["shared"] = adapter
    image = bench.runner.read_adapter(AdapterRef.of("shared", ""))
    bases = {tensor.untyped_storage().data_ptr() for tensor in (d.a for c in changes.values() for d in c.deltas)}
    assert len(bases) == 1
    assert adapter.nbytes <= image.nbytes < 1.2 * adapter.nbytes


def test_packed_weights_are_copies(base: Path) -> None:
    """What is packed neither is the file's memory nor keeps it alive."""
    bench = Bench(EngineConfig(str(base), kv_memory_bytes=kv_bytes(base), adapter_memory_bytes=1 << 24, **TIGHT))
    for name, adapter in parts_mix(base_shapes(str(base))).items():
        bench.runner.by_hand[name] = adapter
        packed = bench.runner.read_adapter(AdapterRef.of(name, "")).packed
        read = {tensor.untyped_storage().data_ptr() for tensor in tensors_of(adapter)}
        pairs = [tensor for group in packed.groups.values() for tensor in (group.a, *(part.b for part in group.slices))]
        held = {tensor.untyped_storage().data_ptr() for tensor in (*tensors_of(packed), *pairs)}
        assert not read & held, name
        assert len(held) == 1, "one image holds everything"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_keep_the_precision_of_the_file(base: Path, dtype: torch.dtype) -> None:
    """Also in an engine that computes in bf16: rounding fp32 factors may leave nothing of a small ΔW."""
    memory = {"kv_memory_bytes": kv_bytes(base), "adapter_memory_bytes": 1 << 24}
    bench = Bench(EngineConfig(str(base), dtype="bfloat16", **memory, **TIGHT))
    make = Scribe(base_shapes(str(base)), seed=3)

    def in_file(shape: ModuleShape) -> LowRank:
        pair = make.low_rank(shape)
        return replace(pair, a=pair.a.to(dtype), b=pair.b.to(dtype))

    adapter = CanonicalAdapter(
        "kept",
        linears=make.linears(deltas=(in_file,)),
        embeddings={
            path: EmbeddingChange(in_file(shape))
            for path, shape in make.shapes.modules.items()
            if shape.kind == "embedding"
        },
        experts={path: replace(c, a=c.a.to(dtype), b=c.b.to(dtype)) for path, c in make.experts().items()},
    )
    bench.runner.by_hand["kept"] = adapter
    packed = bench.runner.read_adapter(AdapterRef.of("kept", "")).packed
    held = [(group.a, group.slices[0].b) for group in packed.groups.values()]
    held += [(part.a, part.b) for part in (*packed.embeddings.values(), *packed.experts.values())]
    assert len(held) > 3
    assert {tensor.dtype for tensors in held for tensor in tensors} == {dtype}


def test_a_head_and_its_embedding_share_one_replacement(base: Path) -> None:
    shapes = base_shapes(str(base))
    if not shapes.tied:
        pytest.skip("this family's head has a weight of its own")
    bench = Bench(EngineConfig(str(base), kv_memory_bytes=kv_bytes(base), adapter_memory_bytes=1 << 24, **TIGHT))
    ((head, embedding),) = shapes.tied.items()
    change = Scribe(shapes, seed=2).embeddings(weight=True)[embedding]
    linears = {head: LinearChange(weight=change.weight)}
    bench.runner.by_hand["both"] = CanonicalAdapter("both", linears, {embedding: change})
    bench.runner.by_hand["one"] = CanonicalAdapter("one", {}, {embedding: change})
    both, one = (bench.runner.read_adapter(AdapterRef.of(name, "")) for name in ("both", "one"))
    assert both.nbytes == one.nbytes
    assert change.weight is not None and torch.equal(both.packed.embeddings[embedding].weight.dense(), change.weight)


def test_one_block_for_all_pieces_is_held_once(base: Path) -> None:
    """OFT's shared block turns every piece of the input alike."""
    shapes = base_shapes(str(base))
    block = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1))).Q
    ending = "c_attn" if "transformer.wte" in shapes.modules else "q_proj"
    changes = {
        path: LinearChange(transform=InputTransform(stages=(BlockStage(block.expand(shape.in_features // 8, -1, -1)),)))
        for path, shape in shapes.modules.items()
        if path.endswith(ending)
    }
    adapters = {"shared": CanonicalAdapter("shared", changes)}
    bench = Bench(EngineConfig(str(base), kv_memory_bytes=kv_bytes(base), adapter_memory_bytes=1 << 24, **TIGHT))
    bench.runner.by_hand |= adapters
    assert bench.runner.read_adapter(AdapterRef.of("shared", "")).nbytes == block.nbytes
    (prompt,) = prompts(1, seed=4)
    bench.add("shared", prompt, AdapterRef.of("shared", ""), max_tokens=3)
    oracle = ReferenceModels(base, MAX_LEN, adapters)
    oracle.assert_visible(prompt, Path("shared"))
    oracle.assert_same(prompt, bench.run()["shared"], Path("shared"), count=3)
