"""The ways, each a small entry: the commands that make it, the server that it runs on, and how it is asked.

Commands are those that a user types, `livery` first; {data} is the folder with the files of `company.make_data` and the
files named in `files`, {made} the one for what is made, {base} the base's name, {clone} this project's folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

from ways.company import SYSTEM, shots

Asking = Literal["plain", "bare", "retrieved", "raft"]
BASE = "smollm2-135m-instruct"
QUANTISED = ("--quantization", "bnb-nf4")
RAFT_PROMPT = "{documents}\n\nQuestion: {question}"


@dataclass(frozen=True, slots=True)
class Way:
    """One way of adapting a base.

    `files` go into the data folder by name; `commands` make what the server is given, by way of `between`, files of the
    data folder that they write; `adapter` is the folder below {made} that `livery adapters add` takes in (None:
    nothing; that of another way: nothing is made), with `profile` where it has one. `flags` are the server's own.
    `asking`: with the system prompt that training saw ("plain"), the question alone where the profile
    has everything else ("bare"), with passages found for it ("retrieved", "raft" in the words that RAFT learnt).
    `before` is the way that it is compared with. `rewards`: its commands ask a server, {url}, and what they reached
    stands in this file of {made}; its reward isn't the questions'. `follows` is the way whose adapter it goes on
    with: made anew, this one is as well.
    """

    key: str
    title: str
    commands: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    adapter: str | None = None
    profile: str | None = None
    flags: tuple[str, ...] = ()
    asking: Asking = "plain"
    before: str = "base"
    needs: tuple[str, ...] = ()
    rewards: str | None = None
    between: tuple[str, ...] = ()
    follows: str | None = None

    @property
    def recipe(self) -> str:
        """A digest of what makes it: what was made by another one is made anew."""
        return hashlib.sha256(json.dumps([self.commands, sorted(self.files.items())]).encode()).hexdigest()[:16]

    @property
    def model(self) -> str:
        """What requests name."""
        return self.key if self.adapter or self.profile else BASE

    def add_command(self) -> str | None:
        """How a server gets it."""
        if self.model == BASE:
            return None
        source = f"{{made}}/{self.adapter}" if self.adapter else "base"
        return f"livery adapters add {self.key} {source}" + (
            f" --profile {{data}}/{self.profile}" if self.profile else ""
        )


def _run(kind: str, data: str, **fields: Any) -> str:
    """A run file for `livery adapters train`."""
    if "start_from" not in fields:
        fields["adapter"] = {"r": 16, "lora_alpha": 32} | fields.get("adapter", {})
    common = {"kind": kind, "base": BASE, "data": data, "held_out": 0.05, "batch_size": 8, "checkpoint_every": 25}
    text: str = yaml.safe_dump(common | fields, sort_keys=False)
    return text


def _trained(key: str, title: str, run: str, *before: str, **fields: Any) -> Way:
    train = f"livery adapters train {{data}}/{key}.yaml --out {{made}}/{key}"
    fields = {"needs": ("trl",), **fields}
    return Way(key, title, (*before, train), {f"{key}.yaml": run}, key, **fields)


def _sft(key: str, title: str, needs: tuple[str, ...] = ("trl",), **fields: Any) -> Way:
    asked = {"epochs": 3, "learning_rate": 1.5e-3, "max_length": 64} | fields
    return _trained(key, title, _run("sft", "chats.jsonl", **asked), needs=needs)


_FEW_SHOT = yaml.safe_dump({"system_prompt": SYSTEM, "examples": shots()}, sort_keys=False)

WAYS: tuple[Way, ...] = (
    Way("base", "the base alone"),
    Way(
        "few-shot",
        "six examples in a profile",
        files={"few-shot.yaml": _FEW_SHOT},
        profile="few-shot.yaml",
        asking="bare",
    ),
    Way("rag", "passages found for each question (RAG)", asking="retrieved"),
    Way("rag-few-shot", "RAG and the six examples", profile="few-shot.yaml", asking="retrieved"),
    _sft("lora", "LoRA, instruction tuning"),
    _sft("rslora", "rsLoRA", learning_rate=1e-3, adapter={"use_rslora": True, "lora_alpha": 16}),
    _sft("dora", "DoRA", adapter={"use_dora": True}),
    _sft(
        "qlora", "QLoRA, trained over nf4 and served in full precision", ("trl", "bitsandbytes"), quantization="bnb-nf4"
    ),
    Way("base-nf4", "the base alone, served in nf4", flags=QUANTISED, needs=("bitsandbytes",)),
    Way(
        "quantised",
        "QLoRA's adapter on the base served in nf4",
        adapter="qlora",
        flags=QUANTISED,
        before="base-nf4",
        needs=("bitsandbytes",),
    ),
    _trained(
        "dpo",
        "DPO after the LoRA, right answer over a wrong one",
        _run("dpo", "preferences.jsonl", start_from="../made/lora", epochs=1, learning_rate=2e-4, max_length=64),
        before="lora",
        follows="lora",
    ),
    _trained(
        "pretrained",
        "continued pre-training on the papers",
        _run("cpt", "papers.txt", epochs=12, learning_rate=1e-3, max_length=128, batch_size=4, held_out=0),
    ),
    Way("raft-base", "the base in RAFT's prompt", asking="raft"),
    _trained(
        "raft",
        "RAFT, passages at hand",
        _run("raft", "raft.jsonl", steps=30, learning_rate=1e-3, max_length=256, batch_size=4, prompt=RAFT_PROMPT),
        "livery adapters train-data raft {data}/questions.jsonl --documents {data}/documents.jsonl"
        " --out {data}/raft.jsonl --distractors 2",
        between=("raft.jsonl",),
        asking="raft",
        before="raft-base",
    ),
    Way(
        "full",
        "full fine-tune, extracted",
        (
            "python {clone}/tests/ways/full.py {data}/chats.jsonl --out {made}/full-model",
            "livery adapters extract --base {base} --tuned {made}/full-model --out {made}/full",
        ),
        adapter="full",
    ),
    Way(
        "rl",
        "reinforcement learning, a toy reward",
        ("python {clone}/adapters/examples/reinforce.py --url {url} --name rl --iterations 10 --out {made}/rl",),
        rewards="rl.json",
    ),
)


def raft_messages(question: str, documents: list[str]) -> list[dict[str, str]]:
    """As `kind: raft` words what it learns."""
    from livery.training.raft import raft_messages as worded

    return [dict(message) for message in worded(question, documents, RAFT_PROMPT)]


def by_key() -> dict[str, Way]:
    return {way.key: way for way in WAYS}


def shown(way: Way) -> str:
    """Its commands as a user types them in the data folder, $CLONE being the project's."""
    every = [*way.commands, *filter(None, [way.add_command()])]
    if way.flags:
        every.insert(0, f"livery serve --model {BASE} {' '.join(way.flags)}")
    if way.asking == "retrieved":
        every.append(f"python {{clone}}/server/examples/rag/ask.py QUESTION --model {way.model}")
    here = {"{data}/": "", "{made}/": "", "{base}": BASE, "{clone}": "$CLONE"}
    here["{url}"] = "http://127.0.0.1:8000"
    typed = "; ".join(every) or f"livery serve --model {BASE}"
    for place, word in here.items():
        typed = typed.replace(place, word)
    return typed
