"""Arguments that a model writes as bare text: their JSON, by what the function's schema says of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NoReturn

_OF_PYTHON = {"true": "true", "false": "false", "none": "null", "null": "null"}  # as templates print these to a model
_KINDS = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null", list: "array"}


def types_of(parameters: Mapping[str, object] | None, name: str) -> frozenset[str]:
    """The types that a schema allows an argument; none where it doesn't say."""
    if parameters is None:
        return frozenset()
    properties = parameters.get("properties")
    schema = properties.get(name) if isinstance(properties, Mapping) else None
    return _types(parameters.get("additionalProperties") if schema is None else schema, parameters, depth=8)


def is_text(types: frozenset[str]) -> bool:
    """Whether an argument's text is its value as it stands."""
    return not types or "string" in types


def as_json(text: str, types: frozenset[str]) -> str:
    """The JSON of an argument's text: what was written where that is JSON, else a string of it."""
    said = text.strip()
    if types & {"boolean", "null"} and said.lower() in _OF_PYTHON:
        return _OF_PYTHON[said.lower()]
    try:
        json.loads(said, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)
    return said


def _types(schema: object, root: Mapping[str, object], depth: int) -> frozenset[str]:
    if not isinstance(schema, Mapping) or not depth:
        return frozenset()
    said = schema.get("type")
    if isinstance(said, str):
        return frozenset((said,))
    if isinstance(said, list):
        return frozenset(one for one in said if isinstance(one, str))
    if isinstance(place := schema.get("$ref"), str):
        return _types(_found(place, root), root, depth - 1)
    if isinstance(values := schema.get("enum", [schema["const"]] if "const" in schema else None), list):
        return frozenset(_KINDS.get(type(value), "object") for value in values)
    branches = [
        branch for key in ("anyOf", "oneOf", "allOf") if isinstance(some := schema.get(key), list) for branch in some
    ]
    return frozenset[str]().union(*(_types(branch, root, depth - 1) for branch in branches))


def _found(place: str, root: Mapping[str, object]) -> object:
    """What a reference within the same schema leads to; None for others."""
    if not place.startswith("#/"):
        return None
    found: object = root
    for step in place[2:].split("/"):
        found = found.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
    return found


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
