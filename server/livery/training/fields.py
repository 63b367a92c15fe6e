"""Every field of a training run as Markdown, from the types and their docstrings.

    python -m livery.training.fields

prints what stands in server/examples/train/README.md between the two marks.
"""

from __future__ import annotations

from typing import get_args

import msgspec

from livery.training.run_file import Adapter, AnyRun, Run
from livery_loadtest.fields import table

BEGIN, END = "<!-- tables: python -m livery.training.fields -->\n", "<!-- end of tables -->\n"


def described() -> dict[str, type[msgspec.Struct]]:
    """Each part of a run under its heading."""
    kinds = {f"kind: {kind.__struct_config__.tag}": kind for kind in get_args(AnyRun)}
    return {"Every run": Run} | kinds | {"adapter": Adapter}


def tables() -> str:
    """All of them. What every run has is told once; a kind's table has what it adds, or begins with otherwise."""
    return "\n".join(line for heading, kind in described().items() for line in table(heading, kind, _told(kind)))


def _told(kind: type[msgspec.Struct]) -> set[str]:
    if kind in (Run, Adapter):
        return set()
    common = {field.name: field for field in msgspec.structs.fields(Run)}
    return {
        field.name
        for field in msgspec.structs.fields(kind)
        if field.name in common and field.default == common[field.name].default
    }


def main() -> None:
    """Print them."""
    print(tables())


if __name__ == "__main__":
    main()
