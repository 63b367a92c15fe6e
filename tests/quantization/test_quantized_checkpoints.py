"""Checkpoints that are quantised already, and what quantised bases keep in memory."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from bases import LINEAR, save
from checkpoints import compressed, nf4_with_plain_keys, quantized_base, reference, torchao_int8
from peft import LoraConfig, PeftModel, get_peft_model
from test_quantized_parity import prompts

from engine.oracle import TOLERANCE, VISIBLE, Bench, ref, save_tuned
from livery.engine.base import EngineConfig, ModelRefused
from livery.engine.base_bytes import expected_bytes
from livery.engine.model import base_shapes
from livery.engine.quantization import choose_quantization
from livery.engine.quantized import QuantizedLinear

pytestmark = [pytest.mark.quantization, pytest.mark.filterwarnings("ignore")]

DORA = LoraConfig(r=3, use_dora=True, target_modules=LINEAR)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("qwen2", tmp_path_factory.mktemp("base"))


CHECKPOINTS = {"nf4": nf4_with_plain_keys, "torchao": torchao_int8, "compressed": compressed}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_a_checkpoint_is_recognised_and_adapters_are_as_peft_has_them(kind: str, base: Path, tmp_path: Path) -> None:
    checkpoint = CHECKPOINTS[kind](base, tmp_path / kind)
    dora = save_tuned(base, tmp_path / "dora", 1, DORA, std=0.2)
    assert base_shapes(str(checkpoint)) == base_shapes(str(base))
    bench = Bench(EngineConfig(str(checkpoint), kv_memory_bytes=1 << 22, max_batch_tokens=13))
    assert "as quantised" in bench.runner.info.weights
    choices = [None, dora]
    for index, prompt in enumerate(prompts(4)):
        choice = choices[index % 2]
        bench.add(str(index), prompt, ref(dora) if choice else None, max_tokens=3)
    results = bench.run()
    for index, prompt in enumerate(prompts(4)):
        model = reference(checkpoint)
        tokens = torch.tensor([prompt + results[str(index)].tokens])
        with torch.no_grad():
            plain = model(tokens, use_cache=False).logits[0]
            expected = plain
            if choices[index % 2]:
                expected = PeftModel.from_pretrained(model, dora).eval()(tokens, use_cache=False).logits[0]
                assert (expected - plain).abs().max() > VISIBLE * plain.abs().max()
        for position, row in results[str(index)].logits.items():
            assert (row - expected[position]).abs().max() < TOLERANCE * expected.abs().max()


@pytest.mark.parametrize("scheme", ["bnb-nf4", "bnb-nf4-double", "torchao-int8", "torchao-fp8", "compressed"])
def test_no_widened_copy_is_kept_and_its_bytes_are_foretold(scheme: str, base: Path, tmp_path: Path) -> None:
    on_load = scheme != "compressed"
    path = base if on_load else compressed(base, tmp_path / scheme)
    config = EngineConfig(str(path), quantization=scheme if on_load else "auto", kv_memory_bytes=1 << 22)
    gc.collect()
    before = {id(found) for found in gc.get_objects() if isinstance(found, torch.Tensor)}
    bench = Bench(config)
    dora = save_tuned(base, tmp_path / "dora", 1, DORA, std=0.2)
    bench.add("one", [5, 6, 7], ref(dora), max_tokens=3)
    assert bench.run()["one"].error is None
    gc.collect()
    linear = {(s.out_features, s.in_features) for p, s in bench.runner.info.shapes.modules.items() if ".layers." in p}
    wide = [
        tuple(found.shape)
        for found in gc.get_objects()
        if isinstance(found, torch.Tensor)
        and id(found) not in before
        and type(found).__module__.startswith("torch")
        and not type(found).__module__.startswith("torchao")
        and found.is_floating_point()
        and found.dtype.itemsize > 1
        and tuple(found.shape) in linear
    ]
    assert not wide
    chosen = choose_quantization(config, "cpu")
    expected = expected_bytes(path, base_shapes(str(path)), chosen, 4)
    found = bench.runner.info.weight_bytes
    codebooks = 1500 * sum(".layers." in path for path in bench.runner.info.shapes.modules)  # of each module, at most
    assert expected.held <= found * 1.02 and found <= expected.held + codebooks
    assert found < 0.6 * expected.full


def test_an_adapter_trained_on_a_quantised_base_runs_on_it_and_on_the_full_one(base: Path, tmp_path: Path) -> None:
    model = get_peft_model(quantized_base(base, "bnb-nf4"), LoraConfig(r=4, target_modules=LINEAR))
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(tmp_path / "qlora")
    seen = []
    for quantization in ("bnb-nf4", "auto"):
        bench = Bench(EngineConfig(str(base), quantization=quantization, kv_memory_bytes=1 << 22))
        bench.add("one", [5, 6, 7, 8], ref(tmp_path / "qlora"), max_tokens=1)
        seen.append(bench.run()["one"].logits[3])
        assert bench.results["one"].error is None
    with torch.no_grad():
        expected = model.eval()(torch.tensor([[5, 6, 7, 8]]), use_cache=False).logits[0, -1]
    assert (seen[0] - expected).abs().max() < TOLERANCE * expected.abs().max()
    assert (seen[1] - expected).abs().max() < 0.5 * expected.abs().max()  # but for what quantising changed


def test_a_model_whose_modules_a_library_passes_over_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match="GPT2LMHeadModel came out of transformers in full precision"):
        Bench(EngineConfig(str(save("gpt2", tmp_path)), quantization="torchao-int8"))


def test_transposed_modules_are_quantised(tmp_path: Path) -> None:
    bench = Bench(EngineConfig(str(save("gpt2", tmp_path)), quantization="bnb-nf4", kv_memory_bytes=1 << 22))
    assert not any(isinstance(module, QuantizedLinear) for module in bench.runner._model.modules())  # all adapter-aware
    assert bench.runner.info.shapes == base_shapes(str(tmp_path / "gpt2"))
