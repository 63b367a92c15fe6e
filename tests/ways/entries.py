"""The ways, each a small entry: the commands that make it, the server that it runs on, and how it is asked.

Commands are those that a user types, `livery` first; {data} is the folder with the files of `company.make_data`, the
files named in `files` and what the way `follows`, {made} the one for what is made, {base} the base's name, {clone} this
project's folder.
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
FP32 = ("--weights", "fp32")
INT8, INT4 = ("--weights", "int8"), ("--weights", "int4")
QUANTISED = ("--quantization", "bnb-nf4")
PORT = 8000  # of the base's server; the others' follow
RAFT_PROMPT = "{documents}\n\nQuestion: {question}"


@dataclass(frozen=True, slots=True)
class Way:
    """One way of adapting a base.

    `files` go into the data folder by name; `commands` make what the server is given; `adapter` is the folder below
    {made} that `livery adapters add` takes in (None: nothing; that of another way: nothing is made), with `profile`
    where it has one; `serves` is the one that is a model and served itself, in the base's place. `flags` are the
    server's own.
    `asking`: with the system prompt that training saw ("plain"), the question alone where the profile
    has everything else ("bare"), with passages found for it ("retrieved", "raft" in the words that RAFT learnt).
    `before` is the way that it is compared with. `rewards`: its commands ask a server, {url}, and what they reached
    stands in this file of {made}; its reward isn't the questions'. `follows` is the way whose folder it goes on
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
    follows: str | None = None
    serves: str | None = None

    @property
    def recipe(self) -> str:
        """A digest of what makes it: what was made by another one is made anew."""
        return hashlib.sha256(json.dumps([self.commands, sorted(self.files.items())]).encode()).hexdigest()[:16]

    @property
    def model(self) -> str:
        """What requests name."""
        return self.key if self.adapter or self.profile else self.serves or BASE

    @property
    def server(self) -> tuple[str, ...]:
        """The model that its server has, and the flags: ways with the same ones share a server."""
        return (self.serves or BASE, *self.flags)

    def add_command(self) -> str | None:
        """How a server gets it."""
        if not self.adapter and not self.profile:
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
        "qlora",
        "QLoRA, trained over nf4 and served on the base as it is",
        ("trl", "bitsandbytes"),
        quantization="bnb-nf4",
    ),
    Way("base-fp32", "the base alone, served in fp32", flags=FP32),
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
        _run("dpo", "preferences.jsonl", start_from="lora", epochs=1, learning_rate=2e-4, max_length=64),
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
        asking="raft",
        before="raft-base",
    ),
    Way(
        "full-model",
        "full fine-tune, served in the base's place",
        ("python {clone}/tests/ways/full.py {data}/chats.jsonl --out {made}/full-model",),
        serves="full-model",
    ),
    Way(
        "full-int8",
        "the same full fine-tune, served in int8",
        serves="full-model",
        flags=INT8,
        before="full-model",
    ),
    Way(
        "full-int4",
        "the same full fine-tune, served in int4",
        serves="full-model",
        flags=INT4,
        before="full-model",
    ),
    Way(
        "full",
        "the same full fine-tune, extracted as an adapter",
        ("livery adapters extract --base {base} --tuned {data}/full-model --out {made}/full --text {data}/lines.txt",),
        adapter="full",
        before="full-model",
        follows="full-model",
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
    """Its commands as a user types them in the data folder, $CLONE being the project's; `livery serve` ends none."""
    servers = list(dict.fromkeys(one.server for one in WAYS))
    port = PORT + servers.index(way.server)
    every = list(way.commands)
    if add := way.add_command():
        every.append(add + (f" --url http://127.0.0.1:{port}" if port != PORT else ""))
    if way.asking == "retrieved":
        every.append(f"python {{clone}}/server/examples/rag/ask.py QUESTION --model {way.model}")
    if not way.adapter and not way.profile and not way.rewards and way.asking != "retrieved":
        every.append(f"livery serve --model {' '.join(way.server)}" + (f" --port {port}" if port != PORT else ""))
    here = {"{data}/": "", "{made}/": "", "{base}": BASE, "{clone}": "$CLONE"}
    here["{url}"] = f"http://127.0.0.1:{PORT}"
    typed = "; ".join(every)
    for place, word in here.items():
        typed = typed.replace(place, word)
    return typed
