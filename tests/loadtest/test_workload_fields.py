"""The tables of loadtest/README.md say of the fields what the types do."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from msgspec import inspect

from livery_loadtest.fields import BEGIN, END, described, tables

README = Path(__file__).parents[2] / "loadtest" / "README.md"


def test_the_readme_is_in_step_with_the_types() -> None:
    _, _, after = README.read_text().partition(BEGIN)
    written, mark, _ = after.partition(END)
    assert mark, f"{README} has no table"
    assert written.strip() == tables().strip(), f"run python -m livery_loadtest.fields and put it into {README}"


@pytest.mark.parametrize("kind", described().values(), ids=lambda kind: kind.__name__)
def test_every_field_is_explained(kind: type[msgspec.Struct]) -> None:
    """In the docstring of its own part, or in that of the part that it is."""
    told = inspect.type_info(kind)
    assert isinstance(told, inspect.StructType)
    parts = {field.name for field in told.fields if any(part is not kind for part in structs(field.type))}
    explained = set(re.findall(r"`(\w+)`", kind.__doc__ or ""))
    assert {field.name for field in told.fields} <= explained | parts


def test_every_part_of_a_workload_is_there() -> None:
    def below(kind: type[msgspec.Struct]) -> set[type[msgspec.Struct]]:
        told = inspect.type_info(kind)
        assert isinstance(told, inspect.StructType)
        found = {part for field in told.fields for part in structs(field.type)}
        return found.union(*map(below, found)) if found else found

    suite = described()["A suite"]
    assert below(suite) | {suite} == set(described().values())


def structs(of_type: inspect.Type) -> set[type[msgspec.Struct]]:
    match of_type:
        case inspect.StructType():
            return {of_type.cls}
        case inspect.UnionType():
            return set().union(*map(structs, of_type.types))
        case inspect.VarTupleType():
            return structs(of_type.item_type)
    return set()
