"""The tables of loadtest/README.md: the suites, and every field of a workload, from the types and their docstrings.

    python -m livery_loadtest.fields

prints what stands there between the two marks.
"""

from __future__ import annotations

import inspect as python_inspect
from collections.abc import Collection, Iterator
from typing import get_args

import msgspec
from msgspec import inspect

from livery_loadtest import spec
from livery_loadtest.suites import Suite, suite, suite_names

BEGIN, END = "<!-- tables: python -m livery_loadtest.fields -->\n", "<!-- end of tables -->\n"

# The parts of a workload in the order in which they are explained, and where each may stand.
KINDS = {"arrivals": spec.Arrivals, "popularity": spec.Popularity, "prompt, output, turns": spec.Length}
PARTS = {
    "shared_prefix": spec.SharedPrefix,
    "tenants (a list)": spec.Tenant,
    "conversations": spec.Conversations,
    "cold": spec.ColdArrivals,
    "churn": spec.Churn,
    "hooks (a list)": spec.Hook,
    "structured": spec.Structured,
    "disconnects": spec.Disconnects,
    "slo": spec.Slo,
    "slopes (a list)": spec.Slope,
}


def described() -> dict[str, type[msgspec.Struct]]:
    """Every part of a workload and of a suite under its heading."""
    kinds = {
        f"{field}: {kind.__struct_config__.tag}": kind for field, union in KINDS.items() for kind in get_args(union)
    }
    return {"A workload": spec.Workload} | kinds | PARTS | {"A suite": Suite}


def tables() -> str:
    """The suites, and all fields, as Markdown."""
    suites = [suite(name) for name in suite_names()]
    lines = [
        "## The suites\n",
        "| suite | minutes | adapters | requests a second | workloads | what for |",
        "|---|---|---|---|---|---|",
        *(
            f"| `{one.name}` | {one.minutes:g} | {one.adapters:,} | {one.capacity:g} | "
            f"{', '.join(workload.name for workload in one.workloads)} | {one.notes.strip()} |"
            for one in sorted(suites, key=lambda one: one.minutes)
        ),
        "\n## Every field\n",
        *(line for heading, kind in described().items() for line in table(heading, kind)),
    ]
    return "\n".join(lines)


def table(heading: str, kind: type[msgspec.Struct], without: Collection[str] = ()) -> Iterator[str]:
    """The lines of one part's table, its docstring before; fields in `without` are explained elsewhere."""
    yield f"### {heading}\n"
    yield f"{python_inspect.getdoc(kind)}\n"
    told = inspect.type_info(kind)
    assert isinstance(told, inspect.StructType)
    fields = [
        (field, of_type)
        for field, of_type in zip(msgspec.structs.fields(kind), told.fields, strict=True)
        if field.name not in without
    ]
    if fields:
        yield "| field | takes | unless given |"
        yield "|---|---|---|"
        for field, of_type in fields:
            yield f"| `{field.name}` | {_takes(of_type.type)} | {_default(field)} |"
        yield ""


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return "must be given"
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    plain = msgspec.to_builtins(value)
    if isinstance(plain, dict):
        return f"`{msgspec.json.encode(plain).decode()}`" if plain else "none"
    return "none" if plain in (None, [], ()) else f"`{msgspec.json.encode(plain).decode()}`"


WORDS: dict[type[inspect.Type], str] = {
    inspect.BoolType: "true or false",
    inspect.StrType: "text",
    inspect.StructType: "see below",
}


def _takes(of_type: inspect.Type) -> str:
    match of_type:
        case inspect.IntType() | inspect.FloatType():
            return _range(of_type)
        case inspect.LiteralType():
            return " or ".join(f"`{value}`" for value in of_type.values)
        case inspect.VarTupleType():
            return f"a list of {_items(of_type.item_type)}"
        case inspect.DictType():
            return "a JSON schema" if isinstance(of_type.value_type, inspect.AnyType) else "name: number, …"
        case inspect.UnionType():
            kinds = [one.tag for one in of_type.types if isinstance(one, inspect.StructType) and one.tag]
            return f"kind: {', '.join(f'`{kind}`' for kind in kinds)}" if kinds else "see below"
    return WORDS[type(of_type)]


def _items(of_type: inspect.Type) -> str:
    match of_type:
        case inspect.StrType():
            return "texts"
        case inspect.IntType():
            return "whole numbers"
    return "workloads" if _name(of_type) == "Workload" else "those below"


def _name(of_type: inspect.Type) -> str:
    return of_type.cls.__name__ if isinstance(of_type, inspect.StructType) else ""


def _range(of_type: inspect.IntType | inspect.FloatType) -> str:
    """The numbers it takes; a bound of a billion or more is there to keep out nonsense and not said."""
    low = f"above {of_type.gt:g}" if of_type.gt is not None else f"{of_type.ge:g}" if of_type.ge is not None else ""
    high = of_type.le if of_type.le is not None and of_type.le < 1e9 else None
    if of_type.lt is not None:
        return f"{low}, below {of_type.lt:g}"
    whole = "" if isinstance(of_type, inspect.FloatType) else "a whole number, "
    if high is None:
        return f"{whole}{low}" if of_type.gt is not None else f"{whole}{low} or more"
    return f"{whole}{low} to {high:,.10g}" if of_type.gt is None else f"{whole}{low}, up to {high:,.10g}"


def main() -> None:
    """Print them."""
    print(tables())


if __name__ == "__main__":
    main()
