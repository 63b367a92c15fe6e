"""Adapters with tokens of their own: what PEFT computes on a resized model, in any company, and nobody else's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftConfig
from torch import Tensor

from engine.families import VOCABULARY, save
from engine.oracle import TOLERANCE, Bench, Oracle, Recorded, ref, save_adapter, save_grown
from engine.test_parity import MAX_LEN, ROOMY, TIGHT, kv_bytes, prompts
from livery.engine.arena import Arena
from livery.engine.base import AdapterRef, EngineConfig, RequestRefused, TokenDelta, TokenLogprobs
from livery.engine.masks import apply_masks
from livery.engine.plan import SequenceSlice, TokenMask

FAMILIES = {"llama": True, "qwen3": False, "gemma2": True}  # and whether the head is tied; gemma2 runs its own forward
WIDE = {"block_size": 4, "max_model_len": MAX_LEN, "threads": 1, "prefix_cache": False}
EMBEDDINGS = ["embed_tokens", "lm_head"]


def trained_tokens(tied: bool) -> Any:
    ids = [5, VOCABULARY, VOCABULARY + 1]
    return ids if tied else dict.fromkeys(EMBEDDINGS, ids)


def configs_of(tied: bool) -> dict[str, tuple[PeftConfig, int, dict[str, Any]]]:
    """By name: the configuration, how many rows are added, and how it is saved."""
    tokens = LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=trained_tokens(tied))
    return {
        "tables": (LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=EMBEDDINGS), 3, {}),
        "pairs": (LoraConfig(r=3, lora_alpha=5, target_modules=["v_proj", *EMBEDDINGS]), 5, {}),
        "gains": (LoraConfig(r=2, target_modules=EMBEDDINGS, use_dora=True), 1, {}),
        "rows": (tokens, 2, {"save_embedding_layers": False}),
        "padded": (LoraConfig(r=2, target_modules=["q_proj", "k_proj"]), 7, {"save_embedding_layers": True}),
    }


@dataclass
class Scene:
    base: Path
    oracle: Oracle
    folders: dict[str, Path]
    added: dict[str, int]
    plain: Path

    def ref(self, name: str) -> AdapterRef:
        return ref(self.folders[name], self.added[name])

    def bench(self, arena: Any = None, **settings: Any) -> Bench:
        """An engine that has read every adapter already: requests of the base would else be done before the others'."""
        made = self.unread(arena, **settings)
        for name in self.folders:
            made.add(f"read {name}", [3], self.ref(name), max_tokens=1)
        made.add("read plain", [3], ref(self.plain), max_tokens=1)
        made.run()
        return made

    def unread(self, arena: Any = None, **settings: Any) -> Bench:
        return Bench(EngineConfig(str(self.base), kv_memory_bytes=kv_bytes(self.base), **ROOMY, **settings), arena)

    def assert_same(self, prompt: list[int], result: Recorded, folder: Path | None) -> None:
        """Every logit as PEFT computes it for this request alone."""
        assert result.error is None, result.error
        expected = self.oracle.logits(prompt + result.tokens, folder)
        for index in range(len(result.tokens)):
            position = len(prompt) - 1 + index
            width = expected.shape[1]
            own, others = result.logits[position][:width], result.logits[position][width:]
            assert float((own - expected[position]).abs().max() / expected.abs().max()) < TOLERANCE
            assert bool((others == -torch.inf).all())


