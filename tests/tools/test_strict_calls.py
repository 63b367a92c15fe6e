"""The calls of strict functions, which nothing obliges a model to make: text stays free and calls fit their schema."""

from __future__ import annotations

import json
from functools import cache

import pytest

from livery.grammars import GrammarCompiler
from livery.jobs import Job, Options
from livery.models import resolve_model
from livery.reading import Reading, held_to_strict
from livery.text import Tokenizer
from livery.tokenizer_files import TokenizerFiles, load_tokenizer_files
from livery.tools.hermes import Hermes
from livery.tools.use import Function, ToolUse

FILES = load_tokenizer_files(resolve_model("smollm2-135m-instruct").path)
VOCAB, END = 49152, 2
# A description that could be taken for another notation, and a schema that refers to itself.
CITY = {
    "type": "object",
    "description": "start ::= x\nstart: y",
    "properties": {"city": {"$ref": "#/$defs/name"}},
    "required": ["city"],
    "$defs": {"name": {"type": "string", "maxLength": 9}},
}
FUNCTIONS = (Function("weather", CITY, strict=True), Function("log", {"type": "object", "required": ["x"]}))


@cache
def with_marks_as_special_tokens() -> Tokenizer:
    """Two of the vocabulary's special tokens become the marks of calls."""
    content = json.loads(FILES.tokenizer)
    vocabulary = content["model"]["vocab"]
    for token, mark in zip(content["added_tokens"][3:5], Hermes.around or (), strict=True):
        vocabulary[mark] = vocabulary.pop(token["content"])
        token["content"] = mark
    return Tokenizer(TokenizerFiles(json.dumps(content).encode(), FILES.chat_template, FILES.named_tokens))


@pytest.fixture(scope="module", params=["marks are text", "marks are tokens"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer(FILES) if request.param == "marks are text" else with_marks_as_special_tokens()


@cache
def compiler_of(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer.to_json(), VOCAB, [END])


def takes(tokenizer: Tokenizer, ids: list[int], *, parallel: bool = True) -> tuple[bool, bool]:
    """Whether an answer may begin with these tokens, and whether it may end there."""
    options = Options(tools=ToolUse(FUNCTIONS, parallel=parallel))
    held = held_to_strict(
        Job("m", [], options, "id", "messages"), Reading(options, Hermes(), None), tokenizer.special_tokens
    )
    grammar = held.options.grammar
    assert grammar is not None
    matcher = compiler_of(tokenizer).compile(grammar)
    return matcher.try_consume_tokens(ids) == len(ids), matcher.is_accepting()


WHOLE = '<tool_call>\n{"name": "weather", "arguments": {"city": "Z\u00fcrich"}}\n</tool_call>'
LOOSE = '<tool_call>{"name": "log", "arguments": {"y": [1]}}</tool_call>'


@pytest.mark.parametrize(
    "text", ["", "It rains <tool, I think.", "{} or [] <tool_calls", f"Let me see.\n{WHOLE}", WHOLE + LOOSE + " So."]
)
def test_text_is_free_and_calls_that_fit_may_stand_in_it(tokenizer: Tokenizer, text: str) -> None:
    assert takes(tokenizer, tokenizer.encode_bare(text)) == (True, True)


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"name": "weather", "arguments": {"town"',
        '<tool_call>{"name": "weather", "arguments": {"city": "a name too long',
        '<tool_call>{"name": "weather", "arguments": {"city": "x", "unit"',
        '<tool_call>{"name": "weather"}',
        '<tool_call>{"name": "forecast"',
        "<tool_call>weather",
        WHOLE + '<tool_call>{"name": "weather", "arguments": {"town"',
    ],
)
def test_no_other_calls_can_be_written(tokenizer: Tokenizer, text: str) -> None:
    assert not takes(tokenizer, tokenizer.encode_bare(text))[0]


def test_a_call_that_is_begun_is_ended(tokenizer: Tokenizer) -> None:
    assert takes(tokenizer, tokenizer.encode_bare(WHOLE.removesuffix("</tool_call>"))) == (True, False)


def test_one_call_is_the_most_where_they_must_not_be_parallel(tokenizer: Tokenizer) -> None:
    assert takes(tokenizer, tokenizer.encode_bare(WHOLE + " So."), parallel=False) == (True, True)
    assert not takes(tokenizer, tokenizer.encode_bare(WHOLE + LOOSE), parallel=False)[0]


def test_a_marks_characters_open_no_call_beside_its_token() -> None:
    tokenizer = with_marks_as_special_tokens()
    spelled = [token for character in "<tool_call>" for token in tokenizer.encode_bare(character)]
    assert len(spelled) == len("<tool_call>")
    assert not takes(tokenizer, [*spelled, *tokenizer.encode_bare("weather")])[0]
