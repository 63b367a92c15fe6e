"""--deterministic: a request's logits and tokens are the same bits alone, in any company and in any chunks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen3Config

from engine.families import SMALL, VOCABULARY, save
from engine.kernels_under_test import only_native
from engine.oracle import Bench, ref, save_adapter
from engine.test_parity_parts import parts_mix
from livery.engine.base import AdapterRef, EngineConfig, ModelRefused
from livery.engine.model import base_shapes
from livery.engine.runner import ModelRunner

# Widths that no tile divides, so that a row's place in a tile would show.
ODD = SMALL | {"hidden_size": 72, "intermediate_size": 104, "head_dim": 40, "vocab_size": VOCABULARY}
COUNT = 4
PROMPT = [(7 * index) % 90 + 3 for index in range(23)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "odd"
    config = Qwen3Config(
        **ODD,
        use_sliding_window=True,
        sliding_window=9,
        layer_types=["full_attention", "sliding_attention", "full_attention"],
    )
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, mean=float(weight.dim() == 1), std=0.15)
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def choices(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[AdapterRef | None]:
    """The base, low ranks from a file, and every part of the canonical form written by hand."""
    targets = ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"]
    lora = save_adapter(base, tmp_path_factory.mktemp("adapters") / "lora", 5, LoraConfig(r=5, target_modules=targets))
    parts = ("transform", "deltas", "shared", "rows", "replaced", "gain", "plain", "everything")
    return [None, ref(lora), *(AdapterRef.of(name, "") for name in parts)]


class Company:
    """Runs a request under each way of serving it; models are loaded once per way."""

    def __init__(self, base: Path, choices: list[AdapterRef | None]) -> None:
        self._choices = choices
        self._benches = {}
        for budget, threads in ((64, 1), (5, 1), (16, 2)):
            config = EngineConfig(
                str(base),
                deterministic=True,
                block_size=4,
                max_model_len=64,
                max_batch_tokens=budget,
                max_running=5,
                kv_memory_bytes=1 << 20,
                adapter_memory_bytes=64 << 20,
                threads=threads,
            )
            bench = Bench(config)
            bench.runner.by_hand |= parts_mix(base_shapes(str(base)))
            self._benches[budget] = bench
        self._alone: dict[tuple[int, int], tuple[list[int], list[Tensor]]] = {}
        self._runs = 0

    def run(
        self, budget: int, asked: int, length: int, company: list[tuple[int, int]]
    ) -> tuple[list[int], list[Tensor]]:
        """Tokens and logits of PROMPT[:length] under choice `asked`, beside prompts of `company`: (choice, length)."""
        bench = self._benches[budget]
        bench.results.clear()
        bench.runner.seen.clear()
        self._runs += 1
        for index, (choice, other) in enumerate([(asked, length), *company]):
            prompt = PROMPT[:length] if index == 0 else [5 + index, *PROMPT[-other:]]
            sampling = {"temperature": 1.5, "seed": 4} if index == 0 else {}
            bench.add(f"{self._runs}-{index}", prompt, self._choices[choice], max_tokens=COUNT, **sampling)
        result = bench.run()[f"{self._runs}-0"]
        assert result.error is None, result.error
        return result.tokens, [result.logits[length - 1 + index] for index in range(COUNT)]

    def alone(self, asked: int, length: int) -> tuple[list[int], list[Tensor]]:
        if (asked, length) not in self._alone:
            self._alone[asked, length] = self.run(64, asked, length, [])
        return self._alone[asked, length]


@pytest.fixture(scope="module")
def company(base: Path, choices: list[AdapterRef | None]) -> Company:
    return Company(base, choices)


@only_native
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    asked=st.integers(0, 9),
    length=st.sampled_from([1, 12, 23]),
    budget=st.sampled_from([64, 5]),
    others=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 20)), min_size=1, max_size=6),
)
def test_company_and_chunks_do_not_show(
    company: Company, asked: int, length: int, budget: int, others: list[tuple[int, int]]
) -> None:
    tokens, logits = company.run(budget, asked, length, others)
    expected_tokens, expected = company.alone(asked, length)
    assert tokens == expected_tokens
    for found, same in zip(logits, expected, strict=True):
        assert torch.equal(found, same), f"logits differ by {float((found - same).abs().max()):.1e}"


@only_native
def test_threads_do_not_show_where_native_kernels_compute(company: Company) -> None:
    for asked in (0, 1):
        for found, same in zip(
            company.run(16, asked, 23, [(1, 9), (0, 3)])[1], company.alone(asked, 23)[1], strict=True
        ):
            assert torch.equal(found, same)


@pytest.mark.parametrize(
    ("family", "options", "reason"),
    [
        ("llama", {"kernels": "torch"}, "the native kernels: leave --kernels torch out"),
        ("llama", {"dtype": "bfloat16"}, "float32: leave --dtype bfloat16 out"),
        ("llama", {"decoder": "transformers"}, "the fused decoder: leave --decoder transformers out"),
        (None, {"decoder": "transformers"}, "the fused decoder: leave"),  # found before the model is looked for
        (None, {"dtype": "bfloat16"}, "float32: leave"),
        ("gemma2", {}, "the fused decoder.*Gemma2ForCausalLM"),
        ("qwen3-moe", {}, "the fused decoder.*Qwen3MoeForCausalLM"),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(
    family: str | None, options: dict[str, str], reason: str, tmp_path: Path
) -> None:
    config = EngineConfig(
        str(save(family, tmp_path) if family else tmp_path),
        deterministic=True,
        kv_memory_bytes=1 << 20,
        max_model_len=64,
        **options,
    )
    with pytest.raises(ModelRefused, match=f"--deterministic needs {reason}"):
        ModelRunner(config, lambda _: None)
