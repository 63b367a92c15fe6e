"""GLoRA: W' = W + W ⊙ A + B and b' = b + b ⊙ D + E + W·C, each of the five a matrix, a vector, a number or nothing."""

from __future__ import annotations

from dataclasses import dataclass

from livery_adapters.base_model import BaseShapes
from livery_adapters.layout import TargetTensors
from livery_adapters.peft_config import Config, FieldRules, whole
from livery_adapters.types.base import PeftType, Roles, wrong_shape

LETTERS = "ABCDE"
_Shapes = dict[str, set[tuple[int, ...]]]
_FORMS = ("Xd", "Xu", "X", "zeros")


@dataclass(frozen=True, slots=True)
class GloraSettings:
    """The rank of those that are products of two matrices; which form each has shows in the tensors."""

    rank: int


def _parse(config: Config) -> GloraSettings:
    return GloraSettings(whole(config.get("r", 8), "r"))


def _target(module: str, roles: Roles, settings: GloraSettings) -> TargetTensors:
    for letter in LETTERS:
        forms = {form for form in _FORMS if f"{letter}.{form}" in roles}
        if forms not in ({"Xd", "Xu"}, {"X"}, {"zeros"}):
            raise wrong_shape(module, roles, f"glora_{letter}.X, glora_{letter}.zeros, or glora_{letter}.Xd and .Xu")
    return TargetTensors(module=module, kind="linear", tensors=roles)


def _check(target: TargetTensors, shapes: BaseShapes, settings: GloraSettings) -> None:
    """Every tensor must have a shape that PEFT gives it for this module. Raises AdapterRefused."""
    shape, rank = shapes.modules[target.module], settings.rank
    rows, columns = shape.out_features, shape.in_features
    matrix: _Shapes = {
        "Xd": {(rows, rank)},
        "Xu": {(rank, columns)},
        "X": {(rows, 1), (1,)},
        "zeros": {(rows, columns)},
    }
    column: _Shapes = {"Xd": {(columns, rank)}, "Xu": {(rank, 1)}, "X": {(columns, 1)}, "zeros": {(columns, 1)}}
    vector: _Shapes = {"Xd": set(), "Xu": set(), "X": {(rows,), (1,)}, "zeros": {(rows,)}}
    allowed = dict(zip(LETTERS, (matrix, matrix, column, vector, vector), strict=True))
    for role, entry in target.tensors.items():
        letter, form = role.split(".")
        if entry.shape not in allowed[letter][form]:
            listed = " or ".join(str(list(one)) for one in sorted(allowed[letter][form])) or "nothing"
            raise wrong_shape(target.module, {role: entry}, listed)


GLORA = PeftType(
    name="GLORA",
    rules=FieldRules(
        read=frozenset({"r"}), harmless=frozenset({"config_A_B", "config_C", "config_D_E", "init_weights"})
    ),
    suffixes={f"glora_{letter}.{form}": f"{letter}.{form}" for letter in LETTERS for form in _FORMS},
    prefixes=("glora_",),
    parse=_parse,
    target=_target,
    check=_check,
)
