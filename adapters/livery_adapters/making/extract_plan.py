"""Which parameter of a tuned model goes where in an adapter: pairs for linear modules, everything else as it is.

    plan = paired(Side.of(base, shapes, tied), Side.of(tuned, shapes, tied), shapes)
    plan.items[0].kind          # "pair", "whole", "table" or "fixed"

Looks at headers, and at a head beside an embedding that it is said to be. What an adapter has no place for must be the
same in both models, which shows when it is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from livery_adapters.base_model import BaseShapes
from livery_adapters.grown import MAX_ADDED_ROWS, Vocabulary
from livery_adapters.making.extract_checkpoint import Checkpoint, StoredTensor, alike
from livery_adapters.refusal import AdapterRefused

Kind = Literal["pair", "whole", "table", "fixed"]
_BUFFERS = ("inv_freq", "masked_bias")  # old files hold them, and transformers computes them itself


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two models: its tensors by the path of the parameter, and whether its head is its embedding.

    Files may lack the first part of all paths, or have one more, as those of a model without its head do. A head that
    is said to be the embedding, and stands beside it with other numbers, is a head of its own to transformers: so a
    LoRA with a trained head leaves a model when it is merged.
    """

    files: Checkpoint
    tensors: Mapping[str, StoredTensor]
    tied: bool

    @classmethod
    def of(cls, files: Checkpoint, shapes: BaseShapes, tied: bool) -> Side:
        """`tied` is what the configuration says. Raises AdapterRefused (nonfinite_weights, bad_model), OSError."""
        known = set(_parameters(shapes))
        prefix = f"{shapes.backbone}."
        found = {}
        for name, tensor in files.tensors.items():
            ways = (name, prefix + name, name.removeprefix(prefix))
            found[next((way for way in ways if way in known), name)] = tensor
        return cls(files, found, tied and not _own_head(found, shapes))


def _own_head(tensors: Mapping[str, StoredTensor], shapes: BaseShapes) -> bool:
    embedding, head = (tensors.get(f"{path}.weight") for path in _tables(shapes))
    if embedding is None or head is None or not (embedding.is_number and head.is_number):
        return False
    return not alike(embedding, head)


@dataclass(frozen=True, slots=True)
class Item:
    """One step of the work: a module, or a tensor that no adapter may change.

    "pair": a linear module, whose ΔW gets a low rank and whose bias is carried. "whole": carried as it is where it
    differs (norms, position embeddings). "table": the embedding of the tokens, or the head. "fixed": no adapter can
    change it. `parameters` are the names below `path`, by which `base` and `tuned` have the tensors; of a head that is
    its embedding they have the embedding's.
    """

    path: str
    kind: Kind
    base: Mapping[str, StoredTensor]
    tuned: Mapping[str, StoredTensor]
    input_first: bool = False
    added: int = 0  # rows that the tuned model has more

    @property
    def parameters(self) -> tuple[str, ...]:
        return tuple(self.base)


@dataclass(frozen=True, slots=True)
class Plan:
    """All items in the order of the work, and the vocabulary. `tied`: head and embedding are one weight in both."""

    items: tuple[Item, ...]
    embedding: str
    head: str
    tied: bool
    base_tied: bool
    added: int


def paired(base: Side, tuned: Side, shapes: BaseShapes) -> Plan:
    """Compare the two by name and shape. Raises AdapterRefused (different_model, resized_vocabulary, bad_model)."""
    embedding, head = _tables(shapes)
    if shapes.tied and not base.tied:
        raise AdapterRefused(
            "bad_model",
            f"config.json in {base.files.directory} says that its head is its embedding (tie_word_embeddings), and "
            f"{base.tensors[f'{head}.weight'].file.name} has a {head}.weight with other numbers: set "
            "tie_word_embeddings to false there, so that whatever serves this base computes with its own head",
        )
    tied = base.tied and tuned.tied
    items: list[Item] = []
    seen: set[str] = set()
    for path, names in _modules(shapes).items():
        seen.update(f"{path}.{name}" for name in names)
        # A head that is the embedding in both has only its bias left to be looked at.
        looked = [name for name in names if not (tied and path == head and name == "weight")]
        one, other = (_sources(side, path, looked, embedding, head) for side in (base, tuned))
        kind: Kind = "table" if path in (embedding, head) else _kind(path, shapes)
        item = Item(path, kind, one, other, _input_first(path, shapes))
        items.append(_checked(item, base, tuned))
    items += _fixed(base, tuned, seen)
    added = max((item.added for item in items), default=0)
    return Plan(tuple(item for item in items if item.base), embedding, head, tied, base.tied, added)


