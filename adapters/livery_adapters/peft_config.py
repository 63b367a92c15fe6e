"""adapter_config.json: what all PEFT types have in common, and the helpers to read fields of any type.

Every field of a type's PEFT configuration class is in exactly one place: read, harmless at inference, or refused
unless neutral. Any other field is refused unless it is empty: a later PEFT may have given it a meaning.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from livery_adapters.patterns import MAX_ALTERNATIVES, NamePatterns
from livery_adapters.refusal import AdapterRefused

Config = Mapping[str, object]
_T = TypeVar("_T")

# Read here, for every type.
COMMON_READ = frozenset(
    {
        "peft_type",
        "base_model_name_or_path",
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "modules_to_save",
        "ensure_weight_tying",
    }
)
# Training and bookkeeping, for every type. `bias` says which biases were trained; the tensors say it as well.
COMMON_HARMLESS = frozenset(
    {"task_type", "auto_mapping", "peft_version", "revision", "inference_mode", "fan_in_fan_out", "bias"}
)

_DOTTED = re.compile(r"[A-Za-z0-9_.-]{1,256}")
_MAX_NUMBER = 1e6


@dataclass(frozen=True, slots=True)
class FieldRules:
    """Where each field of a PEFT configuration class belongs, beyond the common ones.

    `refused` maps a field that changes the forward, and isn't supported, to what it is in words.
    """

    read: frozenset[str]
    harmless: frozenset[str] = frozenset()
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def known(self) -> frozenset[str]:
        """Every field with a rule, the common ones included."""
        return COMMON_READ | COMMON_HARMLESS | self.read | self.harmless | self.refused.keys()


@dataclass(frozen=True, slots=True)
class Endings:
    """Names that the end of a path is compared with, however many there are, in one binary search.

    `backwards` are the names from their last letter to the first, sorted, and none begins another one.
    """

    backwards: tuple[str, ...]

    @classmethod
    def of(cls, names: Iterable[str]) -> Endings:
        """Of names that end alike the shortest is enough."""
        found: list[str] = []
        for name in sorted(name[::-1] for name in names):
            if not (found and name.startswith(found[-1])):
                found.append(name)
        return cls(tuple(found))

    def __bool__(self) -> bool:
        return bool(self.backwards)

    def fit(self, path: str) -> bool:
        """Whether the path ends with one of the names, even where that doesn't begin at a dot."""
        return self._begin(path[::-1])

    def fit_a_parent(self, path: str) -> bool:
        """Whether the path, or that of a module which holds it, ends with one of the names."""
        reversed_path = path[::-1]
        while not self._begin(reversed_path):
            _, dot, reversed_path = reversed_path.partition(".")
            if not dot:
                return False
        return True

    def _begin(self, reversed_path: str) -> bool:
        # As none of them begins another one, only the last that isn't greater than the path can begin it.
        place = bisect_right(self.backwards, reversed_path)
        return place > 0 and reversed_path.startswith(self.backwards[place - 1])


@dataclass(frozen=True, slots=True)
class TargetRule:
    """Which modules the configuration names. `names` is None for a string, which is never run as a pattern.

    `layer_lists` are the names of `layers_pattern`, each with a dot in front.
    """

    names: frozenset[str] | None
    excluded: frozenset[str]
    layers: frozenset[int] | None
    layer_lists: Endings

    def covers(self, module: str) -> bool:
        """True when PEFT would put an adapter on `module`, as far as the lists say."""
        return self.left_out_by(module) == ""

    def left_out_by(self, module: str) -> str:
        """The field of the configuration that leaves `module` out; empty where it is covered."""
        if ends_with_any(module, self.excluded):
            return "exclude_modules"
        if self.names is None or module in self.names:
            return ""
        if not ends_with_any(module, self.names):
            return "target_modules"
        return "" if self.layers is None or self._layer(module) in self.layers else "layers_to_transform"

    def _layer(self, module: str) -> int | None:
        """The first numbered part of the path, after one of `layer_lists` where given."""
        parts = module.split(".")
        for index in range(1 if self.layer_lists else 2, len(parts) - 1):
            if parts[index].isdecimal() and (not self.layer_lists or self._is_list(parts[:index])):
                return int(parts[index])
        return None

    def _is_list(self, before: list[str]) -> bool:
        return self.layer_lists.fit("." + ".".join(before))


@dataclass(frozen=True, slots=True)
class CommonSettings:
    """What every type's configuration says alike. `saved` are the names of `modules_to_save`."""

    base_name: str | None
    targets: TargetRule
    saved: Endings
    ties_weights: bool

    def saves(self, module: str) -> bool:
        """Whether `modules_to_save` names the module or one that holds it.

        As in PEFT any ending of a path will do, even one that doesn't begin at a dot.
        """
        return self.saved.fit_a_parent(module)


