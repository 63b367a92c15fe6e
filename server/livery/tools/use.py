"""What a request asks for with its tools: which functions, whether they must be called, what its answer must match."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from livery.engine.base import Grammar
from livery.tools.events import Part, TextParser, ToolFormat
from livery.tools.json_reader import JsonReader, NotJson
from livery.tools.marked import MarkedCalls, Marks
from livery.tools.strict import marked_calls_grammar

MAX_CALLS = 16  # in an answer that must be calls; a small model would go on and on
# What says in a schema that there may be properties it doesn't list itself.
MORE_PROPERTIES = {
    "additionalProperties",
    "patternProperties",
    "unevaluatedProperties",
    "$ref",
    "anyOf",
    "allOf",
    "oneOf",
}
LIST = Marks((), bare=True)  # what such an answer is


@dataclass(frozen=True, slots=True)
class Function:
    """A function that a model may call. `parameters` is a JSON schema of an object, None for a function without any."""

    name: str
    parameters: Mapping[str, object] | None = None
    strict: bool = False


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The functions of a request, and whether it must call: any of them, or the one `named`."""

    functions: tuple[Function, ...]
    choice: Literal["auto", "required", "named"] = "auto"
    named: str = ""
    parallel: bool = True

    @property
    def grammar(self) -> Grammar | None:
        """What the whole answer must match, where it must be calls: arguments then fit their function's schema."""
        if self.choice == "auto":
            return None
        if self.choice == "named":
            function = next(function for function in self.functions if function.name == self.named)
            return Grammar("json_schema", json.dumps(_closed(function.parameters)))
        places, call = _a_call({each.name: _closed(each.parameters) for each in self.functions})
        most = MAX_CALLS if self.parallel else 1
        schema = {"$defs": places, "type": "array", "minItems": 1, "maxItems": most, "items": call}
        return Grammar("json_schema", json.dumps(schema))

    @property
    def strict(self) -> int | None:
        """Where the first function stands whose calls are to fit its schema although none must be made."""
        if self.choice != "auto":
            return None
        return next((at for at, function in enumerate(self.functions) if function.strict), None)

    def strict_grammar(self, around: tuple[str, str], special: Mapping[str, int]) -> Grammar:
        """What an answer must match that may hold calls between these marks; `special` are those that are tokens."""
        loose = {"type": "object"}
        places, call = _a_call(
            {each.name: _closed(each.parameters) if each.strict else loose for each in self.functions}
        )
        return marked_calls_grammar(around, {"$defs": places, **call}, special, parallel=self.parallel)

    def parser(self, form: ToolFormat | None) -> TextParser | None:
        """For one answer; None where calls can't be told from text, because no format is known."""
        if self.choice == "named":
            return NamedCall(self.named)
        functions = {function.name: function.parameters for function in self.functions}
        if self.choice == "required":
            return MarkedCalls(LIST, functions)
        return form.parser(functions) if form else None


class NamedCall:
    """The text parser for an answer that is nothing but the arguments of one function."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._reader = JsonReader()
        self._text = ""
        self._failed = False

    def feed(self, text: str) -> list[Part]:
        if self._failed:
            return [Part("content", text)]
        parts = [] if self._text else [Part("call", self._name)]
        written = []
        for char in text:
            self._text += char
            try:
                written.append(self._reader.push(char) or "")
            except NotJson:
                self._failed = True
                break
        parts.append(Part("arguments", "".join(written)))
        if self._failed:
            self._text += text[len(written) + 1 :]
            parts += [Part("broken"), Part("content", self._text)]
        return parts

    def finish(self) -> list[Part]:
        if self._failed or not self._text:
            return []
        return [Part("complete")] if self._reader.done else [Part("broken"), Part("content", self._text)]


def call_id() -> str:
    """An id where no format asks for another form."""
    return f"call_{secrets.token_hex(12)}"


def _a_call(functions: Mapping[str, Mapping[str, object]]) -> tuple[dict[str, object], dict[str, object]]:
    """The schema of a call of one of the functions, whose arguments have these schemas, and what it refers to."""
    places = {f"f{at}": _moved(arguments, f"f{at}") for at, arguments in enumerate(functions.values())}
    calls: list[dict[str, object]] = [
        {
            "type": "object",
            "properties": {"name": {"const": name}, "arguments": {"$ref": f"#/$defs/f{at}"}},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for at, name in enumerate(functions)
    ]
    return dict(places), {"anyOf": calls} if len(calls) > 1 else calls[0]


def _closed(parameters: Mapping[str, object] | None) -> dict[str, object]:
    """The schema of arguments, without properties that the function doesn't name unless it says that it takes them."""
    schema: dict[str, object] = {"type": "object", **({"properties": {}} if parameters is None else parameters)}
    if "properties" in schema and not MORE_PROPERTIES & schema.keys():
        schema["additionalProperties"] = False
    return schema


def _moved(schema: object, place: str) -> object:
    """A schema as it is to stand in `$defs` under a name: its references to itself go there."""
    if isinstance(schema, list):
        return [_moved(item, place) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: f"#/$defs/{place}{value[1:]}"
        if key == "$ref" and isinstance(value, str) and value.startswith("#")
        else _moved(value, place)
        for key, value in schema.items()
    }
