"""The table of request fields in server/docs/api.md, read off the schemas and the rules that requests are checked by.

python tests/api/field_table.py                      # print it
python tests/api/field_table.py --write server/docs/api.md    # put it between its marks there
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from livery.api.anthropic_body import MessagesBody
from livery.api.body import Body, WholeBody
from livery.api.ignored import IGNORED
from livery.api.responses_body import ResponsesBody
from livery.api.retold_body import RetoldBody, RetoldStreamOptions
from livery.api.schemas import ChatCompletionBody, CompletionBody, StreamOptions

BEGIN, END = "<!-- fields -->", "<!-- /fields -->"
HONOURED, IGNORES, REFUSED = "honoured", "ignored", "400"
ROUTES: dict[str, type[WholeBody]] = {
    "chat completions": ChatCompletionBody,
    "completions": CompletionBody,
    "responses": ResponsesBody,
    "messages": MessagesBody,
}
PAGE = Path(__file__).parents[2] / "server" / "docs" / "api.md"


class Entry(NamedTuple):
    """What one route does with one field (the first word), and a note on it."""

    status: str
    note: str


def fields(body: type[WholeBody]) -> dict[str, Entry]:
    """Every field that a route knows, those inside `stream_options` by their dotted names."""
    retold = issubclass(body, RetoldBody)
    found = fields(ChatCompletionBody) if retold else {}  # which it hands on
    found |= _own(body)
    options = _own(RetoldStreamOptions if retold else StreamOptions)
    return found | {f"stream_options.{name}": entry for name, entry in options.items()}


def _own(body: type[Body]) -> dict[str, Entry]:
    """What is refused may stand in the schema too, as what clients send elsewhere."""
    found = {name: _entry(field) for name, field in body.model_json_schema()["properties"].items()}
    return found | {rule.name: Entry(REFUSED + _unless(rule.harmless.values), rule.remedy) for rule in body.unsupported}


def table() -> str:
    """The table as Markdown."""
    routes = {name: fields(body) for name, body in ROUTES.items()}
    lines = [f"| field | {' | '.join(routes)} | |", "|---|" + "---|" * (len(routes) + 1)]
    for name in sorted({name for known in routes.values() for name in known}):
        entries = [known.get(name) for known in routes.values()]
        notes = dict.fromkeys(entry.note for entry in entries if entry and entry.note)
        cells = [entry.status if entry else "–" for entry in entries]
        lines.append(f"| `{name}` | {' | '.join(cells)} | {'; '.join(notes)} |")
    return "\n".join(lines)


def between_marks(document: str) -> str:
    """What a document has between the marks."""
    return document.partition(BEGIN)[2].partition(END)[0].strip()


def _entry(field: Mapping[str, Any]) -> Entry:
    note = str(field.get("description", ""))
    return Entry(IGNORES, note) if field.get(IGNORED) else Entry(HONOURED, note or ", ".join(_bounds(field)))


def _bounds(field: Mapping[str, Any]) -> Iterator[str]:
    """The range of a number, or how long a list may be."""
    for kind in field.get("anyOf", [field]):
        low, high = kind.get("minimum"), kind.get("maximum")
        if kind.get("type") in ("integer", "number") and abs(high or 0) < 1 << 31 and abs(low or 0) < 1 << 31:
            if high is not None:
                yield f"above {kind['exclusiveMinimum']:g} to {high:g}" if low is None else f"{low:g} to {high:g}"
            elif low is not None:
                yield f"at least {low:g}"
        elif kind.get("type") == "array" and "maxItems" in kind:
            yield f"at most {kind['maxItems']}"


def _unless(harmless: tuple[object, ...]) -> str:
    return " unless " + " or ".join(f"`{json.dumps(value)}`" for value in harmless) if harmless else ""


def main() -> None:
    parser = argparse.ArgumentParser(description="What becomes of every field of a request.")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table between the marks in this file")
    options = parser.parse_args()
    if options.write is None:
        print(table())
        return
    before, begin, rest = options.write.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{options.write} has no {BEGIN} … {END}")
    options.write.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
