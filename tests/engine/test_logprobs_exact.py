"""Penalties, biases and log-probabilities against transformers' processors and PEFT's logits, adapters in one batch.

Whatever happens beside a request (small chunks, preemption, drafts, steps launched ahead, prefix hits), its tokens are
those that the oracle's logits give, one after another, for that request alone.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor

from engine.families import LLAMA_LINEAR, VOCABULARY, save
from engine.oracle import Bench, Oracle, ref, save_adapter
from engine.test_parity import kv_bytes
from livery.engine.base import EngineConfig, TokenLogprobs
from livery.engine.plan import NOT_FINITE

MAX_LEN, COUNT, CLOSE = 96, 14, 2e-4
ROOM: dict[str, Any] = {"block_size": 4, "max_batch_tokens": 12, "max_running": 4, "max_model_len": MAX_LEN}
FIELDS: list[dict[str, Any]] = [
    {"repetition_penalty": 1.7, "logprobs": 3},
    {"presence_penalty": 1.5, "frequency_penalty": 0.8, "logprobs": 0},
    {"frequency_penalty": -0.7, "repetition_penalty": 0.8, "logprobs": 5},
    {"logit_bias": {7: 3.5, 11: -100.0, 13: 2.25}, "repetition_penalty": 1.3, "logprobs": 1},
    {"allowed_token_ids": tuple(range(20, 40)), "presence_penalty": 2.0, "logprobs": 2},
    {"bad_words": ((5,), (9, 8)), "logprobs": 1, "frequency_penalty": -1.0},
    {},
]
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "drafts": {"speculate": 5},
    "ahead": {"overlap": "on"},
    "torch": {"kernels": "torch", "speculate": 3},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("llama", tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = LoraConfig(r=4, lora_alpha=8, target_modules=LLAMA_LINEAR)
    return save_adapter(base, tmp_path_factory.mktemp("adapters") / "r4", 1, config)


@pytest.fixture(scope="module")
def oracle(base: Path) -> Oracle:
    return Oracle(base, MAX_LEN)


def bench_of(base: Path, **config: Any) -> Bench:
    sizes = {**ROOM, "adapter_memory_bytes": 1 << 20, "kv_memory_bytes": 1 << 16, "threads": 1}
    return Bench(EngineConfig(str(base), **{**sizes, **config}))


def prompts() -> list[list[int]]:
    """Half of them repeat themselves, so that drafts are made and penalties bite."""
    rng = random.Random(3)
    pattern = [rng.randrange(3, VOCABULARY) for _ in range(4)]
    return [(pattern * 4)[: 3 + number] if number % 2 else rng.choices(range(3, 90), k=9) for number in range(14)]


def adjusted(logits: Tensor, prompt: list[int], answer: list[int], fields: dict[str, Any]) -> Tensor:
    """The slow way, with transformers' own processor for what it has one."""
    row = logits.clone()
    for token, bias in fields.get("logit_bias", {}).items():
        row[token] += bias
    if "repetition_penalty" in fields:
        processors = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(fields["repetition_penalty"])])
        row = processors(torch.tensor([prompt + answer]), row[None])[0]
    for token in set(answer):
        row[token] -= answer.count(token) * fields.get("frequency_penalty", 0.0) + fields.get("presence_penalty", 0.0)
    for token in set(range(len(row))) - set(fields.get("allowed_token_ids", range(len(row)))):
        row[token] = float("-inf")
    for *before, last in fields.get("bad_words", ()):
        if not before or answer[-len(before) :] == before:
            row[last] = float("-inf")
    return row


def check_told(told: TokenLogprobs, token: int, logits: Tensor, count: int) -> None:
    """A token's own number, its rank and the likeliest, against log_softmax of the oracle's logits."""
    expected = torch.log_softmax(logits.float(), -1)
    assert told.logprob == pytest.approx(float(expected[token]), abs=CLOSE)
    assert len(told.top) == count
    values = [value for _, value in told.top]
    assert values == sorted(values, reverse=True)
    assert values == pytest.approx(expected.topk(count).values.tolist(), abs=CLOSE)
    for other, value in told.top:
        assert value == pytest.approx(float(expected[other]), abs=CLOSE)
    assert dict(told.top).get(token, told.logprob) == told.logprob, "one float, wherever it stands"
    assert abs(told.rank - 1 - int((expected > expected[token]).sum())) <= 1


@pytest.mark.parametrize("way", WAYS)
def test_tokens_and_numbers_are_the_oracles(base: Path, adapter: Path, oracle: Oracle, way: str) -> None:
    bench = bench_of(base, **WAYS[way])
    told: dict[str, list[TokenLogprobs]] = {}
    asked = {}
    for number, prompt in enumerate(prompts()):
        fields, folder = FIELDS[number % len(FIELDS)], adapter if number % 3 else None
        asked[str(number)] = (prompt, fields, folder)
        told[str(number)] = []
        bench.add(str(number), prompt, ref(folder) if folder else None, COUNT, **fields)
    while bench.core.has_work:
        for delta in bench.step():
            told[delta.request_id] += delta.logprobs
            assert len(delta.logprobs) in (0, len(delta.token_ids))
    if way == "drafts":
        assert bench.core.stats().accepted_tokens > 0
    for name, (prompt, fields, folder) in asked.items():
        answer = bench.results[name].tokens
        assert len(answer) == COUNT, bench.results[name].error
        assert len(told[name]) == (COUNT if "logprobs" in fields else 0)
        logits = oracle.logits(prompt + answer, folder)[len(prompt) - 1 :]
        for index, token in enumerate(answer):
            row = adjusted(logits[index], prompt, answer[:index], fields)
            assert float(row[token]) >= float(row.max()) - 1e-3, f"{name}: token {index}"
            if told[name]:
                check_told(told[name][index], token, logits[index], fields["logprobs"])


