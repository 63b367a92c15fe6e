"""PEFT over transformers as the judge of what a server or an engine answers."""

from __future__ import annotations

from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

GAP = 1e-3  # tokens must agree where the two likeliest logits are further apart


class Judge:
    """A base in fp32 and adapters over it, each in a folder of its own below `adapters`."""

    def __init__(self, model: Path, adapters: Path) -> None:
        self._model, self._adapters = model, adapters
        self.model = cache(self._loaded)

    @cached_property
    def tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(self._model)

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text))

    def chat_ids(self, messages: list[dict[str, str]]) -> list[int]:
        """A conversation as the base's template puts it before its answer."""
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _loaded(self, name: str | None) -> Any:
        """The base, or the base under an adapter, as PEFT computes it."""
        model = AutoModelForCausalLM.from_pretrained(self._model, dtype=torch.float32).eval()
        return model if name is None else PeftModel.from_pretrained(model, self._adapters / name).eval()

    def logits(self, name: str | None, tokens: list[int]) -> Tensor:
        """[tokens, vocabulary] of the whole text."""
        with torch.inference_mode():
            found: Tensor = self.model(name)(torch.tensor([tokens])).logits[0].float()
        return found.clone()

    def check_greedy(self, name: str | None, prompt: list[int], answered: list[int]) -> None:
        """Every token is the likeliest after those before it, wherever that is clear. Raises AssertionError."""
        rows = self.logits(name, prompt + answered)[len(prompt) - 1 : -1]
        clear = 0
        for place, (row, token) in enumerate(zip(rows, answered, strict=True)):
            best = row.topk(2)
            if best.values[0] - best.values[1] > GAP:
                wanted = int(best.indices[0])
                assert token == wanted, f"token {place} of the answer is {token}, and PEFT's {wanted}"
                clear += 1
        assert clear > len(answered) / 2, "PEFT itself is undecided about most tokens"
