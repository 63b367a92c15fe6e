"""From files to packed weights: what is read, how parts add up, what comes back about them, and what is refused."""

from __future__ import annotations

import gc
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import torch
from peft import IA3Config, LoraConfig, OFTConfig, PeftModel, ShiraConfig, VeraConfig
from safetensors.torch import load_file, save_file

from engine.families import LLAMA_LINEAR, save
from engine.oracle import Bench, Oracle, load_base, ref, save_adapter, save_tuned
from engine.test_parity import MAX_LEN, ROOMY, TIGHT, kv_bytes
from livery.engine.base import NOBODY, AdapterLoadFailed, AdapterPart, AdapterRef, EngineConfig, EngineInfo
from livery.engine.client import EngineClient
from livery.engine.core import EngineCore
from livery.engine.images import AdapterImage
from livery.engine.pages import PAGE_BYTES, pages_for
from livery.proving import EngineProver
from livery_adapters.base_model import BaseModel
from livery_adapters.library import AdapterLibrary, Intake, from_directory
from livery_adapters.refusal import AdapterRefused, Limits
from livery_adapters.registry import Registry
from livery_adapters.store import BlobStore

PROMPT = [5, 17, 42, 8, 33]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("llama", tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("adapters")
    configs = [LoraConfig(r=4, target_modules=LLAMA_LINEAR), LoraConfig(r=2, target_modules=LLAMA_LINEAR[:3])]
    return [save_adapter(base, folder / str(seed), seed, config) for seed, config in enumerate(configs)]


@pytest.fixture(scope="module")
async def served(base: Path) -> AsyncIterator[tuple[EngineClient, EngineInfo]]:
    """An engine in a process of its own."""
    engine = EngineClient(EngineConfig(str(base), kv_memory_bytes=kv_bytes(base), **ROOMY, **TIGHT))
    info = await engine.start()
    yield engine, info
    await engine.stop()


def bench_of(base: Path) -> Bench:
    return Bench(EngineConfig(str(base), kv_memory_bytes=kv_bytes(base), **ROOMY, **TIGHT))


def device_bytes(image: AdapterImage) -> int:
    return PAGE_BYTES * sum(map(pages_for, image.sizes))


def changed_copy(adapter: Path, folder: Path) -> Path:
    folder.mkdir()
    for file in adapter.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({name: tensor * 2 for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    return folder


def test_files_that_changed_since_they_were_added_are_refused(base: Path, adapters: list[Path], tmp_path: Path) -> None:
    asked = ref(adapters[0])
    changed = changed_copy(adapters[0], tmp_path / "changed")
    bench = bench_of(base)
    part = AdapterPart(asked.digest, str(changed))
    with pytest.raises(AdapterRefused, match=asked.digest[:12]):
        bench.runner.read_adapter(AdapterRef(asked.digest, (part,)))
    verified = AdapterPart(asked.digest, str(changed), verified=True)  # taken at its word: nothing is hashed again
    assert bench.runner.read_adapter(AdapterRef("v" * 64, (verified,))).digest == "v" * 64


@pytest.mark.parametrize("asked_for", ["while it is read", "once it was read"])
def test_a_copy_that_vanishes_fails_nobody_who_asked_for_the_stored_files(
    asked_for: str, base: Path, adapters: list[Path], tmp_path: Path
) -> None:
    """A check of files that are served as well is given up: its copy is gone, and what waits for them is answered."""
    bench, read = bench_of(base), threading.Event()
    bench.core = EngineCore(bench.runner, read.set)
    stored = ref(adapters[0])
    copy = AdapterPart(stored.digest, str(tmp_path / "incoming" / "files"), verified=True)
    bench.core.load_adapter(AdapterRef(stored.digest, (copy,)))
    if asked_for == "once it was read":
        bench.step()
        assert read.wait(60)
    bench.add("served", PROMPT, stored, max_tokens=2)
    result = bench.run()["served"]
    assert (result.finish, result.error, len(result.tokens)) == ("length", None, 2)
    assert [outcome.error for outcome in bench.core.take_loads()] == [None]
    bench.core.load_adapter(AdapterRef("g" * 64, (copy,)))
    outcomes = bench.core.take_loads()
    while not outcomes:
        bench.step()
        outcomes = bench.core.take_loads()
    assert [outcome.code for outcome in outcomes] == ["missing_config"], "nobody knows another place for it"


@pytest.mark.parametrize("name", ["x" * 300, "nul\0", "gone"])
def test_what_reading_came_upon_isnt_told_with_its_path(base: Path, name: str, tmp_path: Path) -> None:
    """Neither to who loads an adapter nor to the requests that wait for it."""
    bench = bench_of(base)
    asked = AdapterRef("d" * 64, (AdapterPart("d" * 64, f"{tmp_path}/{name}", verified=True),))
    bench.core.load_adapter(asked)
    bench.add("waits", PROMPT, asked, max_tokens=2)
    told = [bench.run()["waits"].error, *(outcome.error for outcome in bench.core.take_loads())]
    assert len(told) == 2
    for error in told:
        assert error and str(tmp_path) not in error and "null" not in error


async def test_what_another_process_stored_is_hashed_before_it_is_proven(
    served: tuple[EngineClient, EngineInfo], adapters: list[Path], tmp_path: Path
) -> None:
    """A bit that a disk lost is a refusal, though the files are an adapter still."""
    store, registry = BlobStore(tmp_path / "blobs"), Registry.open(tmp_path / "livery.db", frozenset({"tiny"}))
    engine, info = served
    model = BaseModel("tiny", info.base_digest, info.shapes)
    without_model = AdapterLibrary(registry, store, model, Limits())
    prover = EngineProver(engine, info, lambda ref: None, lambda digest: None, lambda owner: NOBODY)
    library = AdapterLibrary(registry, BlobStore(store.root), model, Limits(), prover)
    try:
        for name, folder in zip(("whole", "damaged"), adapters, strict=True):
            await without_model.add(name, from_directory(folder, [folder]), Intake("cli"))
        weights = store.path(ref(adapters[1]).digest) / "adapter_model.safetensors"
        weights.chmod(0o644)
        data = bytearray(weights.read_bytes())
        data[-4] ^= 1  # the lowest bit of the last number
        weights.write_bytes(data)
        assert (await library.activate("whole", "1")).state == "ready"
        with pytest.raises(AdapterRefused, match="changed since they were added") as refused:
            await library.activate("damaged", "1")
        assert refused.value.code == "activation_failed"
    finally:
        registry.close()


def test_parts_add_up_by_their_weights(base: Path, adapters: list[Path], tmp_path: Path) -> None:
    """PEFT's own weighted sum of both is what their composition computes, and a half weight is half of it."""
    model = PeftModel.from_pretrained(load_base(base, MAX_LEN), adapters[0], adapter_name="a")
    model.load_adapter(adapters[1], adapter_name="b")
    model.add_weighted_adapter(["a", "b"], [0.5, -1.5], "sum", combination_type="cat")
    model.set_adapter("sum")
    parts = [
        AdapterPart(ref(path).digest, str(path), weight) for path, weight in zip(adapters, (0.5, -1.5), strict=True)
    ]
    bench, oracle = bench_of(base), Oracle(base, MAX_LEN)
    bench.add("sum", PROMPT, AdapterRef("s" * 64, tuple(parts)), max_tokens=6)
    bench.add("half", PROMPT, AdapterRef("h" * 64, tuple(parts[:1])), max_tokens=6)
    bench.add("whole", PROMPT, ref(adapters[0]), max_tokens=6)
    results = bench.run()
    oracle._models[Path("sum")] = model.eval()
    oracle.assert_visible(PROMPT, Path("sum"))
    oracle.assert_same(PROMPT, results["sum"], Path("sum"), count=6)
    oracle.assert_same(PROMPT, results["whole"], adapters[0], count=6)
    assert not results["half"].logits[len(PROMPT) - 1].equal(results["whole"].logits[len(PROMPT) - 1])


def test_an_approximation_says_how_far_off_it_is(base: Path, tmp_path: Path) -> None:
    folder = save_tuned(base, tmp_path / "shira", 1, ShiraConfig(r=4, target_modules=["q_proj"], random_seed=5))
    digest = ref(folder).digest
    runner = bench_of(base).runner
    with pytest.raises(AdapterRefused, match="--approximate"):
        runner.read_adapter(ref(folder))
    coarse, fine = (
        runner.read_adapter(AdapterRef(digest, (AdapterPart(digest, str(folder), approximate=rank),))).effect
        for rank in (2, 8)
    )
    assert not coarse.exact
    assert coarse.error > fine.error > 0.01


def test_one_file_at_two_ranks_is_two_parts_of_a_sum(base: Path, tmp_path: Path) -> None:
    folder = save_tuned(base, tmp_path / "shira", 1, ShiraConfig(r=4, target_modules=["q_proj"], random_seed=5))
    digest = ref(folder).digest
    parts = [AdapterPart(digest, str(folder), approximate=rank) for rank in (2, 8)]
    runner = bench_of(base).runner
    for order in (parts, parts[::-1]):
        effect = runner.read_adapter(AdapterRef("t" * 64, tuple(order))).effect
        assert {module.rank for module in effect.modules.values()} == {2 + 8}


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads Linux's map of the process")
def test_packed_adapters_outlive_their_files(base: Path, tmp_path: Path) -> None:
    """A mapped file that is deleted or overwritten would end the process; nothing of it may stay in use."""
    configs = {
        "ia3": IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
        "full": LoraConfig(r=1, target_modules=["q_proj", "embed_tokens"], modules_to_save=["norm", "lm_head"]),
        "rotated": OFTConfig(r=0, oft_block_size=8, target_modules=["q_proj"]),
        "basis": VeraConfig(r=4, target_modules=["q_proj", "o_proj"]),
    }
    runner = bench_of(base).runner
    for name, config in configs.items():
        folder = save_tuned(base, tmp_path / name, 1, config)
        packed = runner.read_adapter(ref(folder))
        gc.collect()
        assert str(folder) not in Path("/proc/self/maps").read_text(), name
        assert packed.nbytes > 0, name


def test_weights_are_told_as_the_base_has_them(tmp_path: Path) -> None:
    """Whatever layout the kernels keep: conversions see [out_features, in_features], biases and other parameters."""
    path = save("gpt2", tmp_path)
    model = load_base(path, MAX_LEN)
    weights = bench_of(path).runner._weights
    block = "transformer.h.1"
    for module in ("attn.c_attn", "mlp.c_proj"):
        original = model.get_submodule(f"{block}.{module}")
        assert torch.equal(weights.weight(f"{block}.{module}"), original.weight.t())
        assert torch.equal(weights.bias(f"{block}.{module}"), original.bias)
    assert torch.equal(weights.weight("transformer.wte"), model.transformer.wte.weight)
    assert torch.equal(weights.weight("lm_head"), model.lm_head.weight)
    assert weights.bias("lm_head") is None
    assert torch.equal(weights.parameter(f"{block}.ln_1.bias"), model.get_submodule(f"{block}.ln_1").bias)


async def test_a_load_tells_what_the_adapter_does(
    served: tuple[EngineClient, EngineInfo], base: Path, tmp_path: Path
) -> None:
    """Over the process border: the effect of a new version, of one that is resident already, and a refusal's code."""
    engine, _ = served
    fresh = save_adapter(base, tmp_path / "fresh", 9, LoraConfig(r=4, target_modules=LLAMA_LINEAR))
    broken, asked = changed_copy(fresh, tmp_path / "broken"), ref(fresh)
    assert asked.digest not in (await engine.stats()).resident_adapters
    first = await engine.load_adapter(asked)
    again = await engine.load_adapter(asked)
    assert first is not None and first == again
    module = first.modules["model.layers.0.self_attn.q_proj"]
    assert (module.rank, module.error) == (4, 0.0)
    assert module.relative > 0.1
    assert first.exact and not first.changes_nothing
    with pytest.raises(AdapterLoadFailed, match="changed since") as refused:
        await engine.load_adapter(AdapterRef("b" * 64, (AdapterPart(asked.digest, str(broken)),)))
    assert refused.value.code == "activation_failed"


def test_a_load_of_what_waits_for_room_is_answered(base: Path, adapters: list[Path]) -> None:
    """A version that is read but not placed yet is as good as loaded to whoever asks for it."""
    config = EngineConfig(str(base), kv_memory_bytes=kv_bytes(base), **ROOMY, **TIGHT)
    sizes = [device_bytes(bench_of(base).runner.read_adapter(ref(path))) for path in adapters]
    bench = Bench(msgspec.structs.replace(config, adapter_memory_bytes=max(sizes)))
    outcomes = []
    for path in adapters[:2]:
        bench.core.load_adapter(ref(path))
    while len(outcomes) < 2:
        bench.step()
        outcomes += bench.core.take_loads()
    assert (len(bench.core.stats().resident_adapters), len(bench.core.stats().host_adapters)) == (1, 1)
    bench.core.load_adapter(ref(adapters[1]))
    (outcome,) = bench.core.take_loads()
    assert outcome.error is None and outcome.effect is not None
    assert set(outcome.effect.modules) == {
        f"model.layers.{i}.self_attn.{m}" for i in range(3) for m in LLAMA_LINEAR[:3]
    }
    bench.run()


def test_what_leaves_the_device_comes_back_from_the_host(base: Path, adapters: list[Path]) -> None:
    """And from the store once it is unloaded; a load that finds it in host memory reads nothing."""
    bench = bench_of(base)
    core, asked = bench.core, ref(adapters[0])

    def loads() -> tuple[int, int]:
        bench.add(str(len(bench.results)), PROMPT, asked, max_tokens=2)
        bench.run()
        stats = core.stats()
        return stats.adapter_loads - stats.adapter_loads_from_host, stats.adapter_loads_from_host

    assert loads() == (1, 0)
    assert core.evict_adapter(asked.digest)
    bench.step()
    assert (core.stats().adapter_bytes, len(core.stats().host_adapters)) == (0, 1)
    assert core.stats().host_adapter_bytes == bench.runner.read_adapter(asked).nbytes
    core.take_loads()
    core.load_adapter(asked)
    assert [outcome.error for outcome in core.take_loads()] == [None]
    assert loads() == (1, 1)
    core.unload_adapter(asked.digest)
    bench.step()
    assert (core.stats().adapter_bytes, len(core.stats().host_adapters)) == (0, 0)
    assert not core.evict_adapter(asked.digest)
    assert loads() == (2, 1)
    assert all(result.tokens == bench.results["0"].tokens for result in bench.results.values())


def test_the_loop_goes_on_while_adapters_take_turns(base: Path, adapters: list[Path]) -> None:
    """With all of them in host memory nothing is worth waiting for: a turn that ends leaves room to be filled."""
    config = EngineConfig(str(base), kv_memory_bytes=kv_bytes(base), **ROOMY, **TIGHT)
    sizes = [device_bytes(bench_of(base).runner.read_adapter(ref(path))) for path in adapters]
    bench = Bench(msgspec.structs.replace(config, adapter_memory_bytes=max(sizes)))
    for path in adapters[:2]:
        bench.core.load_adapter(ref(path))
    outcomes = 0
    while outcomes < 2:
        bench.step()
        outcomes += len(bench.core.take_loads())
    for number, path in enumerate(adapters[:2]):
        bench.add(str(number), PROMPT, ref(path), max_tokens=40)
    while bench.core.has_work:
        bench.step()
        assert not (bench.core.is_idle and bench.core.has_work)
    assert bench.core.stats().adapter_loads_from_host >= 2, "nobody took turns"
