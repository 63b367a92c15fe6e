"""A full fine-tune made into an adapter: what it changed of its base, each linear module at a low rank.

    report = extract(Side.of(...), Side.of(...), shapes, Aim(rank=None, error=0.3), out=Path("adapter"))
    report.error    # ‖ΔW - B·A‖ / ‖ΔW‖ over all linear modules

Norms, biases, embeddings and heads are carried as they are. One module is read, worked on and written at a time;
see extract_output for what is kept when that is interrupted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from livery_adapters.base_model import BaseShapes
from livery_adapters.making.extract_checkpoint import DTYPES, Checkpoint, StoredTensor
from livery_adapters.making.extract_output import Piece, Unfinished
from livery_adapters.making.extract_plan import Item, Plan, Side, paired
from livery_adapters.making.extract_spectrum import leading
from livery_adapters.making.lora_writer import Target, lora_config
from livery_adapters.measure import squared_norm, wide
from livery_adapters.refusal import AdapterRefused
from livery_adapters.shortage import lacks_memory

Form = Literal["same", "pair", "whole", "rows"]
Progress = Callable[[int, int], None]  # modules done, modules in all

_FEW = 0.25  # of a table's rows: up to these, rows are carried and not the table
_PREFIX = "base_model.model."
_ROWS = "token_adapter.trainable_tokens_delta"


@dataclass(frozen=True, slots=True)
class Aim:
    """How near the pairs are to come: of `rank`, or of the lowest rank up to `most` that leaves `error` of ‖ΔW‖."""

    rank: int | None = None
    error: float = 0.0
    most: int = 256
    dtype: torch.dtype = torch.float32  # of the pairs


@dataclass(frozen=True, slots=True)
class ModuleExtract:
    """What became of one module.

    `form`: "pair"; "whole" (norms, tables); "rows" (some tokens'); "same" where nothing differs. `moved` is ‖ΔW‖/‖W‖,
    `error` ‖ΔW - B·A‖/‖ΔW‖. `bias`: whether its bias differs, which is carried whole. `reached`: whether the rank was
    enough for the error asked for.
    """

    form: Form
    rank: int = 0
    moved: float = 0.0
    error: float = 0.0
    bias: bool = False
    reached: bool = True


@dataclass(frozen=True, slots=True)
class ExtractReport:
    """The adapter as a whole: `error` is that of all pairs together, `rounding` how much of ‖ΔW‖ is no more than the
    rounding of the base's weights to the tuned model's dtype. `resumed`: modules that an earlier run had finished."""

    modules: Mapping[str, ModuleExtract]
    error: float
    moved: float
    rounding: float
    added_tokens: int
    nbytes: int
    resumed: int


@dataclass(slots=True)
class _Made:
    """One module's tensors on their way, and what is told of it: `facts` are a ModuleExtract's fields and sums."""

    pieces: list[Piece] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def extract(
    base: Side,
    tuned: Side,
    shapes: BaseShapes,
    aim: Aim,
    out: Path,
    *,
    base_name: str | None = None,
    beside: Callable[[ExtractReport], Mapping[str, bytes]] = lambda report: {},
    progress: Progress = lambda done, total: None,
) -> ExtractReport:
    """Write the difference between two models of one architecture to the new directory `out`, as a LoRA of PEFT's.

    `beside` gives the files that go into the directory as well, by what is told of it. Needs memory for at most six
    fp32 copies of the largest linear module, which is two layers of a usual model; tables of tokens go through in
    pieces. Raises AdapterRefused: different_model, resized_vocabulary, nonfinite_weights, nothing_differs,
    not_extractable, bad_model, output_exists, output_unfinished, storage_full, out_of_memory; OSError.
    """
    plan = paired(base, tuned, shapes)
    settings = settings_of(base.files, tuned.files, aim)
    with Unfinished(out, settings, [name for item in plan.items for name in _names(item)]) as work:
        resumed = 0
        for done, item in enumerate(plan.items):
            progress(done, len(plan.items))
            sources = _identity(item)
            if work.redo(item.path, sources):
                made = _made(item, plan, shapes, aim, len(work.done), work.folder)
                work.add(item.path, sources, made.pieces, made.facts)
            else:
                resumed += 1
        progress(len(plan.items), len(plan.items))
        facts = work.done
        if all(fact["form"] == "same" and not fact["bias"] for fact in facts.values()):
            work.discard()
            raise AdapterRefused(
                "nothing_differs",
                f"{tuned.files.directory} has the very weights of {base.files.directory}: there is nothing to extract. "
                "Is the tuned model's folder the right one?",
            )
        report = _report(facts, plan, resumed, work.nbytes)
        told = {"rank": aim.rank, "error": aim.error, "most": aim.most, "left": report.error}
        work.finish(_config(facts, plan, shapes, base_name), {"extract": json.dumps(told)}, beside(report))
    return report


def settings_of(base: Checkpoint, tuned: Checkpoint, aim: Aim) -> dict[str, Any]:
    """What an extraction is of, in JSON's types: the same again is the same work."""
    return {
        "base": str(base.directory.resolve()),
        "tuned": str(tuned.directory.resolve()),
        "aim": [aim.rank, aim.error, aim.most, str(aim.dtype)],
    }


# -- one module ----------------------------------------------------------------------------------------------


def _made(item: Item, plan: Plan, shapes: BaseShapes, aim: Aim, kept: int, folder: Path) -> _Made:
    """Raises AdapterRefused."""
    try:
        if item.kind == "pair":
            return _pair(item, aim)
        if item.kind == "fixed":
            return _fixed(item)
        return _table(item, plan, shapes) if item.kind == "table" else _whole(item)
    except (MemoryError, RuntimeError) as failed:
        if not lacks_memory(failed):
            raise
        raise AdapterRefused(
            "out_of_memory",
            f"not enough memory for {item.path}; {kept} finished modules are kept in {folder}: end other programs, or "
            "use a machine with more memory, and give the same command again to go on",
        ) from failed


def _pair(item: Item, aim: Aim) -> _Made:
    before, after = item.base["weight"].read(), item.tuned["weight"].read()
    norm = squared_norm(before)
    made = _Made(facts=_told("same", norm=norm))
    if _differs(before, after).any():
        holds_base = torch.promote_types(before.dtype, after.dtype) == after.dtype
        rounding = 0.0 if holds_base else squared_norm(wide(before.to(after.dtype)).sub_(before))
        delta = wide(after).sub_(before)  # in place of the tuned weight, where that is wide already
        del before, after
        found = leading(
            delta.T if item.input_first else delta,
            aim.most if aim.rank is None else aim.rank,
            aim.error if aim.rank is None else 0.0,
            aim.dtype,
        )
        made.facts = _told("pair", found.norm**2, norm, rank=found.pair.rank, error=found.error)
        made.facts |= {"reached": aim.rank is not None or found.reached, "rounding": rounding}
        place = f"{_PREFIX}{item.path}."
        made.pieces += [
            Piece.of(f"{place}lora_A.weight", found.pair.a),
            Piece.of(f"{place}lora_B.weight", found.pair.b),
        ]
    _put_bias(item, made, f"{item.path}.base_layer" if made.pieces else item.path)
    return made


def _put_bias(item: Item, made: _Made, path: str) -> None:
    """A bias that differs, as PEFT's `bias="all"` carries it: in place of the base's own."""
    if "bias" in item.base and (item.added or len(_changed(item, "bias").rows)):
        made.pieces.append(_carried(f"{_PREFIX}{path}.bias", item.tuned["bias"]))
        made.facts["bias"] = True


def _fixed(item: Item) -> _Made:
    if len(_changed(item, "").rows):
        before, where = item.base[""], item.tuned[""]
        if all(torch.equal(before.read(rows), where.read(rows).to(DTYPES[before.dtype])) for rows in before.chunks()):
            raise AdapterRefused(
                "not_extractable",
                f"{where.name} is {where.dtype} in the tuned model ({where.file.name}) and {before.dtype} in the base, "
                "and differs by no more than that rounding, which adapters have no place for there. Give the base in "
                f"{where.dtype}, as the tuned model was trained from it",
            )
        raise AdapterRefused(
            "not_extractable",
            f"the tuned model changes {where.name} ({where.file.name}), and adapters can carry linear modules, "
            "embeddings, heads and norms of whole rows only: no routers, no routed experts, no other layers. Serve "
            "this model by itself, or tune it with these frozen",
        )
    return _Made(facts=_told("same"))


def _whole(item: Item) -> _Made:
    """Every parameter of a module where one of them differs: PEFT's modules_to_save."""
    changes = [_changed(item, name) for name in item.parameters]
    if not any(len(change.rows) for change in changes):
        return _Made(facts=_told("same"))
    pieces = [_carried(f"{_PREFIX}{item.path}.{name}", item.tuned[name]) for name in item.parameters]
    facts = _told("whole", sum(change.moved for change in changes), sum(change.norm for change in changes))
    return _Made(pieces, facts | {"saved": True})


def _table(item: Item, plan: Plan, shapes: BaseShapes) -> _Made:
    """The embedding of the tokens, or the head.

    Few rows are carried as trained tokens, which a tied head follows; PEFT computes a head without its bias then. A
    tied table stands in place of the base's own, so that both are it; otherwise it is one of modules_to_save.
    """
    if "weight" not in item.base:  # a tied head
        made = _Made(facts=_told("same"))
        _put_bias(item, made, item.path)
        return made
    change = _changed(item, "weight")
    if not len(change.rows) and not item.added:
        return _whole(item)
    facts = _told("whole", change.moved, change.norm)
    follows = item.path == plan.embedding and plan.tied == plan.base_tied
    has_bias = bool(plan.head) and shapes.modules[plan.head].has_bias
    if follows and len(change.rows) <= _FEW * item.base["weight"].shape[0] and not (plan.tied and has_bias):
        piece = _picked(f"{_PREFIX}{item.path}.{_ROWS}", item.tuned["weight"], change.rows)
        return _Made([piece], facts | {"form": "rows", "ids": change.rows.tolist()})
    pieces = [_carried(f"{_PREFIX}{item.path}.{name}", item.tuned[name]) for name in item.parameters]
    return _Made(pieces, facts | {"saved": not plan.tied})


@dataclass(frozen=True, slots=True)
class _Change:
    """Which rows of a parameter differ, ‖difference‖² and ‖base's‖²; rows that the base lacks count from zero."""

    rows: Tensor
    moved: float
    norm: float


def _changed(item: Item, name: str) -> _Change:
    before, after = item.base[name], item.tuned[name]
    found, moved, norm = [], 0.0, 0.0
    for rows in before.chunks():
        one, other = before.read(rows), after.read(rows)
        norm += squared_norm(one)
        differing = _differs(one, other)
        if differing.any():
            by_row = differing.reshape(len(differing) if rows else 1, -1).any(1)
            moved += squared_norm((wide(other) - wide(one))[by_row if rows else ...])
            found.append((rows.start if rows else 0) + by_row.nonzero()[:, 0])
    if item.added:
        more = slice(before.shape[0], after.shape[0])
        moved += squared_norm(after.read(more))
        found.append(torch.arange(more.start, more.stop))
    return _Change(torch.cat(found) if found else torch.empty(0, dtype=torch.int64), moved, norm)


def _differs(before: Tensor, after: Tensor) -> Tensor:
    """Number by number: is the tuned one another than the base's, rounded to the dtype that it would be carried in?

    A bf16 copy of an fp32 model changes nothing. Of the finer of two dtypes nothing is rounded away: what an fp32
    fine-tune moves by less than its bf16 base could show is what it learnt.
    """
    dtype = torch.float32 if after.dtype == torch.float64 else after.dtype
    return before.to(dtype) != after.to(dtype)


def _carried(name: str, tensor: StoredTensor) -> Piece:
    dtype = torch.float32 if tensor.dtype == "F64" else DTYPES[tensor.dtype]
    return Piece(name, tensor.shape, dtype, (tensor.read(rows) for rows in tensor.chunks()))


def _picked(name: str, tensor: StoredTensor, ids: Tensor) -> Piece:
    """Some rows of a table."""

    def rows() -> Iterator[Tensor]:
        for part in tensor.chunks():
            assert part is not None
            inside = ids[(ids >= part.start) & (ids < part.stop)]
            if len(inside):
                yield tensor.read(part)[inside - part.start]

    dtype = torch.float32 if tensor.dtype == "F64" else DTYPES[tensor.dtype]
    return Piece(name, (len(ids), *tensor.shape[1:]), dtype, rows())


def _told(form: Form, moved: float = 0.0, norm: float = 0.0, *, rank: int = 0, error: float = 0.0) -> dict[str, Any]:
    """The facts of a module: squares of ‖ΔW‖ and ‖W‖, so that they add up."""
    return {"form": form, "moved": moved, "norm": norm, "rank": rank, "error": error, "bias": False}


# -- all of them ---------------------------------------------------------------------------------------------


def _names(item: Item) -> Iterator[str]:
    """What its tensors may be called, at the longest."""
    place = f"{_PREFIX}{item.path}"
    yield from (f"{place}.{end}" for end in ("lora_A.weight", "lora_B.weight", "base_layer.bias", _ROWS))
    yield from (f"{place}.{name}" for name in item.parameters)


def _identity(item: Item) -> list[object]:
    """What says that a module is made of the same files as before: their names, sizes and times."""
    files = sorted({tensor.file for side in (item.base, item.tuned) for tensor in side.values()})
    return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def _report(facts: Mapping[str, dict[str, Any]], plan: Plan, resumed: int, nbytes: int) -> ExtractReport:
    modules = {
        path: ModuleExtract(
            form=fact["form"],
            rank=fact["rank"],
            moved=math.sqrt(fact["moved"] / fact["norm"]) if fact["norm"] else float(fact["moved"] > 0),
            error=fact["error"],
            bias=fact["bias"],
            reached=fact.get("reached", True),
        )
        for path, fact in facts.items()
    }
    pairs = [fact for fact in facts.values() if fact["form"] == "pair"]
    whole = math.fsum(fact["moved"] for fact in pairs) or 1.0
    linear = [facts[item.path] for item in plan.items if item.kind == "pair"]
    norm = math.fsum(fact["norm"] for fact in linear) or 1.0
    return ExtractReport(
        modules=modules,
        error=math.sqrt(math.fsum(fact["moved"] * fact["error"] ** 2 for fact in pairs) / whole),
        moved=math.sqrt(math.fsum(fact["moved"] for fact in pairs) / norm),
        rounding=math.sqrt(math.fsum(fact["rounding"] for fact in pairs) / whole),
        added_tokens=plan.added,
        nbytes=nbytes,
        resumed=resumed,
    )


def _config(
    facts: Mapping[str, dict[str, Any]], plan: Plan, shapes: BaseShapes, base_name: str | None
) -> dict[str, object]:
    """adapter_config.json."""
    targets = []
    for path, fact in facts.items():
        if fact["form"] == "pair":
            shape = shapes.modules[path]
            targets.append(Target(path, "linear", fact["rank"], shape.in_features, shape.out_features))
    input_first = any(shapes.modules[target.path].input_first for target in targets)
    replaced = any(fact["bias"] or (fact["form"] == "whole" and not fact["saved"]) for fact in facts.values())
    ids = {path: fact["ids"] for path, fact in facts.items() if fact["form"] == "rows"}
    return {
        **lora_config(targets, base_name, input_first),
        "modules_to_save": sorted(path for path, fact in facts.items() if fact.get("saved")) or None,
        "trainable_token_indices": ids or None,
        # "all": parameters of the base itself are replaced, so that PEFT takes no second such adapter beside it.
        "bias": "all" if replaced else "none",
    }
