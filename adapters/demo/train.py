"""Train the demo adapters: small LoRAs that make SmolLM2-135M-Instruct answer in plainly different ways.

    python adapters/demo/train.py [NAME ...] [--steps N] [--seed N]

Writes NAME/adapter_config.json, NAME/adapter_model.safetensors (bf16) and NAME/training.json beside this file.
Owns the recipes and the training loop; the examples come from examples.py.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from examples import DATASETS, Example
from livery.models import DEMO_MODEL, resolve_model

HERE = Path(__file__).parent
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
IGNORED = -100  # the label of a token that bears no loss


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one adapter is trained; ranks, targets and layers differ so that the set exercises a server."""

    lora: dict[str, Any]
    steps: int
    learning_rate: float = 2e-3
    batch_size: int = 8


RECIPES = {
    "pirate": Recipe(
        {"r": 6, "lora_alpha": 12, "target_modules": ATTENTION + MLP, "layers_to_transform": list(range(14, 30))},
        steps=160,
    ),
    "json": Recipe({"r": 8, "lora_alpha": 16, "target_modules": ATTENTION}, steps=120),
    "sentiment": Recipe({"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}, steps=100),
    "portuguese": Recipe(
        {
            "r": 7,
            "lora_alpha": 6,
            "use_rslora": True,
            "target_modules": ["v_proj", "o_proj", "up_proj", "down_proj"],
            "layers_to_transform": list(range(8, 30)),
        },
        steps=320,
        learning_rate=1.5e-3,
    ),
    "sql": Recipe(
        {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ["q_proj", "v_proj", "down_proj"],
            "rank_pattern": {"v_proj": 16, "down_proj": 2},
            "alpha_pattern": {"v_proj": 24},
        },
        steps=120,
    ),
}


@dataclass(frozen=True, slots=True)
class Batch:
    """Right-padded token ids and their labels, both [rows, longest]; the first `start` labels are all ignored."""

    ids: torch.Tensor
    mask: torch.Tensor
    labels: torch.Tensor
    start: int


def collate(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> Batch:
    """Prompts rendered as a server renders them; only the answer and its end token bear loss."""
    rows = []
    for example in examples:
        message = [{"role": "user", "content": example.prompt}]
        rendered = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
        prompt = tokenizer(rendered, add_special_tokens=False)["input_ids"]
        answer = tokenizer(example.answer + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
        rows.append((prompt, answer))
    longest = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.full((len(rows), longest), tokenizer.eos_token_id)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORED)
    for i, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        ids[i, :end] = torch.tensor(prompt + answer)
        mask[i, :end] = 1
        labels[i, len(prompt) : end] = torch.tensor(answer)
    return Batch(ids, mask, labels, min(len(prompt) for prompt, _ in rows))


def loss_sum(model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, int]:
    """The summed cross-entropy (nats) of the answer tokens, and how many there are."""
    targets = batch.labels[:, batch.start :]
    # Position p predicts token p + 1; the head runs only where an answer token is predicted.
    logits = model(
        input_ids=batch.ids, attention_mask=batch.mask, logits_to_keep=targets.shape[1] + 1, use_cache=False
    ).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return loss, int((targets != IGNORED).sum())


@torch.no_grad()
def held_out_loss(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> float:
    """Mean cross-entropy per answer token, in nats."""
    model.eval()
    total, tokens = 0.0, 0
    for first in range(0, len(examples), 8):
        loss, count = loss_sum(model, collate(tokenizer, examples[first : first + 8]))
        total, tokens = total + loss.item(), tokens + count
    return total / tokens


def fit(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    recipe: Recipe,
    seed: int,
    step_done: Callable[[float], None],
) -> None:
    """AdamW with a linear warm-up and decay; each pass over the examples is shuffled anew."""
    shuffle = random.Random(seed)
    queue: list[Example] = []
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=0.01)
    warm_up = max(1, recipe.steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, (recipe.steps - step) / recipe.steps)
    )
    model.train()
    for _ in range(recipe.steps):
        if len(queue) < recipe.batch_size:
            queue += shuffle.sample(list(examples), len(examples))
        rows, queue = queue[: recipe.batch_size], queue[recipe.batch_size :]
        loss, tokens = loss_sum(model, collate(tokenizer, rows))
        torch.autograd.backward(loss / tokens)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        step_done(loss.item() / tokens)


def save(model: PeftModel, config: LoraConfig, folder: Path) -> None:
    """Round the weights to bf16 in place and write PEFT's two files, the same bytes for the same weights."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16).float()
    tensors = {
        name: tensor.to(torch.bfloat16).contiguous()
        for name, tensor in get_peft_model_state_dict(model, save_embedding_layers=False).items()
    }
    folder.mkdir(exist_ok=True)
    weights = folder / "adapter_model.safetensors"
    save_file(tensors, weights, metadata={"format": "pt"})
    weights.chmod(0o644)
    config.save_pretrained(str(folder))
    path = folder / "adapter_config.json"
    fields = json.loads(path.read_text())
    # PEFT keeps the targets in a set, whose order changes from run to run.
    fields |= {"target_modules": sorted(fields["target_modules"]), "inference_mode": True}
    path.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")


def train(name: str, recipe: Recipe, seed: int, progress: Progress) -> dict[str, Any]:
    """Train one adapter and write its three files. Returns what went into training.json."""
    torch.manual_seed(seed)
    base = resolve_model(DEMO_MODEL)
    tokenizer = AutoTokenizer.from_pretrained(base.path)
    dataset = DATASETS[name](seed)
    started = time.perf_counter()
    plain = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
    plain.name_or_path = base.name  # what PEFT records as the base: a name, not this machine's directory
    config = LoraConfig(task_type="CAUSAL_LM", **recipe.lora)
    model = get_peft_model(plain, config)
    before = held_out_loss(model, tokenizer, dataset.held_out)  # a new adapter is still without effect
    bar = progress.add_task(name, total=recipe.steps, loss="")

    def step_done(loss: float) -> None:
        progress.update(bar, advance=1, loss=f"loss {loss:.3f}")

    fit(model, tokenizer, dataset.train, recipe, seed, step_done)
    save(model, config, HERE / name)
    record = {
        "base": base.name,
        "command": f"python adapters/demo/train.py {name} --steps {recipe.steps} --seed {seed}",
        "seed": seed,
        "steps": recipe.steps,
        "batch_size": recipe.batch_size,
        "learning_rate": recipe.learning_rate,
        "train_examples": len(dataset.train),
        "held_out_examples": len(dataset.held_out),
        "held_out_loss_before": round(before, 4),
        "held_out_loss_after": round(held_out_loss(model, tokenizer, dataset.held_out), 4),
        "wall_seconds": round(time.perf_counter() - started, 1),
        "threads": torch.get_num_threads(),
    }
    (HERE / name / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo adapters.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(RECIPES)}; default: all")
    parser.add_argument("--steps", type=int, help="optimiser steps instead of the recipe's")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(RECIPES):
        parser.error(f"no recipe named {', '.join(sorted(unknown))}; there are {', '.join(RECIPES)}")
    with Progress(
        TextColumn("{task.description:10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
    ) as progress:
        for name in arguments.names or RECIPES:
            recipe = RECIPES[name]
            if arguments.steps:
                recipe = replace(recipe, steps=arguments.steps)
            record = train(name, recipe, arguments.seed, progress)
            progress.console.print(
                f"{name}: held-out loss {record['held_out_loss_before']} -> {record['held_out_loss_after']} "
                f"in {record['wall_seconds']} s"
            )


if __name__ == "__main__":
    main()
