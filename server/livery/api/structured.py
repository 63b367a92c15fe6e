"""The fields that hold an answer to a format: OpenAI's `response_format`, vLLM's `structured_outputs`, `guided_*`.

Other routes say the same in other words and build on `grammar_of`. Whether a grammar can be met is found out later.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from livery.api.body import Body
from livery.api.unsupported import UNSUPPORTED_IN_STRUCTURED_OUTPUTS, refuse_unsupported
from livery.engine.base import Grammar
from livery.refusals import InvalidParameter, UnsupportedParameter

ANY_OBJECT = Grammar("json_schema", '{"type": "object"}')
REGEX_SIGNS = re.compile(r"[^\w\s<>]|_", re.ASCII)

Schema = dict[str, Any] | bool
Choices = Annotated[list[str], Field(min_length=1, max_length=4096)]


class Held(NamedTuple):
    """What an answer is held to, and the dotted path of the field that says so."""

    grammar: Grammar
    param: str


class JsonSchemaFormat(Body):
    """A named schema. Answers follow it to the letter whether `strict` says so or not."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    schema_: Schema | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """OpenAI's field."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


class StructuredOutputs(Body):
    """vLLM's field: one of these."""

    unsupported = UNSUPPORTED_IN_STRUCTURED_OUTPUTS

    json_: Schema | str | None = Field(None, alias="json")
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: Any = None


class StructuredFields(Body):
    """The fields themselves. The guided ones are vLLM's older names; clients that still send them mean them."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | str | None = None
    guided_regex: str | None = None
    guided_choice: Choices | None = None
    guided_grammar: str | None = None

    def held(self) -> Held | None:
        """What the answer is held to. Raises InvalidParameter where several fields say so, UnsupportedParameter."""
        vllm = self.structured_outputs or StructuredOutputs.model_validate({})
        refuse_unsupported(vllm.model_extra or {}, vllm.unsupported, "structured_outputs.")
        if vllm.structural_tag is not None:
            param = "structured_outputs.structural_tag"
            raise UnsupportedParameter(f"{param} is not supported; say the same with `grammar`.", param)
        asked = {
            "response_format": grammar_of(self.response_format),
            "structured_outputs.json": _of_schema(vllm.json_),
            "structured_outputs.regex": _of_text("regex", vllm.regex),
            "structured_outputs.choice": _of_choice(vllm.choice),
            "structured_outputs.grammar": _of_text("lark", vllm.grammar),
            "structured_outputs.json_object": ANY_OBJECT if vllm.json_object else None,
            "guided_json": _of_schema(self.guided_json),
            "guided_regex": _of_text("regex", self.guided_regex),
            "guided_choice": _of_choice(self.guided_choice),
            "guided_grammar": _of_text("lark", self.guided_grammar),
        }
        held = [Held(grammar, param) for param, grammar in asked.items() if grammar is not None]
        if len(held) > 1:
            names = " and ".join(param for _, param in held)
            raise InvalidParameter(f"{names} each hold the answer to something; send one of them.", held[1].param)
        return held[0] if held else None


def grammar_of(response_format: ResponseFormat | None) -> Grammar | None:
    """What a `response_format` holds the answer to; None for plain text. Raises InvalidParameter."""
    if response_format is None or response_format.type == "text":
        return None
    if response_format.type == "json_object":
        return ANY_OBJECT
    if response_format.json_schema is None:
        param = "response_format.json_schema"
        raise InvalidParameter(f"Missing required parameter: '{param}'.", param)
    schema = response_format.json_schema.schema_
    return ANY_OBJECT if schema is None else _of_schema(schema)


def _of_schema(schema: Schema | str | None) -> Grammar | None:
    """The order of properties is the order of the schema's text."""
    if schema is None:
        return None
    return Grammar("json_schema", schema if isinstance(schema, str) else json.dumps(schema, ensure_ascii=False))


def _of_text(kind: Literal["regex", "lark"], source: str | None) -> Grammar | None:
    return None if source is None else Grammar(kind, source)


def _of_choice(choices: Choices | None) -> Grammar | None:
    """One of some texts, letter by letter."""
    if choices is None:
        return None
    return Grammar("regex", "|".join(REGEX_SIGNS.sub(_escaped, choice) for choice in choices))


def _escaped(sign: re.Match[str]) -> str:
    return f"\\x{{{ord(sign[0]):X}}}"