def common_settings(config: Config) -> CommonSettings:
    """Read the fields that all types share. Raises AdapterRefused."""
    return CommonSettings(
        base_name=_base_name(config.get("base_model_name_or_path")),
        targets=_target_rule(config),
        saved=Endings.of(module_names(config.get("modules_to_save") or [], "modules_to_save")),
        ties_weights=flag(config, "ensure_weight_tying"),
    )


def check_fields(config: Config, rules: FieldRules) -> None:
    """Refuse every field that changes the forward in a way nobody has implemented. Raises AdapterRefused."""
    accepted = {*COMMON_READ, *COMMON_HARMLESS, *rules.read, *rules.harmless}
    for name, value in config.items():
        if name in accepted or _is_neutral(value):
            continue
        if name in rules.refused:
            raise AdapterRefused(
                "unsupported_field",
                f"{name} is {shown(value)}: {rules.refused[name]} is not supported; train without it, or merge "
                "the adapter into the base",
            )
        raise AdapterRefused(
            "unknown_field",
            f"{name[:80]!r} is {shown(value)}: this field is not known here and may change what the adapter does; "
            "if it doesn't, remove it from adapter_config.json",
        )


# -- fields of a type ------------------------------------------------------------------------------------


def whole(value: object, name: str, *, least: int = 1) -> int:
    """A whole number of at least `least`; true and false are none."""
    if type(value) is not int or value < least:
        raise bad_field(name, value, "a whole number above zero" if least == 1 else f"a whole number from {least} up")
    return value


def number(value: object, name: str) -> float:
    """A number of at most a million in size."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) <= _MAX_NUMBER:
        raise bad_field(name, value, "a number of at most a million")
    return value


def flag(config: Config, name: str, *, default: bool = False) -> bool:
    """A truth value; absent and null mean `default`."""
    value = config.get(name)
    if value is None:
        return default
    if isinstance(value, bool):
        return value
    raise bad_field(name, value, "true or false")


def module_names(value: object, name: str) -> list[str]:
    """A list of module paths or endings of such."""
    if not isinstance(value, list) or not all(isinstance(item, str) and _DOTTED.fullmatch(item) for item in value):
        raise bad_field(name, value, "a list of module names")
    return value


def token_ids(value: object, name: str) -> tuple[int, ...]:
    """A list of token ids, none below zero."""
    if not isinstance(value, list) or not all(type(item) is int and item >= 0 for item in value):
        raise bad_field(name, value, "a list of token ids")
    return tuple(value)


def patterns(config: Config, name: str, read: Callable[[object, str], _T]) -> NamePatterns[_T]:
    """A field that maps patterns of module names to values, in the file's order: the first that matches counts."""
    value = config.get(name) or {}
    if not isinstance(value, dict):
        raise bad_field(name, value, "an object of module name to number")
    if len(value) > MAX_ALTERNATIVES:
        raise too_many(name, len(value), MAX_ALTERNATIVES)
    return NamePatterns(name, {key: read(item, f"{name}[{key[:80]!r}]") for key, item in value.items()})


def ends_with_any(module: str, names: frozenset[str]) -> bool:
    """Whether a name is the module's whole path or its end after a dot."""
    parts = module.split(".")
    return any(".".join(parts[index:]) in names for index in range(len(parts)))


def bad_field(name: str, value: object, expected: str) -> AdapterRefused:
    """A field of a type or range that PEFT wouldn't write."""
    return AdapterRefused("bad_field", f"{name} is {shown(value)} and must be {expected}; fix adapter_config.json")


def too_many(name: str, count: int, most: int) -> AdapterRefused:
    """A list or object that is longer than any model could need."""
    return AdapterRefused("bad_field", f"{name} has {count} entries; at most {most} are accepted")


def shown(value: object) -> str:
    """A value for a message, cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _target_rule(config: Config) -> TargetRule:
    targets = config.get("target_modules")
    by_pattern = targets is None or isinstance(targets, str)
    excluded = config.get("exclude_modules")
    layers = config.get("layers_to_transform")
    if isinstance(layers, int) and not isinstance(layers, bool):
        layers = [layers]
    if layers and not (isinstance(layers, list) and all(type(layer) is int for layer in layers)):
        raise bad_field("layers_to_transform", layers, "a list of layer numbers")
    lists = config.get("layers_pattern") or []
    return TargetRule(
        names=None if by_pattern else frozenset(module_names(targets, "target_modules")),
        # A string would be a regular expression; the tensors in the file already show what it left out.
        excluded=(
            frozenset() if isinstance(excluded, str) else frozenset(module_names(excluded or [], "exclude_modules"))
        ),
        layers=frozenset(layers) if isinstance(layers, list) and layers else None,
        layer_lists=Endings.of("." + name for name in module_names(_listed(lists), "layers_pattern")),
    )


def _listed(value: object) -> object:
    return value if isinstance(value, list) else [value]


def _base_name(value: object) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str) or len(value) > 1024 or not value.isprintable():
        raise bad_field("base_model_name_or_path", value, "the base model's name")
    return value


def _is_neutral(value: object) -> bool:
    return value is None or value is False or value == "" or value == [] or value == {}
