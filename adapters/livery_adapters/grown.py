"""A vocabulary grown for one adapter: how many tokens of its own it has, told from headers. No torch.

    rows of the embedding and of the head     0 … V - 1: the base's      V … V + E - 1: the adapter's own

PEFT writes such files after `resize_token_embeddings(V + E)`: whole tables (`modules_to_save`, or the copies that it
saves of resized embeddings), pairs over them, or trained tokens with ids from V on. E counts every row, also those that
only fill the table up to a round number: the tuned model has logits for them too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from livery_adapters.base_model import BaseShapes
from livery_adapters.layout import AdapterManifest, FullTensor
from livery_adapters.refusal import AdapterRefused

MAX_ADDED_ROWS = 1 << 14


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The base's own: how many rows, of which embedding and which head. `head` is empty where that can't be told."""

    rows: int
    embedding: str
    head: str

    @classmethod
    def of(cls, shapes: BaseShapes) -> Vocabulary | None:
        """The largest embedding is that of the tokens, the only linear module with as many outputs the head."""
        tables = {path: shape.in_features for path, shape in shapes.modules.items() if shape.kind == "embedding"}
        if not tables:
            return None
        embedding = max(tables, key=tables.__getitem__)
        rows = tables[embedding]
        linears = {path: shape.out_features for path, shape in shapes.modules.items() if shape.kind == "linear"}
        heads = [path for path, outs in linears.items() if outs == rows]
        tied = [head for head in heads if shapes.tied.get(head) == embedding]
        found = tied or heads
        return cls(rows, embedding, found[0] if len(found) == 1 else "")

    @property
    def modules(self) -> tuple[str, ...]:
        return (self.embedding, self.head) if self.head else (self.embedding,)


def added_rows(manifest: AdapterManifest, shapes: BaseShapes) -> int:
    """How many tokens an adapter has beyond the base's, each with a row of its own wherever one is needed.

    0 for most. Raises AdapterRefused (resized_vocabulary).
    """
    base = Vocabulary.of(shapes)
    if base is None:
        return 0
    sizes = dict(_sizes(manifest, shapes, base))
    longest = max(sizes, key=sizes.__getitem__, default="")
    added = sizes.get(longest, 0) - base.rows
    if added <= 0:
        return 0
    if added > MAX_ADDED_ROWS:
        raise _refused(
            f"{longest} has {sizes[longest]} rows and the base {base.rows}: at most {MAX_ADDED_ROWS} more can be served"
        )
    for module in (base.embedding, base.head)[: 2 if manifest.task == "generate" else 1]:
        tokens = range(base.rows, base.rows + added)
        missing = _without_row(manifest, shapes, base, module, tokens)
        if missing:
            raise _refused(f"{longest} speaks of {tokens.stop} tokens and the base has {base.rows}: {missing}")
    return added


def grown(shapes: BaseShapes, added: int) -> BaseShapes:
    """The base with so many rows more in its embedding and its head: what an adapter with them was trained on."""
    base = Vocabulary.of(shapes)
    if base is None or not added:
        return shapes
    modules = dict(shapes.modules)
    for module in base.modules:
        shape = modules[module]
        if shape.kind == "embedding":
            modules[module] = replace(shape, in_features=base.rows + added)
        else:
            modules[module] = replace(shape, out_features=base.rows + added)
    return replace(shapes, modules=modules)


def _sizes(manifest: AdapterManifest, shapes: BaseShapes, base: Vocabulary) -> Iterator[tuple[str, int]]:
    """As many rows as each part of the file speaks of."""
    for full in manifest.full:
        if full.module in base.modules and full.parameter in ("weight", "bias") and full.entry.shape:
            transposed = full.parameter == "weight" and shapes.modules[full.module].input_first
            yield full.entry.name, full.entry.shape[-1 if transposed else 0]
    for target in manifest.targets:
        if target.module not in base.modules:
            continue
        rows = target.in_features if target.module == base.embedding else target.out_features
        yield next(iter(target.tensors.values())).name, max(rows or 0, 1 + max(target.ids, default=-1))


def _without_row(manifest: AdapterManifest, shapes: BaseShapes, base: Vocabulary, module: str, tokens: range) -> str:
    """Which of the added tokens has no row in this module, in words; empty where each has one."""
    if not module:
        return "this base shows no head with a row for each of them, to be grown"
    table = _brings(manifest, shapes, base, module, "weight", tokens.stop)
    trained = {
        token
        for target in manifest.targets
        if target.module == module or (target.tied and shapes.tied.get(module) == target.module)
        for token in target.ids
    }
    missing = next((token for token in tokens if not (table or token in trained)), None)
    if missing is not None:
        return (
            f"token {missing} has no row in {module}, neither in the file nor in the base; save it again with "
            "save_pretrained(DIR, save_embedding_layers=True), or train with both in modules_to_save"
        )
    has_bias = shapes.modules[module].has_bias and not trained
    if has_bias and not _brings(manifest, shapes, base, module, "bias", tokens.stop):
        return f"they have no {module}.bias in the file; save it again with save_embedding_layers=True"
    return ""


def _brings(
    manifest: AdapterManifest, shapes: BaseShapes, base: Vocabulary, module: str, parameter: str, rows: int
) -> bool:
    """Whether the file has this parameter with so many rows: the module's own, or of one that shares it."""

    def fits(full: FullTensor) -> bool:
        tied = shapes.tied.get(base.head) == base.embedding and full.module in base.modules
        shared = tied and parameter == "weight" and not full.own
        return full.parameter == parameter and (full.module == module or shared) and rows in full.entry.shape

    return any(map(fits, manifest.full))


def _refused(reason: str) -> AdapterRefused:
    return AdapterRefused("resized_vocabulary", reason)
