"""YAML as typed values, or an error that says where, which field, what it is and what is expected instead."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
import yaml

Spec = TypeVar("Spec", bound=msgspec.Struct)


class SpecInvalid(ValueError):
    """A workload can't be used; the message names the file, the field, the value and what is expected."""


class _Loader(yaml.SafeLoader):
    """Refuses a field that is given twice, of which YAML's own would keep the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        found: dict[Hashable, Any] = super().construct_mapping(node, deep)
        if len(found) < len(node.value):
            names = [key.value for key, _ in node.value]
            twice = sorted({str(name) for name in names if names.count(name) > 1})
            raise yaml.constructor.ConstructorError(
                None, None, f"{', '.join(twice)} is given twice; give it once", node.start_mark
            )
        return found


def load_yaml(text: str, where: str) -> object:
    """What YAML says. Raises SpecInvalid."""
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise SpecInvalid(f"{where}: {error}") from error
    except ValueError as error:  # the 31st of June, or a number of thousands of digits
        raise SpecInvalid(f"{where}: a value can't be read: {error}; put it between quotes if it is text") from error


def convert(loaded: object, kind: type[Spec], where: str, kinds: Mapping[str, Sequence[str]]) -> Spec:
    """What YAML said as a struct; `kinds` has, by the end of a field's path, the words that may stand there.

    Raises SpecInvalid.
    """
    try:
        return msgspec.convert(loaded, kind)
    except msgspec.ValidationError as error:
        said, _, path = str(error).rpartition(" - at `$")
        if not said:
            raise SpecInvalid(f"{where}: {error}") from error
        path = path.removesuffix("`").lstrip(".")
        allowed = kinds.get(".".join(path.split(".")[-2:])) or kinds.get(path.rpartition(".")[2])
        remedy = f"; expected one of {', '.join(allowed)}" if allowed else ""
        field = f"{path}{_value(loaded, path)}: " if path else ""
        raise SpecInvalid(f"{where}: {field}{said}{remedy}") from error


def _value(loaded: object, path: str) -> str:
    """` is VALUE` of a plain value under a path such as `tenants[0].weight`; empty where there is none."""
    for name, index in re.findall(r"([^.\[\]]+)|\[(\d+|\.\.\.)\]", path):
        if isinstance(loaded, list) and index.isdigit():
            loaded = loaded[int(index)]
        elif isinstance(loaded, dict) and name in loaded:
            loaded = loaded[name]
        else:
            return ""
    return f" is {loaded!r}" if isinstance(loaded, str | int | float) else ""
