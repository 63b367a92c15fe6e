"""A training run as people write it: one YAML file, every field checked before a model is loaded.

Facts only. The docstrings are what server/examples/train/README.md says of each field.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta, inspect

from livery.foreign_json import NotPlain, check_plain
from livery_loadtest.checked import SpecInvalid, load_yaml
from livery_loadtest.checked import convert as converted
from livery_loadtest.kinds import Part, Positive, Share, Text

__all__ = ["Adapter", "Cpt", "Dpo", "Raft", "Run", "Sft", "SpecInvalid", "parse_run", "read_run"]

DOCUMENTS, QUESTION = "{documents}", "{question}"
RAFT_PROMPT = f"{DOCUMENTS}\n\nQuestion: {QUESTION}"

_EXPONENT = re.compile(r"[0-9]+(\.[0-9]*)?e[+-]?[0-9]+", re.IGNORECASE)
Whole = Annotated[int, Meta(ge=1, le=1_000_000)]
PartOfAll = Annotated[float, Meta(ge=0, lt=1)]
# As livery.engine.quantization.SCHEMES has them, which a test compares.
Quantization = Literal["auto", "bnb-nf4", "bnb-nf4-double", "bnb-int8", "torchao-int8", "torchao-int4", "torchao-fp8"]


class Adapter(Part, frozen=True):
    """What is trained, in PEFT's own words: LoRA of rank `r`, scaled by `lora_alpha` / `r`, or / √r with `use_rslora`.

    `target_modules` are the last parts of linear modules' names, or `all-linear`: all but the head. `layers` are the
    numbers of those layers that get it (none named: all). `lora_dropout` of its inputs are dropped while it is trained.
    `use_dora` trains a magnitude for each output as well (DoRA). `modules_to_save` are trained whole and kept beside
    it, as `lm_head`.
    """

    r: Annotated[int, Meta(ge=1, le=1024)] = 8
    lora_alpha: Positive = 16.0
    lora_dropout: PartOfAll = 0.0
    target_modules: Annotated[tuple[Text, ...], Meta(min_length=1)] = ("all-linear",)
    layers: tuple[Annotated[int, Meta(ge=0)], ...] = ()
    use_rslora: bool = False
    use_dora: bool = False
    modules_to_save: tuple[Text, ...] = ()


class Run(Part, frozen=True, tag_field="kind", tag=str.lower):
    """What runs of every kind have.

    `base` is named as for `livery serve --model`; `quantization` holds it as the server's flag of that name does
    (QLoRA), on a `device` that is a GPU where there is one. Its `dtype` is bfloat16 on a GPU and float32 elsewhere
    unless given; the adapter is trained and written in float32.
    `start_from` is the directory of a LoRA adapter of this base, as PEFT writes it, which the run goes on training with
    its own rank and modules, so that `adapter` is left out.
    `data` are files; paths are counted from this file's folder. `held_out` of the examples, drawn by `seed`, are
    kept for measuring before and after, or all of `held_out_data` instead. At a line that can't be used,
    `broken_lines: stop` ends before anything is trained, and `skip` goes on without it. Examples are cut at
    `max_length` tokens.
    A step reads `batch_size` times `accumulate` examples. The run ends after `steps`, or `epochs` over all examples
    where that is 0. `learning_rate` rises over the first `warmup` of the steps and then follows `schedule`; AdamW
    shrinks weights by `weight_decay`. Gradients longer than `max_grad_norm` are shortened. `gradient_checkpointing`
    computes more and remembers less.
    Every `checkpoint_every` steps all that going on needs is written beside the output.
    """

    base: Text
    data: Annotated[tuple[Text, ...], Meta(min_length=1)]
    held_out: PartOfAll = 0.1
    held_out_data: tuple[Text, ...] = ()
    broken_lines: Literal["stop", "skip"] = "stop"
    max_length: Annotated[int, Meta(ge=8, le=1_000_000)] = 512
    quantization: Quantization = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    start_from: str = ""
    adapter: Adapter = msgspec.field(default_factory=Adapter)
    epochs: Positive = 3.0
    steps: Annotated[int, Meta(ge=0, le=10_000_000)] = 0
    batch_size: Whole = 8
    accumulate: Whole = 1
    learning_rate: Positive = 1e-3
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: Share = 0.1
    weight_decay: Annotated[float, Meta(ge=0, le=1)] = 0.0
    max_grad_norm: Positive = 1.0
    gradient_checkpointing: bool = False
    checkpoint_every: Whole = 50
    seed: Annotated[int, Meta(ge=0, le=2**32 - 1)] = 0

    @property
    def kind(self) -> str:
        """As the file says it."""
        return str(self.__struct_config__.tag)

    def __post_init__(self) -> None:
        """What one field alone can't say. Raises ValueError."""
        if self.held_out_data and self.held_out not in (0, 0.1):
            raise ValueError(
                f"`held_out` is {self.held_out:g} beside `held_out_data`: give the share to keep back, or the files"
            )
        if self.adapter.target_modules != ("all-linear",) and "all-linear" in self.adapter.target_modules:
            raise ValueError("`adapter.target_modules` has all-linear among others: name it alone, or the others")
        if self.start_from and self.adapter != Adapter():
            raise ValueError(
                f"`adapter` is beside `start_from`, {self.start_from}, whose rank and modules hold: leave one out"
            )

    def to_json(self) -> dict[str, Any]:
        """Every field, as it goes into records."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found


class Sft(Run, frozen=True):
    """Supervised, or instruction, tuning on chats: JSON lines with `messages`, and `tools` if wanted.

    `loss_on: assistant` learns what the assistant says and nothing else, where the base's chat template shows where
    that begins and ends (the run says where it doesn't, and learns everything); `all` learns every token.
    """

    loss_on: Literal["assistant", "all"] = "assistant"


class Dpo(Run, frozen=True):
    """Preference tuning (DPO, Rafailov et al. 2023): JSON lines with `prompt`, `chosen` and `rejected`.

    Each is text, or a list of messages. The reference is the base without the adapter, or the adapter that `start_from`
    names, which answers already. `beta` says how much a departure from it costs; `loss` is DPO's own, `hinge` (SLiC) or
    `ipo`.
    """

    learning_rate: Positive = 2e-4
    beta: Positive = 0.1
    loss: Literal["sigmoid", "hinge", "ipo"] = "sigmoid"


class Cpt(Run, frozen=True):
    """Continued pre-training on plain text: files of text, each one document, or JSON lines with `text`.

    Documents follow each other, each behind the token that the base expects before any text, if it has one, with its
    end-of-text token between, and are cut into pieces of `max_length`.
    """


class Raft(Run, frozen=True):
    """Retrieval-aware tuning (RAFT, Zhang et al. 2024): lines with `question`, `documents` (a list) and `answer`.

    `livery adapters train-data raft` makes such lines, with distractors among the documents. The user's message is
    `prompt` with the documents, numbered, and the question in their places; `system` goes before it where it isn't
    empty. Only the answer is learnt.
    """

    prompt: Text = RAFT_PROMPT
    system: str = ""

    def __post_init__(self) -> None:
        """Raises ValueError."""
        super().__post_init__()
        for place in (DOCUMENTS, QUESTION):
            if self.prompt.count(place) != 1:
                raise ValueError(f"`prompt` has {place} {self.prompt.count(place)} times: it must be there once")


AnyRun = Sft | Dpo | Cpt | Raft


def parse_run(text: str, where: str = "the run") -> AnyRun:
    """A run from YAML. Raises SpecInvalid, with the path of the field that is wrong and its value."""
    loaded = load_yaml(text, where)
    try:
        check_plain(loaded)
    except NotPlain as wrong:
        raise SpecInvalid(f"{where}: {wrong}") from wrong
    words = _words()
    if not isinstance(loaded, dict) or "kind" not in loaded:
        raise SpecInvalid(
            f"{where}: it has no kind; say what is trained, as in kind: sft (one of {', '.join(words['kind'])})"
        )
    if isinstance(loaded.get("data"), str):
        loaded["data"] = [loaded["data"]]
    if isinstance(loaded.get("held_out_data"), str):
        loaded["held_out_data"] = [loaded["held_out_data"]]
    adapter = loaded.get("adapter")
    if isinstance(adapter, dict):
        _numbers(adapter)
        if isinstance(adapter.get("target_modules"), str):
            adapter["target_modules"] = [adapter["target_modules"]]
    _numbers(loaded)
    kinds: Any = AnyRun
    found: AnyRun = converted(loaded, kinds, where, words)
    return found


def read_run(path: Path) -> AnyRun:
    """A run from a file. Raises SpecInvalid."""
    try:
        return parse_run(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise SpecInvalid(f"{path}: {why}; give the path of a YAML file that describes a run") from error


def _numbers(fields: dict[str, Any]) -> None:
    """What everybody writes as a number and YAML takes for text: 2e-4, without a point."""
    for name, value in fields.items():
        if isinstance(value, str) and _EXPONENT.fullmatch(value):
            fields[name] = float(value)


def _words() -> dict[str, list[str]]:
    """By the names of fields: the words that may stand there."""
    found: dict[str, list[str]] = {"kind": []}
    for kind in get_args(AnyRun):
        found["kind"].append(kind.__struct_config__.tag)
        for field in msgspec.structs.fields(kind):
            told = inspect.type_info(field.type)
            if isinstance(told, inspect.LiteralType):
                found[field.name] = [str(value) for value in told.values]
    return found
