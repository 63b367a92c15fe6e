"""Embeddings and classes in the same batches as everything else, each what PEFT and transformers give for it alone."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from torch import Tensor

from engine.families import FUSED, PATHS, VOCABULARY, linear_targets, save
from engine.oracle import TOLERANCE, VISIBLE, Bench, Oracle, Recorded, ref, save_adapter
from engine.pooled import class_logits, embedding, save_classifier, save_embedding_adapter
from engine.test_parity import MAX_LEN, ROOMY, TIGHT, kv_bytes
from livery.engine.base import EngineConfig, Pooling, RequestRefused
from livery.pooling import without_padding

LAST, MEAN, CLASSES = Pooling(), Pooling(kind="mean"), Pooling(head=True)


@pytest.fixture(scope="module", params=["llama", "gemma3", "gpt2"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(str(request.param), tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    targets = linear_targets(base.name)
    return {
        "writes": save_adapter(base, folder / "writes", 1, LoraConfig(r=4, target_modules=targets)),
        "embeds": save_embedding_adapter(base, folder / "embeds", 2),
        "rslora": save_embedding_adapter(base, folder / "rslora", 3, r=2, use_rslora=True, task_type=None),
        "classifies": save_classifier(base, folder / "classifies", 4),
        "dora": save_classifier(base, folder / "dora", 5, labels=1, use_dora=True),
    }


def prompts(count: int, seed: int = 3) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(3, VOCABULARY) for _ in range(rng.randrange(2, 24))] for _ in range(count)]


def bench(base: Path, **fields: object) -> Bench:
    return Bench(EngineConfig(str(base), **{"kv_memory_bytes": kv_bytes(base), **ROOMY, **TIGHT, **fields}))


def vector(result: Recorded) -> Tensor:
    assert result.error is None, result.error
    assert (result.finish, result.tokens) == ("stop", [])
    assert result.pooled is not None
    return result.pooled


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).abs().max() / expected.abs().max()) < TOLERANCE


def assert_visible(adapted: Tensor, plain: Tensor) -> None:
    assert float((adapted - plain).abs().max() / plain.abs().max()) > VISIBLE, "the test would prove nothing"


@pytest.mark.parametrize("path", list(PATHS))
def test_vectors_and_tokens_of_a_mixed_batch_are_those_of_each_request_alone(
    base: Path, adapters: dict[str, Path], path: str
) -> None:
    if path != "auto" and base.name not in FUSED:
        pytest.skip("its own forward, in torch, is what runs by default")
    mixed, oracle = bench(base, **PATHS[path]), Oracle(base, MAX_LEN)
    for name, adapter in adapters.items():  # in memory before the batch begins, so that all come at once
        mixed.pool(f"first {name}", [5, 6], ref(adapter), LAST)
    mixed.run()
    asked: dict[str, tuple[list[int], Path | None, Pooling | None]] = {}
    for index, prompt in enumerate(prompts(30)):
        name, pooling = [
            (None, LAST),
            ("writes", None),
            ("embeds", LAST),
            ("classifies", CLASSES),
            ("embeds", MEAN),
            ("writes", None),
            (None, None),
            ("rslora", MEAN),
            ("dora", CLASSES),
            ("writes", None),
            (None, MEAN),
        ][index % 11]
        adapter = adapters[name] if name else None
        prompt = prompt * 3 if pooling is MEAN else prompt
        asked[str(index)] = prompt, adapter, pooling
        if pooling is None:
            mixed.add(str(index), prompt, ref(adapter) if adapter else None, max_tokens=24)
        else:
            mixed.pool(str(index), prompt, ref(adapter) if adapter else None, pooling)
    results = mixed.run()
    stats = mixed.core.stats()
    assert stats.preemptions > 0, "the test means to force preemption"
    assert stats.blocks_free == stats.blocks_total
    for name, (prompt, adapter, pooling) in asked.items():
        if pooling is None:
            oracle.assert_same(prompt, results[name], adapter, count=24)
        elif pooling.head:
            assert adapter is not None
            labels = 1 if adapter.name == "dora" else 3
            assert_close(vector(results[name]), class_logits(base, adapter, prompt, labels))
        else:
            expected = embedding(base, adapter, prompt, pooling.kind)
            if adapter is not None:
                assert_visible(expected, embedding(base, None, prompt, pooling.kind))
            assert_close(vector(results[name]), expected)


def test_the_head_and_the_layers_of_a_classifier_both_count(base: Path, adapters: dict[str, Path]) -> None:
    """Its head over the base's hidden states gives other logits, or the test above would not show its layers."""
    prompt = prompts(1)[0]
    only, both = bench(base), class_logits(base, adapters["classifies"], prompt)
    only.pool("base", prompt, None, Pooling(normalize=False))
    only.pool("all", prompt, ref(adapters["classifies"]), Pooling(normalize=False))
    results = only.run()
    assert_visible(vector(results["all"]), vector(results["base"]))
    assert both.abs().max() > 0.1


