"""What a PEFT type has to say about its files, without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from livery_adapters.base_model import BaseShapes
from livery_adapters.layout import TargetTensors
from livery_adapters.peft_config import Config, FieldRules
from livery_adapters.refusal import AdapterRefused
from livery_adapters.tensor_file import TensorEntry

Roles = Mapping[str, TensorEntry]
S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class PeftType(Generic[S]):
    """One PEFT type; `S` are its settings, a frozen dataclass of what its configuration fields say.

    `suffixes` maps the end of a tensor's name, after the module's path and without the adapter's name, to a role:
    "lora_A.weight" -> "lora_A". `shared` does so for tensors of no single module, by their whole name after
    "base_model.". `prefixes` are how names of this type's tensors begin: what begins so and isn't in `suffixes` is
    refused by name. `copies` are the names under which PEFT keeps a complete, trained copy of a module.
    `integers` are the roles whose tensors hold whole numbers.
    `parse` turns the configuration into settings, `target` the tensors of one module into a checked target (None: a
    type without tensors of its own); `check` compares it with the base beyond kind and features, `check_settings` does
    so once with what belongs to no module; `warn` adds to the report.
    All of them raise AdapterRefused.
    """

    name: str
    rules: FieldRules
    suffixes: Mapping[str, str]
    prefixes: tuple[str, ...]
    parse: Callable[[Config], S]
    target: Callable[[str, Roles, S], TargetTensors] | None
    shared: Mapping[str, str] = field(default_factory=dict)
    copies: tuple[str, ...] = ()
    integers: frozenset[str] = frozenset()
    check: Callable[[TargetTensors, BaseShapes, S], None] | None = None
    check_settings: Callable[[S, BaseShapes], None] | None = None
    warn: Callable[[tuple[TargetTensors, ...], S], tuple[str, ...]] | None = None
    invocation: Callable[[S], tuple[int, ...]] | None = None


def no_settings(config: Config) -> None:
    """For a type whose own fields say nothing that the tensors don't show."""


def is_pair(a: TensorEntry, b: TensorEntry) -> bool:
    """Whether these are [rank, in_features] and [out_features, rank] of one rank, none of them zero."""
    return len(a.shape) == 2 and len(b.shape) == 2 and a.shape[0] == b.shape[1] and 0 not in a.shape + b.shape


def need(module: str, roles: Roles, *names: str) -> tuple[TensorEntry, ...]:
    """The tensors of these roles. Raises AdapterRefused (missing_half) when one is absent."""
    missing = [name for name in names if name not in roles]
    if missing:
        there = ", ".join(entry.name for entry in roles.values())
        raise AdapterRefused(
            "missing_half",
            f"{module} has only {there} and lacks {', '.join(missing)}: all parts are needed; save the adapter again",
        )
    return tuple(roles[name] for name in names)


def one_dtype(module: str, roles: Roles) -> str:
    """The dtype of all tensors of a module. Raises AdapterRefused (bad_dtype) where they differ."""
    found = {entry.dtype: role for role, entry in roles.items()}
    if len(found) > 1:
        listed = " and ".join(f"{role} is {dtype}" for dtype, role in sorted(found.items()))
        raise AdapterRefused("bad_dtype", f"{module}: {listed}; save all in one dtype")
    return next(iter(found))


def wrong_shape(module: str, roles: Roles, needed: str) -> AdapterRefused:
    """A refusal that shows every tensor's shape and what is `needed`, in words."""
    listed = ", ".join(f"{role} is {list(entry.shape)}" for role, entry in roles.items())
    return AdapterRefused("wrong_shape", f"{module}: {listed}; {needed} are needed")


_LEFT_OUT = {
    "target_modules": "which target_modules doesn't name",
    "exclude_modules": "which exclude_modules leaves out",
    "layers_to_transform": "whose layer is not among layers_to_transform",
}


def untargeted(module: str, field: str) -> AdapterRefused:
    """The file adapts what this field of the configuration (see TargetRule.left_out_by) leaves out."""
    return AdapterRefused(
        "untargeted_tensor",
        f"the file adapts {module}, {_LEFT_OUT[field]} (PEFT would ignore it); correct adapter_config.json or save "
        "the adapter again",
    )


def vocabulary_of(shapes: BaseShapes) -> int:
    """The rows of the base's largest embedding, which is that of its tokens; 0 where it has none."""
    return max((shape.in_features for shape in shapes.modules.values() if shape.kind == "embedding"), default=0)