@pytest.fixture(scope="module", params=list(FAMILIES))
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    family = str(request.param)
    folder = tmp_path_factory.mktemp(family)
    base = save(family, folder)
    made = Scene(base, Oracle(base, MAX_LEN), {}, {}, folder / "plain")
    save_adapter(base, made.plain, 9, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    for seed, (name, (config, added, saving)) in enumerate(configs_of(FAMILIES[family]).items()):
        made.folders[name] = save_grown(base, folder / name, seed, config, VOCABULARY + added, **saving)
        made.added[name] = made.oracle.rows[made.folders[name]] = added
        made.oracle.rows[made.folders[name]] += VOCABULARY
    return made


def meetings(bench: Bench) -> list[int]:
    """Grows with every step from now on in which rows of different vocabularies meet: how many vocabularies."""
    met: list[int] = []
    forward = bench.runner.forward

    def watched(slices: Sequence[SequenceSlice]) -> Tensor:
        logits = forward(slices)
        widths = bench.runner._widths
        if widths is not None and len(set(widths.rows)) > 1:
            met.append(len(set(widths.rows)))
        return logits

    bench.runner.forward = watched  # type: ignore[method-assign]
    return met


def with_own(prompt: list[int], added: int) -> list[int]:
    """A prompt with the first and the last of an adapter's own tokens in its midst."""
    return [*prompt[:3], VOCABULARY, *prompt[3:], VOCABULARY + added - 1, prompt[0]]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kernels", ["auto", "torch", "arena"])
def test_a_mixed_batch_is_what_peft_computes_on_resized_models(scene: Scene, kernels: str) -> None:
    bench = scene.bench(Arena, **TIGHT) if kernels == "arena" else scene.bench(**TIGHT, kernels=kernels)
    met = meetings(bench)
    asked: dict[str, tuple[list[int], Path | None]] = {}
    drawn = prompts(2 * len(scene.folders) + 2, seed=3)
    asked["base"], asked["plain"] = (drawn[-1], None), (drawn[-2], scene.plain)
    bench.add("base", drawn[-1], None, max_tokens=12)
    bench.add("plain", drawn[-2], ref(scene.plain), max_tokens=12)
    for at, (name, folder) in enumerate(scene.folders.items()):
        prompt, other = with_own(drawn[2 * at], scene.added[name]), drawn[2 * at + 1]
        scene.oracle.assert_visible(other, folder)
        asked[name], asked[f"{name}-makes"] = (prompt, folder), (other, folder)
        bench.add(name, prompt, scene.ref(name), max_tokens=4)
        last = VOCABULARY + scene.added[name] - 1
        bench.add(f"{name}-makes", other, scene.ref(name), max_tokens=4, logit_bias={last: 1000.0})
    results = bench.run()
    assert max(met) > 2
    for name, (prompt, adapter) in asked.items():
        scene.assert_same(prompt, results[name], adapter)
    for name, added in scene.added.items():
        assert results[f"{name}-makes"].tokens == [VOCABULARY + added - 1] * 4


def told(bench: Bench) -> Iterator[TokenDelta]:
    while bench.core.has_work:
        yield from bench.step()


def logprobs_of(bench: Bench) -> dict[str, list[TokenLogprobs]]:
    found: dict[str, list[TokenLogprobs]] = {}
    for delta in told(bench):
        found.setdefault(delta.request_id, []).extend((*delta.prompt_logprobs, *delta.logprobs))
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("settings", [{}, {"deterministic": True}, {"overlap": "on"}], ids=str)
def test_others_get_the_same_bits_beside_it(scene: Scene, settings: dict[str, Any]) -> None:
    if scene.base.name == "gemma2":
        pytest.skip("torch's own products depend on how many rows there are")
    bench = scene.bench(**WIDE, **settings)
    (prompt,) = prompts(1, seed=8)
    asked = {"base": None, "plain": ref(scene.plain)}
    sampling = {"temperature": 1.0, "seed": 4, "logprobs": 3, "prompt_logprobs": 2, "repetition_penalty": 1.2}
    for name, adapter in asked.items():
        bench.add(name, prompt, adapter, max_tokens=8, **sampling)
    alone = logprobs_of(bench)
    tokens = {name: bench.results[name].tokens for name in asked}
    for name, adapter in asked.items():
        bench.add(name, prompt, adapter, max_tokens=8, **sampling)
    for name, added in scene.added.items():
        bench.add(f"beside {name}", with_own(prompt, added), scene.ref(name), max_tokens=9, **sampling)
    met = meetings(bench)
    beside = logprobs_of(bench)
    assert max(met) > 2
    for name in asked:
        assert bench.results[name].tokens == tokens[name]
        assert beside[name] == alone[name]


@pytest.mark.filterwarnings("ignore")
def test_log_probabilities_are_over_its_own_vocabulary(scene: Scene) -> None:
    bench = scene.bench(**WIDE, speculate=3)
    drawn = prompts(2, seed=6)
    prompt = with_own(drawn[0], scene.added["tables"])
    bench.add("own", prompt, scene.ref("tables"), max_tokens=3, logprobs=VOCABULARY, prompt_logprobs=1)
    bench.add("wide", prompt, scene.ref("tables"), max_tokens=3, logprobs=200, repetition_penalty=1.3)
    bench.add("base", drawn[1], None, max_tokens=3, logprobs=200)
    met = meetings(bench)
    found = logprobs_of(bench)
    assert met
    ids = prompt + bench.results["own"].tokens
    expected = torch.log_softmax(scene.oracle.logits(ids, scene.folders["tables"]), dim=-1)
    assert len(found["own"]) == len(ids) - 1
    for position, told in enumerate(found["own"]):
        assert told.logprob == pytest.approx(float(expected[position][ids[position + 1]]), abs=1e-3)
    assert {len(told.top) for told in found["wide"]} == {VOCABULARY + scene.added["tables"]}
    assert {len(told.top) for told in found["base"]} == {VOCABULARY}
    assert max(token for told in found["base"] for token, _ in told.top) < VOCABULARY


@pytest.mark.filterwarnings("ignore")
def test_ids_that_an_adapter_does_not_have_are_refused(scene: Scene) -> None:
    bench = scene.bench(**WIDE)
    rows = scene.ref("rows")
    for adapter, first in ((None, VOCABULARY), (ref(scene.plain), VOCABULARY), (rows, VOCABULARY + 2)):
        for sampling in (
            {},
            {"logit_bias": {first: 1.0}},
            {"allowed_token_ids": (3, first)},
            {"stop_token_ids": (first,)},
            {"bad_words": ((3, first),)},
        ):
            with pytest.raises(RequestRefused, match=f"vocabulary of {first}"):
                bench.add("beyond", [3, 4] if sampling else [3, first], adapter, max_tokens=2, **sampling)
    with pytest.raises(RequestRefused, match="before the adapter's start"):
        bench.add("early", [3, VOCABULARY, 4], rows, max_tokens=2, adapter_start=2)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("claimed", [0, 3])
def test_a_version_with_other_rows_than_told_of_is_not_loaded(scene: Scene, claimed: int) -> None:
    with pytest.raises(RequestRefused, match=f"2 tokens of its own, not {claimed}"):
        scene.bench(**WIDE).add("claims", [3, 4], ref(scene.folders["rows"], claimed), max_tokens=2)
    bench = scene.unread(**WIDE)
    bench.add("claims", [3, 4], ref(scene.folders["rows"], claimed), max_tokens=2)
    error = bench.run()["claims"].error or ""
    assert f"have 2 tokens beyond the base's, and {claimed} were told of" in error


def test_grammars_allow_nothing_behind_the_base() -> None:
    logits = torch.arange(24.0).reshape(3, 8)
    few = TokenMask(np.array([1, 2]), allows=True, ends_only=False)
    many = TokenMask(np.array([0]), allows=False, ends_only=False)
    held = apply_masks(logits, {0: few, 2: many}, vocabulary=6)
    assert [[token for token in range(8) if row[token] > -torch.inf] for row in held] == [
        [1, 2],
        list(range(8)),
        [1, 2, 3, 4, 5],
    ]
