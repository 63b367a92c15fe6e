"""PEFT in a plain loop, one sequence at a time: the judge of every number of an evaluation."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.oracle import load_base

LONGEST = 256
_HIDDEN = "\ue000"


class PlainLoop:
    """One base or adapter."""

    def __init__(self, base: Path, adapter: Path | None = None) -> None:
        model: Any = load_base(base, LONGEST)
        self.model = PeftModel.from_pretrained(model, adapter).eval() if adapter else model
        self.tokenizer: Any = AutoTokenizer.from_pretrained(base)

    def logprobs(self, tokens: Sequence[int], start: int) -> list[float]:
        """Of tokens[start:]."""
        ids = torch.tensor([list(tokens)])
        with torch.no_grad():
            rows = self.model(ids, use_cache=False).logits[0].double().log_softmax(-1)
        return rows[start - 1 : -1].gather(1, ids[0, start:, None])[:, 0].tolist()

    def losses(self, text: str, window: int) -> list[float]:
        """-ln p of each window of the text."""
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        parts = [ids[at : at + window] for at in range(0, len(ids), window)]
        return [-math.fsum(self.logprobs(part, 1)) for part in parts if len(part) > 1]

    def likeliest(self, prompt: Sequence[int], choices: Sequence[Sequence[int]]) -> list[float]:
        """The log-likelihood of each choice."""
        return [math.fsum(self.logprobs([*prompt, *choice], len(prompt))) for choice in choices]

    def chat(self, messages: Sequence[Any]) -> list[int]:
        """Special tokens are the template's alone: what users write of them is text."""
        hidden = [{**one, "content": one["content"].replace("<|", _HIDDEN)} for one in messages]
        text = self.tokenizer.apply_chat_template(hidden, add_generation_prompt=True, tokenize=False)
        found: list[int] = []
        for part in re.split(f"({'|'.join(map(re.escape, self.tokenizer.all_special_tokens))})", text):
            if part in self.tokenizer.all_special_tokens:
                found.append(self.tokenizer.convert_tokens_to_ids(part))
            elif part:
                found += self.tokenizer(
                    part.replace(_HIDDEN, "<|"), add_special_tokens=False, split_special_tokens=True
                ).input_ids
        return found

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def answer(self, prompt: Sequence[int], most: int) -> str:
        ids = torch.tensor([list(prompt)])
        with torch.no_grad():
            found = self.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, do_sample=False, pad_token_id=2
            )
        return str(self.tokenizer.decode(found[0, len(prompt) :], skip_special_tokens=True))


def bare_base(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
