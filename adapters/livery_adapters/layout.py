"""What an adapter's two files hold, as plain values: which tensors, for which modules, at what scale."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from livery_adapters.tensor_file import TensorEntry

Kind = Literal["linear", "embedding"]


@dataclass(frozen=True, slots=True)
class TargetTensors:
    """The low-rank pair of one module: `a` is [rank, in_features], `b` [out_features, rank].

    For an embedding `in_features` is the vocabulary. `a` and `b` are the tensors' names in the file.
    """

    module: str
    kind: Kind
    rank: int
    scale: float
    in_features: int
    out_features: int
    dtype: str
    a: str
    b: str


@dataclass(frozen=True, slots=True)
class BaseCopy:
    """A full weight that PEFT saved beside an embedding or head; it may only repeat the base's own."""

    module: str
    tensor: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AdapterManifest:
    """What the two files of an adapter say, validated. `digest` is the SHA-256 hex of both files' contents."""

    digest: str
    peft_type: str
    base_name: str | None
    targets: tuple[TargetTensors, ...]
    base_copies: tuple[BaseCopy, ...]
    tensors: tuple[TensorEntry, ...]
    nbytes: int
    targets_by_pattern: bool
    facts: Mapping[str, object]

    @property
    def max_rank(self) -> int:
        return max(target.rank for target in self.targets)


def digest_of(hashes: Mapping[str, str]) -> str:
    """The identity of an adapter: SHA-256 over its (file name, SHA-256 hex) pairs, tagged."""
    digest = hashlib.sha256(b"livery adapter 1\n")
    for name in sorted(hashes):
        digest.update(f"{name} {hashes[name]}\n".encode())
    return digest.hexdigest()