@pytest.mark.parametrize("rows", [3, 1 << 30])
def test_a_prompts_own_numbers(base: Path, adapter: Path, oracle: Oracle, rows: int) -> None:
    """In chunks, under preemption, beside others, and although the prompt is cached already."""
    bench = bench_of(base, kv_memory_bytes=kv_bytes(base))
    bench.core._scheduler._scored_rows = rows
    told: dict[str, list[TokenLogprobs]] = {}
    asked = {}
    for wave in range(2):
        for number, prompt in enumerate(prompts()[:8]):
            name, folder = f"{wave}.{number}", adapter if number % 2 else None
            asked[name] = (prompt, folder, number % 3)
            told[name] = []
            bench.add(name, prompt, ref(folder) if folder else None, 6, prompt_logprobs=number % 3)
        while bench.core.has_work:
            for delta in bench.step():
                told[delta.request_id] += delta.prompt_logprobs
            bench.core.check_invariants()
    for name, (prompt, folder, count) in asked.items():
        assert bench.results[name].error is None
        assert bench.results[name].cached == 0, "what is to be scored is computed"
        assert len(told[name]) == len(prompt) - 1
        logits = oracle.logits(prompt, folder)
        for position, own in enumerate(told[name]):
            check_told(own, prompt[position + 1], logits[position], count)
    bench.add("after", prompts()[7], ref(adapter), 2)
    bench.run()
    assert bench.results["after"].cached > 0, "and others find it"


@pytest.mark.parametrize("way", ["plain", "torch"])
@pytest.mark.parametrize("rows", [2, 1 << 30])
def test_only_the_end_of_a_prompt_is_scored(base: Path, adapter: Path, oracle: Oracle, rows: int, way: str) -> None:
    """As choices behind a common question are: what is before them is found, their last token the only one allowed."""
    bench = bench_of(base, kv_memory_bytes=2 * kv_bytes(base), **WAYS[way])
    bench.core._scheduler._scored_rows = rows
    rng = random.Random(5)
    question = rng.choices(range(3, VOCABULARY), k=18)
    told: dict[str, list[TokenLogprobs]] = {}
    asked = {}
    for number in range(12):
        name, folder = f"choice-{number}", adapter if number % 2 else None
        choice = rng.choices(range(3, VOCABULARY), k=1 + number % 5)
        start = len(question) if number % 3 else len(question) - 7
        tokens = [*question, *choice]
        asked[name], told[name] = (tokens, start, folder), []
        fields: dict[str, Any] = {"prompt_logprobs": 0, "prompt_logprobs_start": start, "logprobs": 0}
        bench.add(name, tokens[:-1], ref(folder) if folder else None, 1, allowed_token_ids=(tokens[-1],), **fields)
    while bench.core.has_work:
        for delta in bench.step():
            told[delta.request_id] += [*delta.prompt_logprobs, *delta.logprobs]
        bench.core.check_invariants()
    for name, (tokens, start, folder) in asked.items():
        assert bench.results[name].tokens == [tokens[-1]]
        assert len(told[name]) == len(tokens) - start, name
        logits = oracle.logits(tokens, folder)
        for position, own in enumerate(told[name], start=start - 1):
            check_told(own, tokens[position + 1], logits[position], 0)
    cached = [bench.results[name].cached for name in asked]
    assert max(cached) == 16, "whole blocks of the question"
    assert sum(map(bool, cached)) >= 8, "by all but those that were read first"
    assert all(count < start for count, (_, start, _) in zip(cached, asked.values(), strict=True))


def test_a_request_that_is_not_a_number_fails_alone(base: Path, tmp_path: Path) -> None:
    poison = save_adapter(base, tmp_path / "poison", 1, LoraConfig(r=4, target_modules=LLAMA_LINEAR), std=1e15)
    bench = bench_of(base)
    fields: dict[str, Any] = {"prompt_logprobs": 1, "logprobs": 1, "repetition_penalty": 1.2}
    for name, chosen in (("poison", ref(poison)), ("good", None)):
        bench.add(name, list(range(5, 35)), chosen, 4, **fields)
    results = bench.run()
    assert results["poison"].error == NOT_FINITE
    assert (results["good"].error, len(results["good"].tokens)) == (None, 4)


def test_draws_of_a_seed_are_the_same_in_any_batch(base: Path, adapter: Path) -> None:
    fields: dict[str, Any] = {"temperature": 0.9, "seed": 7, "presence_penalty": 0.9, "repetition_penalty": 1.4}
    prompt = prompts()[5]
    tokens = []
    for company, config in ((0, {}), (6, {}), (6, {"speculate": 5}), (6, {"overlap": "on"})):
        bench = bench_of(base, **config)
        bench.add("one", prompt, ref(adapter), COUNT, **fields)
        for number in range(company):
            bench.add(str(number), prompts()[number], None, COUNT, **FIELDS[number])
        tokens.append(bench.run()["one"].tokens)
    assert tokens == [tokens[0]] * len(tokens)
