"""A full fine-tune of the demo base: every parameter trained for some dozen steps on a small world's logbook.

Made once and kept in the cache (0.5 GB, some minutes on two cores). The text is drawn from sentences of its own, so
that a piece drawn with another seed is new text of the same world: what a fine-tune should be good at.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

from livery.models import DEMO_MODEL, cache_dir, made_once, resolve_model

STEPS = 60
BATCH = 4
LENGTH = 128
RATE = 2e-5
_VERSION = 1

_WHO = ["Keeper Ondra", "the night watch", "Mira of the ferry", "the harbour clerk", "old Tavish", "the lamp boy"]
_PLACE = ["Harrow Light", "the salt stairs", "Gull Quay", "the drowned chapel", "Ninefold Rock", "the tar sheds"]
_SEEN = [
    "a brig without colours",
    "three seals",
    "green fire on the swell",
    "a bell that no hand rang",
    "driftwood oak",
]
_DID = ["wrote it in the blue ledger", "rang the low bell twice", "lit the second lamp", "said nothing until dawn"]
_SKY = ["fog from the west", "a hard clear frost", "rain in thin ropes", "no wind at all", "a red and early moon"]


def logbook(seed: int, entries: int) -> str:
    """So many entries of the log, about 45 tokens each."""
    draw = random.Random(seed)
    lines = []
    for _ in range(entries):
        day, hour, fathoms = draw.randint(1, 365), draw.randint(0, 23), draw.randint(2, 40)
        lines.append(
            f"Log of the {_ordinal(day)} day, bell {hour}. Sky: {draw.choice(_SKY)}. At {draw.choice(_PLACE)} "
            f"{draw.choice(_WHO)} saw {draw.choice(_SEEN)} in {fathoms} fathoms and {draw.choice(_DID)}. So it stands."
        )
    return "\n".join(lines)


def _ordinal(day: int) -> str:
    if 10 < day % 100 < 14:
        return f"{day}th"
    return f"{day}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(day % 10, 'th') }"


def tuned_demo() -> Path:
    """The fine-tuned model's directory; trains it first where it isn't there."""
    return made_once(cache_dir() / "tuned" / f"{DEMO_MODEL}-logbook-{_VERSION}", "config.json", _train)


def _train(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    base = resolve_model(DEMO_MODEL).path
    tokenizer = AutoTokenizer.from_pretrained(base)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    ids = torch.tensor(tokenizer(logbook(1, 900))["input_ids"])
    draw = torch.Generator().manual_seed(0)
    steps = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    model.train()
    for step in range(STEPS):
        starts = torch.randint(0, len(ids) - LENGTH, (BATCH,), generator=draw).tolist()
        batch = torch.stack([ids[start : start + LENGTH] for start in starts])
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        steps.step()
        steps.zero_grad()
        print(f"step {step + 1} of {STEPS}: loss {float(loss):.3f}", flush=True)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(tuned_demo())