def _parameters(shapes: BaseShapes) -> Iterator[str]:
    for path, names in _modules(shapes).items():
        yield from (f"{path}.{name}" for name in names)


def _modules(shapes: BaseShapes) -> dict[str, tuple[str, ...]]:
    """What adapters may change, and the names of each module's parameters; layers in their order."""
    found = {
        path: ("weight", "bias") if shape.has_bias else ("weight",)
        for path, shape in sorted(shapes.modules.items(), key=lambda one: _order(one[0]))
    }
    return found | {path: tuple(names) for path, names in shapes.plain.items()}


def _order(path: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in path.split(".")]


def _tables(shapes: BaseShapes) -> tuple[str, str]:
    """The embedding of the tokens and the head, each empty where it can't be told."""
    for head, embedding in shapes.tied.items():
        return embedding, head
    found = Vocabulary.of(shapes)
    return (found.embedding, found.head) if found else ("", "")


def _kind(path: str, shapes: BaseShapes) -> Kind:
    shape = shapes.modules.get(path)
    return "pair" if shape is not None and shape.kind == "linear" else "whole"


def _input_first(path: str, shapes: BaseShapes) -> bool:
    return path in shapes.modules and shapes.modules[path].input_first


def _sources(side: Side, path: str, names: Iterable[str], embedding: str, head: str) -> dict[str, StoredTensor]:
    """A module's tensors by parameter. A tied head's weight is the embedding's."""
    found = {}
    for name in names:
        at = f"{embedding}.weight" if path == head and name == "weight" and side.tied else f"{path}.{name}"
        if at not in side.tensors:
            raise AdapterRefused(
                "different_model",
                f"{side.files.directory} has no {at}, which the base model consists of; give the base that the tuned "
                "model was trained from, as transformers saves it",
            )
        found[name] = side.tensors[at]
    return found


def _checked(item: Item, base: Side, tuned: Side) -> Item:
    """Shapes are alike but for rows that a larger vocabulary adds. Raises AdapterRefused."""
    added = 0
    for name, one in item.base.items():
        other = item.tuned[name]
        for tensor in (one, other):
            if not tensor.is_number:
                raise AdapterRefused(
                    "bad_model",
                    f"tensor {tensor.name} in {tensor.file} is {tensor.dtype}; a difference can be taken of F32, F16 "
                    "and BF16: give the model before it was quantised",
                )
        if one.shape == other.shape:
            continue
        grown = item.kind == "table" and not item.input_first and one.shape[1:] == other.shape[1:]
        if not grown:
            raise AdapterRefused(
                "different_model",
                f"{item.path}.{name} is {list(one.shape)} in {base.files.directory} and {list(other.shape)} in "
                f"{tuned.files.directory}: these are models of different sizes; give the base that the tuned model "
                "was trained from",
            )
        added = _added(item, name, one, other)
    return Item(item.path, item.kind, item.base, item.tuned, item.input_first, added)


def _added(item: Item, name: str, one: StoredTensor, other: StoredTensor) -> int:
    added = other.shape[0] - one.shape[0]
    if added < 0:
        raise AdapterRefused(
            "resized_vocabulary",
            f"{item.path}.{name} has {one.shape[0]} rows in the base and {other.shape[0]} in the tuned model: a "
            "vocabulary may be grown, and never shrunk. Are --base and --tuned swapped?",
        )
    if added > MAX_ADDED_ROWS:
        raise AdapterRefused(
            "resized_vocabulary",
            f"{item.path}.{name} has {added} rows more in the tuned model: at most {MAX_ADDED_ROWS} can be served "
            "beside the base's; serve this model by itself",
        )
    return added


def _fixed(base: Side, tuned: Side, seen: set[str]) -> Iterator[Item]:
    """What adapters have no place for. Raises AdapterRefused where only one of the models has it."""
    for path in sorted((base.tensors.keys() | tuned.tensors.keys()) - seen):
        one, other = base.tensors.get(path), tuned.tensors.get(path)
        known = one or other
        assert known is not None
        if path.rpartition(".")[2] in _BUFFERS or len(known.shape) == 4 or not known.is_number:
            continue
        if one is None or other is None or one.shape != other.shape:
            where = base if one is None else tuned
            raise AdapterRefused(
                "different_model",
                f"tensor {path} isn't in {where.files.directory}, or of another shape there: these are models of "
                "different architectures; give the base that the tuned model was trained from",
            )
        yield Item(path, "fixed", {"": one}, {"": other})
