"""What an adapter's two files hold, as plain values: which tensors, for which modules, in which role."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from livery_adapters.peft_config import CommonSettings
from livery_adapters.tensor_file import TensorEntry

Kind = Literal["linear", "embedding", "experts", "plain", "rows"]
Task = Literal["generate", "embed", "classify"]


@dataclass(frozen=True, slots=True)
class TargetTensors:
    """What the file holds for one adapted module: its tensors by role ("lora_A", "hada_w1_a", ...).

    `in_features` and `out_features` are those of the module as the tensors' shapes tell them, None where they don't;
    for an embedding `in_features` is the vocabulary. Kind "rows" is a linear module or an embedding, whichever the
    base has there. `rank` is 0 for a method without one. `parameter` names the
    parameter of `module` that changes where it isn't a linear module's or an embedding's weight (kind "experts").
    `named`: the type has a field of its own that names this module, so `target_modules` needn't.
    `reducible`: the exact rank may be large and the type can be approximated by a smaller one on request.
    `tied`: a head tied to this embedding changes alike. `ids` are the tokens of kind "rows", in the file's order.
    """

    module: str
    kind: Kind
    tensors: Mapping[str, TensorEntry]
    rank: int = 0
    scale: float = 1.0
    in_features: int | None = None
    out_features: int | None = None
    parameter: str = ""
    named: bool = False
    reducible: bool = False
    tied: bool = False
    ids: tuple[int, ...] = ()

    @property
    def path(self) -> str:
        """The key of this change in the canonical form: the module, or its parameter."""
        return f"{self.module}.{self.parameter}" if self.parameter else self.module

    @property
    def dtype(self) -> str:
        """The dtypes of the tensors, such as "F32", joined by "+" where they differ."""
        return "+".join(sorted({entry.dtype for entry in self.tensors.values()}))

    @property
    def nbytes(self) -> int:
        return sum(entry.end - entry.begin for entry in self.tensors.values())


@dataclass(frozen=True, slots=True)
class FullTensor:
    """A complete parameter of a module, in the shape and layout of the base's own.

    `own` says that PEFT gives the module a parameter of its own (`modules_to_save`). Otherwise it overwrites the
    base's at load, so that a module tied to it changes too: a trained bias, or the copy that PEFT saves beside an
    adapted embedding, which usually just repeats the base's.
    """

    module: str
    parameter: str
    entry: TensorEntry
    own: bool

    @property
    def path(self) -> str:
        return f"{self.module}.{self.parameter}"


@dataclass(frozen=True, slots=True)
class AdapterManifest:
    """What the two files of an adapter say, validated. `digest` is the SHA-256 hex of both files' contents.

    `settings` is what the type made of its own configuration fields, `shared` are tensors of no single module by
    role (VeRA's projections), `full` complete parameters. `invocation` are the token ids that switch the adapter on
    (activated LoRA); empty: it is always on. `task` is what it was trained to give, `head` a classifier's own [labels,
    hidden] (see livery_adapters.tasks).
    """

    digest: str
    peft_type: str
    common: CommonSettings
    settings: object
    targets: tuple[TargetTensors, ...]
    shared: Mapping[str, TensorEntry]
    full: tuple[FullTensor, ...]
    tensors: tuple[TensorEntry, ...]
    nbytes: int
    facts: Mapping[str, object]
    invocation: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()
    task: Task = "generate"
    head: FullTensor | None = None

    @property
    def base_name(self) -> str | None:
        return self.common.base_name

    @property
    def max_rank(self) -> int:
        return max((target.rank for target in self.targets), default=0)


def digest_of(hashes: Mapping[str, str]) -> str:
    """The identity of an adapter: SHA-256 over its (file name, SHA-256 hex) pairs, tagged."""
    digest = hashlib.sha256(b"livery adapter 1\n")
    for name in sorted(hashes):
        digest.update(f"{name} {hashes[name]}\n".encode())
    return digest.hexdigest()
