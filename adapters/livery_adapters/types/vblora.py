"""VB-LoRA: pairs put together from a bank of vectors that all modules share."""

from __future__ import annotations

from dataclasses import dataclass

from livery_adapters.layout import TargetTensors
from livery_adapters.peft_config import Config, FieldRules, bad_field, flag, whole
from livery_adapters.types.base import PeftType, Roles, need, wrong_shape
from livery_adapters.types.low_rank import check_rank

_MOST_VECTORS = 1 << 16
_MOST_MIXED = 64  # of the vectors in one piece: each costs a vector's length of work
_HALVES = ("vblora_logits_A", "vblora_logits_B")


@dataclass(frozen=True, slots=True)
class VbLoraSettings:
    """Every piece of `length` numbers of A and B is a mixture of the `top` likeliest of `count` vectors.

    `mixed`: the file has the chosen vectors' numbers and weights, all but the last weight, in place of logits.
    """

    rank: int
    top: int
    count: int
    length: int
    mixed: bool


def _parse(config: Config) -> VbLoraSettings:
    settings = VbLoraSettings(
        rank=whole(config.get("r", 4), "r"),
        top=whole(config.get("topk", 2), "topk"),
        count=whole(config.get("num_vectors", 256), "num_vectors"),
        length=whole(config.get("vector_length", 256), "vector_length"),
        mixed=flag(config, "save_only_topk_weights"),
    )
    for name, value, most in (("num_vectors", settings.count, _MOST_VECTORS), ("topk", settings.top, _MOST_MIXED)):
        if value > most:
            raise bad_field(name, value, f"at most {most}")
    if settings.top > settings.count:
        raise bad_field("topk", settings.top, f"at most num_vectors, which is {settings.count}")
    return settings


def _target(module: str, roles: Roles, settings: VbLoraSettings) -> TargetTensors:
    endings = (
        {"_topk_indices": settings.top, "_topk_weights": settings.top - 1} if settings.mixed else {"": settings.count}
    )
    names = [name + ending for name in _HALVES for ending in endings]
    shapes = dict(zip(names, (entry.shape for entry in need(module, roles, *names)), strict=True))
    a, b = (shapes[name + next(iter(endings))] for name in _HALVES)
    needed = f"[rank, pieces, {max(endings.values())}] and [pieces, rank, {max(endings.values())}]"
    if len(roles) != len(names) or len(a) != 3 or len(b) != 3 or 0 in a + b or a[0] != b[1]:
        raise wrong_shape(module, roles, needed)
    for half, (first, second, _) in zip(_HALVES, (a, b), strict=True):
        if any(shapes[half + ending] != (first, second, last) for ending, last in endings.items()):
            raise wrong_shape(module, roles, needed)
    check_rank(module, a[0], settings.rank)
    return TargetTensors(
        module=module,
        kind="linear",
        tensors=roles,
        rank=a[0],
        in_features=a[1] * settings.length,
        out_features=b[0] * settings.length,
    )


VBLORA = PeftType(
    name="VBLORA",
    rules=FieldRules(
        read=frozenset({"r", "topk", "num_vectors", "vector_length", "save_only_topk_weights"}),
        harmless=frozenset({"vblora_dropout", "init_vector_bank_bound", "init_logits_std"}),
    ),
    suffixes={name + ending: name + ending for name in _HALVES for ending in ("", "_topk_indices", "_topk_weights")},
    prefixes=("vblora_",),
    shared={"vblora_vector_bank": "vblora_vector_bank"},
    integers=frozenset(f"{name}_topk_indices" for name in _HALVES),
    parse=_parse,
    target=_target,
)
