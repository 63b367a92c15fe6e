"""The kinds of custom_resources.yaml as JSON schemas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

TABLE = Path(__file__).parent / "custom_resources.yaml"
Kind = tuple[str, str]  # apiVersion, kind


def kind_of(found: dict[str, Any]) -> Kind:
    return found["apiVersion"], found["kind"]


def schemas() -> dict[Kind, dict[str, Any]]:
    """The schema of a whole object by its kind."""
    return {kind_of(row): _whole(row) for row in yaml.safe_load(TABLE.read_text())["kinds"]}


def faults(found: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    """What is wrong with an object, each with its place."""
    errors = Draft202012Validator(schema).iter_errors(found)
    return [f"{found['kind']} {found['metadata']['name']}{error.json_path[1:]}: {error.message}" for error in errors]


def _whole(row: dict[str, Any]) -> dict[str, Any]:
    named = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string", "minLength": 1}}}
    return {
        "type": "object",
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "additionalProperties": False,
        "properties": {
            "apiVersion": {"const": row["apiVersion"]},
            "kind": {"const": row["kind"]},
            "metadata": named,
            "spec": row["spec"],
        },
    }
