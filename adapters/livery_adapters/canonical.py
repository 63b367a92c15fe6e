"""The one form in which engines apply adapters, whatever PEFT type they came from.

For a linear module with weight W and bias b an adapter asks for

    y = gain ⊙ (W'·T(x) + Σ ΔW·x) + b'

where every part may be absent: T is the identity, W' is W, there is no ΔW, the gain is one, b' is b. W' is
`weight` if given, else W, with the rows of `rows` put in. All tensors keep the dtype of the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import lru_cache
from typing import Protocol

from torch import Tensor

from livery_adapters.base_model import BaseShapes


@dataclass(frozen=True, slots=True)
class LowRank:
    """An additive ΔW = scale · B·A of one module.

    For a linear module `a` is [rank, in_features] and `b` [out_features, rank]. For an embedding `a` is
    [rank, vocabulary] and `b` [embedding_dim, rank], as PEFT stores them. The scale stays apart so that folding it
    never rounds bf16 weights.
    """

    a: Tensor
    b: Tensor
    scale: float

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])


@dataclass(frozen=True, slots=True)
class Kronecker:
    """An additive ΔW = scale · (left ⊗ right), of full rank: left [p, q], right [u, v], ΔW [p·u, q·v] (LoKr)."""

    left: Tensor
    right: Tensor
    scale: float


@dataclass(frozen=True, slots=True)
class SharedBasis:
    """An additive ΔW = scale · diag(out_gain) · B · diag(rank_gain) · A (VeRA).

    `a` [rank, in_features] and `b` [out_features, rank] may be views of two tensors that all modules share: an engine
    that copies them per module gives up what the method is for.
    """

    a: Tensor
    b: Tensor
    rank_gain: Tensor  # [rank]
    out_gain: Tensor  # [out_features]
    scale: float = 1.0


Delta = LowRank | Kronecker | SharedBasis


@dataclass(frozen=True, slots=True)
class BlockStage:
    """A block-diagonal factor of an input transform (OFT; one factor of BOFT's butterfly).

    With z = x[..., order] (z = x where `order` is None) cut into n pieces of `size`, piece i becomes
    piece_i @ blocks[i]; the result goes back to where it came from (result[..., order] = z).
    """

    blocks: Tensor  # [n, size, size]
    order: Tensor | None = None  # [in_features], int64


@dataclass(frozen=True, slots=True)
class InputTransform:
    """T(x): first the diagonal (IA3 on feed-forward layers), then the stages, first to last."""

    diagonal: Tensor | None = None  # [in_features]
    stages: tuple[BlockStage, ...] = ()


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a weight that are replaced: trained tokens in an embedding, and in a head that is tied to it."""

    ids: Tensor  # [n], int64, ascending and unique
    values: Tensor  # [n, width of a row]


@dataclass(frozen=True, slots=True)
class AddedOutputs:
    """Output features that only this adapter's head has, behind the base's: complete, whatever the rest of it says."""

    weight: Tensor  # [added, in_features]
    bias: Tensor | None = None  # [added]


@dataclass(frozen=True, slots=True)
class LinearChange:
    """What an adapter does to one linear module; see the module's docstring."""

    deltas: tuple[Delta, ...] = ()
    transform: InputTransform | None = None
    weight: Tensor | None = None  # [out_features, in_features]
    rows: Rows | None = None
    gain: Tensor | None = None  # [out_features]
    bias: Tensor | None = None  # [out_features], complete: it stands in place of the base's
    added: AddedOutputs | None = None  # of a head: tokens that the base doesn't have

    @property
    def is_additive(self) -> bool:
        """Whether it only adds ΔW: what a weighted sum of adapters needs."""
        return bool(self.deltas) and all(
            part is None for part in (self.transform, self.weight, self.rows, self.gain, self.bias, self.added)
        )


@dataclass(frozen=True, slots=True)
class EmbeddingChange:
    """y = gain ⊙ (W'[id] + scale · B·A[:, id]), before a scale of the module's own (Gemma).

    `added` are complete rows of tokens that the base doesn't have: the ids behind its own.
    """

    delta: LowRank | None = None
    weight: Tensor | None = None  # [vocabulary, embedding_dim]
    rows: Rows | None = None
    gain: Tensor | None = None  # [embedding_dim]
    added: Tensor | None = None  # [added, embedding_dim]

    @property
    def is_additive(self) -> bool:
        return self.delta is not None and all(part is None for part in (self.weight, self.rows, self.gain, self.added))


@dataclass(frozen=True, slots=True)
class ExpertsChange:
    """ΔW of every expert of one parameter: ΔW[e] = scale · B[e]·A[e], as [out_features, in_features]."""

    a: Tensor  # [experts, rank, in_features]
    b: Tensor  # [experts, out_features, rank]
    scale: float


@dataclass(frozen=True, slots=True)
class CanonicalAdapter:
    """What one adapter version does to the base model, keyed by the base's module paths.

    `experts` is keyed by the path of the parameter, `plain` holds replaced parameters of other modules (norms) by
    module path and parameter name, `head` is a classifier's, [labels, hidden]. `errors` gives the relative error
    ‖ΔW - applied‖/‖ΔW‖ of every module that was approximated; without any the adapter is exact: applying it gives
    PEFT's own forward up to rounding.
    """

    digest: str
    linears: Mapping[str, LinearChange] = field(default_factory=dict)
    embeddings: Mapping[str, EmbeddingChange] = field(default_factory=dict)
    experts: Mapping[str, ExpertsChange] = field(default_factory=dict)
    plain: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    head: Tensor | None = None
    errors: Mapping[str, float] = field(default_factory=dict)

    @property
    def exact(self) -> bool:
        return not self.errors

    @property
    def added_tokens(self) -> int:
        """How many tokens it has beyond the base's vocabulary."""
        return max((len(change.added) for change in self.embeddings.values() if change.added is not None), default=0)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, each memory counted once however many modules share it."""
        held = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors_of(self)}
        return sum(held.values())


def tensors_of(part: object) -> Iterator[Tensor]:
    """Every tensor of a canonical form, wherever it is nested."""
    return (leaf for leaf in leaves_of(part) if isinstance(leaf, Tensor))


def leaves_of(part: object) -> list[object]:
    """Everything nested in dataclasses, tuples and mappings that is none of these itself, in their order."""
    found: list[object] = []
    _gather(part, found)
    return found


def _gather(part: object, found: list[object]) -> None:
    # A list and no chain of generators: it runs for each of the thousand modules of an adapter that is being loaded.
    if isinstance(part, Tensor):
        found.append(part)
    elif names := field_names(type(part)):
        for name in names:
            if (value := getattr(part, name)) is not None:
                _gather(value, found)
    elif isinstance(part, tuple):
        for value in part:
            _gather(value, found)
    elif isinstance(part, Mapping):
        for value in part.values():
            _gather(value, found)
    else:
        found.append(part)


def _field_names(kind: type) -> tuple[str, ...]:
    """Of a dataclass, what its fields are called; of anything else none."""
    return tuple(item.name for item in fields(kind)) if is_dataclass(kind) else ()


field_names: Callable[[type], tuple[str, ...]] = lru_cache(_field_names)  # its type by hand: mypy hashes no classes


class BaseWeights(Protocol):
    """What a conversion may ask of the base model; the caller supplies it, dequantised where needed."""

    @property
    def shapes(self) -> BaseShapes:
        """Which modules there are, and which heads are tied to which embeddings."""
        ...

    def weight(self, module: str) -> Tensor:
        """The weight of a module as [out_features, in_features], or [vocabulary, dim] for an embedding."""
        ...

    def bias(self, module: str) -> Tensor | None:
        """The bias of a linear module, [out_features], or None where it has none."""
        ...

    def parameter(self, path: str) -> Tensor:
        """Any other parameter by its dotted path: a norm's weight, or all experts' as they lie in memory."""
        ...
