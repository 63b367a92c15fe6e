"""A full fine-tune, for `livery adapters extract`: every parameter of the base trained on chats by plain torch.

python tests/ways/full.py chats.jsonl --out full-model
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from livery.models import DEMO_MODEL, resolve_model

EPOCHS, BATCH, RATE = 2, 8, 1.5e-4
IGNORED = -100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chats", type=Path, help="JSON lines with messages")
    parser.add_argument("--out", type=Path, required=True, help="the tuned model's directory")
    given = parser.parse_args()
    train(given.chats, given.out)


def train(chats: Path, out: Path) -> None:
    torch.manual_seed(0)
    base = resolve_model(DEMO_MODEL).path
    tokenizer = AutoTokenizer.from_pretrained(base)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).train()
    examples = [_encoded(tokenizer, json.loads(line)["messages"]) for line in chats.read_text().splitlines()]
    total = EPOCHS * -(-len(examples) // BATCH)
    steps = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    rate = torch.optim.lr_scheduler.LambdaLR(steps, lambda step: min((step + 1) / 8, (total - step) / total))
    draw, done = random.Random(0), 0
    for _ in range(EPOCHS):
        draw.shuffle(examples)
        for start in range(0, len(examples), BATCH):
            loss = _loss(model, examples[start : start + BATCH])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            steps.step()
            rate.step()
            steps.zero_grad()
            done += 1
            print(f"step {done} of {total}: loss {float(loss.detach()):.3f}", flush=True)
    model.eval().save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "training.json").write_text(json.dumps({"steps": done, "passes": EPOCHS}) + "\n")


def _encoded(tokenizer: Any, messages: list[dict[str, str]]) -> tuple[list[int], int]:
    """Token ids of a chat, and where the assistant's answer begins."""
    asked: str = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    whole: str = tokenizer.apply_chat_template(messages, tokenize=False)
    count = len(tokenizer(asked, add_special_tokens=False)["input_ids"])
    return tokenizer(whole, add_special_tokens=False)["input_ids"], count


def _loss(model: Any, examples: list[tuple[list[int], int]]) -> torch.Tensor:
    """Cross-entropy of the answers' tokens."""
    longest = max(len(ids) for ids, _ in examples)
    ids = torch.tensor([row + [0] * (longest - len(row)) for row, _ in examples])
    learnt = [[IGNORED] * start + row[start:] + [IGNORED] * (longest - len(row)) for row, start in examples]
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row, _ in examples])
    loss: torch.Tensor = model(input_ids=ids, attention_mask=mask, labels=torch.tensor(learnt)).loss
    return loss


if __name__ == "__main__":
    main()