def test_a_prompt_read_in_pieces_gives_the_bits_of_one_read_at_once(base: Path, adapters: dict[str, Path]) -> None:
    """With the same kernels for any number of rows; else up to rounding."""
    prompt = prompts(8, seed=8)[-1] * 3
    found = []
    for budget in (7, 64):
        one = bench(base, max_batch_tokens=budget, max_running=6, kv_memory_bytes=8 * kv_bytes(base))
        one.pool("mean", prompt, ref(adapters["embeds"]), MEAN)
        found.append(vector(one.run()["mean"]))
    if base.name in FUSED:
        assert torch.equal(*found)
    else:
        assert_close(*found)


def test_what_is_known_of_a_prompt_is_used_for_its_last_token_but_not_for_a_mean(
    base: Path, adapters: dict[str, Path]
) -> None:
    prompt, adapter = prompts(1, seed=6)[0] * 4, adapters["embeds"]
    one = bench(base, kv_memory_bytes=8 * kv_bytes(base))
    for name, pooling in (("first", LAST), ("again", LAST), ("mean", MEAN), ("shorter", Pooling(dimensions=8))):
        one.pool(name, prompt, ref(adapter), pooling)
        one.run()
    results = one.results
    whole = (len(prompt) - 1) // 4 * 4
    assert [results[name].cached for name in ("first", "again", "mean", "shorter")] == [0, whole, 0, whole]
    expected = embedding(base, adapter, prompt, "last")
    assert_close(vector(results["again"]), expected)
    assert_close(vector(results["mean"]), embedding(base, adapter, prompt, "mean"))
    assert_close(vector(results["shorter"]), torch.nn.functional.normalize(expected[:8], dim=0))


def test_a_prompt_may_fill_the_whole_context(base: Path) -> None:
    prompt = [3 + index % 90 for index in range(MAX_LEN)]
    one = bench(base, kv_memory_bytes=8 * kv_bytes(base), speculate=4)
    one.pool("full", prompt, None, MEAN)
    with pytest.raises(RequestRefused, match=f"97 tokens; 1 to {MAX_LEN} are possible"):
        one.pool("over", [*prompt, 3], None, MEAN)
    one.core.abort("over")
    one.results.pop("over")
    assert_close(vector(one.run()["full"]), embedding(base, None, prompt, "mean"))


def test_an_adapter_without_a_head_classifies_nothing_and_hurts_nobody(base: Path, adapters: dict[str, Path]) -> None:
    one = bench(base)
    for name, adapter in (("none", None), ("other", ref(adapters["embeds"])), ("right", ref(adapters["classifies"]))):
        one.pool(name, [5, 6, 7], adapter, CLASSES)
    results = one.run()
    assert results["none"].error == results["other"].error == "this adapter has no classification head"
    assert_close(vector(results["right"]), class_logits(base, adapters["classifies"], [5, 6, 7]))


def test_a_classifier_looks_past_padding_as_transformers_does(base: Path, adapters: dict[str, Path]) -> None:
    one = bench(base)
    pad = one.runner.info.pad_token_id
    asked = [5, 6, 0, 7, 0, 0]
    one.pool("padded", without_padding(asked, pad), ref(adapters["classifies"]), CLASSES)
    assert_close(vector(one.run()["padded"]), class_logits(base, adapters["classifies"], asked))
    assert without_padding([0, 0], 0) == [0]
