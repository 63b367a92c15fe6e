"""A run's data from files to what is trained on and what is kept back. Needs no torch."""

from __future__ import annotations

import hashlib
import random
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from livery.text import Tokenizer
from livery.training.examples import (
    Broken,
    Chat,
    DataInvalid,
    Found,
    Passage,
    Place,
    Preference,
    Unusable,
    read_examples,
)
from livery.training.run_file import AnyRun, Cpt, Dpo, Sft
from livery.training.tokens import IGNORED, Encoder, Learnt, Pair

Item = TypeVar("Item")
Progress = Callable[[int, int], None]  # examples done, examples in all
SHOWN = 5  # broken lines that are named


@dataclass(frozen=True, slots=True)
class Data:
    """Examples as token ids: all of them Learnt, or all of them Pair.

    `warnings` are what the user should know of them; `sha256` is of the files, in their order, and `encoded` of what
    tokenizer and chat template made of them.
    """

    train: Sequence[Learnt | Pair]
    held_out: Sequence[Learnt | Pair]
    broken: Sequence[Broken]
    warnings: Sequence[str] = ()
    sha256: Sequence[str] = field(default_factory=list)

    @property
    def encoded(self) -> str:
        """SHA-256 hex of all examples as token ids, and of what is learnt of them."""
        parts = (b"".join(_digest(one) for one in items) for items in (self.train, self.held_out))
        return hashlib.sha256(b"\n".join(parts)).hexdigest()

    def told(self) -> dict[str, Any]:
        """Counts, for records and people."""
        return {
            "examples": len(self.train),
            "held_out": len(self.held_out),
            "tokens": sum(_tokens(one) for one in self.train),
            "learnt_tokens": sum(_learnt(one) for one in self.train),
            "broken": [{"file": one.place.file, "line": one.place.line, "reason": one.reason} for one in self.broken],
            "warnings": list(self.warnings),
        }


def prepare(run: AnyRun, folder: Path, tokenizer: Tokenizer, progress: Progress = lambda done, total: None) -> Data:
    """Read, check, encode and part the data of a run whose file lies in `folder`. Raises DataInvalid."""
    encoder = Encoder(tokenizer, run.max_length)
    if isinstance(run, Sft) or not isinstance(run, Dpo | Cpt):
        _needs_template(run, encoder)
    found = read_examples([folder / name for name in run.data], run)
    apart = read_examples([folder / name for name in run.held_out_data], run)
    train = _encoded(run, encoder, found, progress)
    held_out = _encoded(run, encoder, apart, progress)
    broken = [*found.broken, *apart.broken]
    if broken and run.broken_lines == "stop":
        raise DataInvalid(_stopped(broken))
    if not run.held_out_data:
        train, held_out = _parted(train, run.held_out, run.seed)
    if not train:
        raise DataInvalid(
            f"{', '.join(run.data)}: {len(held_out)} examples can be used, and none is left to train on; "
            "give more data" + (f" ({len(broken)} lines are broken, as {broken[0]})" if broken else "")
        )
    warnings = _warnings(run, encoder, found, train, held_out)
    return Data(train, held_out, broken, warnings, [*found.sha256, *apart.sha256])


def _needs_template(run: AnyRun, encoder: Encoder) -> None:
    if not encoder.has_template:
        raise DataInvalid(
            f"base {run.base} has no chat template, which kind: {run.kind} needs; name a base that has one, or train "
            "on plain text with kind: cpt"
        )


def _encoded(run: AnyRun, encoder: Encoder, found: Found, progress: Progress) -> list[Learnt | Pair]:
    """What can be used; lines that can't are added to those that are broken."""
    if isinstance(run, Cpt):
        return list(encoder.passages([one for _, one in found.examples if isinstance(one, Passage)]))
    items: list[Learnt | Pair] = []
    whole = isinstance(run, Sft) and run.loss_on == "all"
    for done, (place, example) in enumerate(found.examples, 1):
        try:
            items.append(_item(encoder, example, whole))
        except Unusable as unusable:
            found.broken.append(Broken(place, str(unusable)))
        progress(done, len(found.examples))
    found.broken.sort(key=lambda broken: _order(broken.place))
    return items


def _item(encoder: Encoder, example: Chat | Preference | Passage, whole: bool) -> Learnt | Pair:
    if isinstance(example, Preference):
        return encoder.pair(example)
    assert isinstance(example, Chat)
    return encoder.chat(example, all_of_it=whole)


def _order(place: Place) -> tuple[str, int]:
    return place.file, place.line


def _parted(items: list[Item], share: float, seed: int) -> tuple[list[Item], list[Item]]:
    """What is trained on and what is kept back: at least one, where any is to be."""
    if not share:
        return items, []
    count = max(1, round(share * len(items)))
    kept = set(random.Random(seed).sample(range(len(items)), count)) if items else set()
    return [one for at, one in enumerate(items) if at not in kept], [items[at] for at in sorted(kept)]


def _stopped(broken: Sequence[Broken]) -> str:
    shown = "".join(f"\n  {one}" for one in broken[:SHOWN])
    more = f"\n  and {len(broken) - SHOWN} more" if len(broken) > SHOWN else ""
    return (
        f"{len(broken)} lines of the data can't be used:{shown}{more}\n"
        "Correct them, or go on without them with broken_lines: skip in the YAML file"
    )


def _warnings(
    run: AnyRun, encoder: Encoder, found: Found, train: Sequence[Learnt | Pair], held_out: Sequence[Learnt | Pair]
) -> list[str]:
    items, warnings = [*train, *held_out], []
    if encoder.whole and not isinstance(run, Dpo | Cpt) and not (isinstance(run, Sft) and run.loss_on == "all"):
        warnings.append(encoder.whole)
    if left_out := [one.left_out for one in items if isinstance(one, Learnt) and one.left_out]:
        warnings.append(
            f"{sum(left_out)} earlier answers, in {len(left_out)} of {len(items)} chats, are read and not learnt: the "
            "base's chat template writes them otherwise once others follow, or can't begin with them; loss_on: all "
            "learns them with all the rest"
        )
    if cut := sum(one.cut for one in items):
        warnings.append(
            f"{cut} of {len(items)} examples are longer than max_length {run.max_length}: their ends are cut"
        )
    if found.unread - {"golden"}:
        warnings.append(f"fields that are not read: {', '.join(sorted(found.unread - {'golden'}))}")
    learnt = {_digest(one) for one in train} if held_out else set()
    if both := sum(_digest(one) in learnt for one in held_out):
        warnings.append(
            f"{both} of {len(held_out)} examples that are held out are trained on as well, so that the loss on them "
            "says less of others; remove repeated lines, and give no file as both data and held_out_data"
        )
    if not run.held_out and not run.held_out_data:
        warnings.append("nothing is held out, so nothing says what the training is worth; give held_out a share")
    return warnings


def _digest(one: Learnt | Pair) -> bytes:
    found = hashlib.sha256()
    for ids in (one.ids, one.labels) if isinstance(one, Learnt) else (one.prompt, one.chosen, one.rejected):
        found.update(array("q", [len(ids), *ids]).tobytes())
    return found.digest()


def _tokens(one: Learnt | Pair) -> int:
    return len(one.ids) if isinstance(one, Learnt) else 2 * len(one.prompt) + len(one.chosen) + len(one.rejected)


def _learnt(one: Learnt | Pair) -> int:
    if isinstance(one, Pair):
        return len(one.chosen) + len(one.rejected)
    return sum(label != IGNORED for label in one.labels[1:])
