"""The list of codes in AdapterRefused's description is what the package refuses with: no more and no fewer."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import livery_adapters
from livery_adapters.refusal import AdapterRefused

PACKAGE = Path(livery_adapters.__file__).parent


def raised(source: str) -> Iterator[str]:
    """The codes that AdapterRefused is made with: literals, the arms of a choice, and `code="..."` of helpers."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            made = isinstance(node.func, ast.Name) and node.func.id == "AdapterRefused"
            given = node.args[:1] if made else [word.value for word in node.keywords if word.arg == "code"]
            for part in given:
                arms = [part.body, part.orelse] if isinstance(part, ast.IfExp) else [part]
                yield from (arm.value for arm in arms if isinstance(arm, ast.Constant) and isinstance(arm.value, str))


def listed() -> set[str]:
    text = (AdapterRefused.__doc__ or "").partition("Codes:")[2]
    return set(re.findall(r"[a-z_]+", text))


def test_every_code_is_listed() -> None:
    found = {code for path in PACKAGE.rglob("*.py") for code in raised(path.read_text())}
    assert len(found) > 40  # or the search is broken
    assert found - listed() == set()


def test_every_listed_code_is_used() -> None:
    """Somewhere: some are chosen by a table, some are the server's."""
    root = PACKAGE.parents[1]
    text = "\n".join(path.read_text() for part in ("adapters", "server") for path in (root / part).rglob("*.py"))
    assert [code for code in sorted(listed()) if text.count(f'"{code}"') == 0] == []
