"""Tool calls in text: every format, in any pieces; nothing is lost, and what isn't a call is content."""

from __future__ import annotations

import json
from typing import Any, NamedTuple, get_args

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from livery.reading import AnswerReader, CallDelta
from livery.settings import Settings
from livery.tools.events import Functions, Part, merged
from livery.tools.formats import FORMATS, NAMES, format_of
from livery.tools.reasoning import REASONING_NAMES

TYPED = {
    "type": "object",
    "$defs": {"Place": {"type": "object"}},
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "warm": {"type": ["boolean", "null"]},
        "place": {"$ref": "#/$defs/Place"},
        "unit": {"anyOf": [{"enum": ["C", "F"]}, {"type": "null"}]},
        "many": {"oneOf": [{"type": "array"}, {"type": "number"}]},
    },
}
FUNCTIONS: Functions = {"weather": TYPED, "now": None}


class Answer(NamedTuple):
    """What an answer comes to."""

    content: str
    calls: list[tuple[str, Any]]


def parts_of(form: str, pieces: list[str]) -> list[Part]:
    parser = FORMATS[form].parser(FUNCTIONS)
    return merged([part for piece in pieces for part in parser.feed(piece)] + parser.finish())


def answer_of(parts: list[Part]) -> Answer:
    """As a client puts it together, but for calls that broke."""
    content = "".join(part.text for part in parts if part.kind == "content")
    calls: dict[int, tuple[str, str]] = {}
    for part in parts:
        if part.kind == "call":
            calls[part.index] = (part.text, "")
        elif part.kind == "arguments":
            calls[part.index] = (calls[part.index][0], calls[part.index][1] + part.text)
        elif part.kind == "broken":
            del calls[part.index]
    assert sum(part.kind == "complete" for part in parts) == len(calls)
    return Answer(content, [(name, json.loads(arguments)) for name, arguments in calls.values()])


def read(form: str, text: str) -> Answer:
    return answer_of(parts_of(form, [text]))


ZURICH = ("weather", {"city": "Zürich"})
NOW: tuple[str, Any] = ("now", {})
TAGGED_ZURICH = "<function=weather>\n<parameter=city>\nZürich\n</parameter>\n</function>"
TAGGED_NOW = "<function=now>\n</function>"
CALLS = [
    ("hermes", '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>', "", [ZURICH]),
    ("hermes", 'Let me look.\n<tool_call>{"arguments": {"city": "Zürich"}, "name": "weather"}</tool_call>\n',
     "Let me look.", [ZURICH]),
    ("hermes", '<tool_call>\n{"name": "weather", "arguments": "{\\"city\\": \\"Zürich\\"}"}\n</tool_call>\n'
     '<tool_call>\n{"name": "now"}\n</tool_call>', "", [ZURICH, NOW]),
    ("hermes", '<tool_call>[{"name": "now", "arguments": null}, {"name": "now", "arguments": {}}]</tool_call>',
     "", [NOW, NOW]),
    ("hermes", '<tool_call>{"name": "now"}\n{"name": "weather", "arguments": {"city": "Zürich"}}', "", [NOW, ZURICH]),
    ("hermes", 'a <tool_call>{"name": "now"}</tool_call> b', "a  b", [NOW]),
    ("hermes", '<tool_call>{"name": "gone", "arguments": {}}</tool_call>', "", [("gone", {})]),
    ("llama3_json", '{"name": "weather", "parameters": {"city": "Zürich"}}', "", [ZURICH]),
    ("llama3_json", '\n{"type": "function", "name": "now", "parameters": {}}; {"name": "now", "parameters": {}}',
     "", [NOW, NOW]),
    ("llama3_json", '<|python_tag|>{"name": "elsewhere", "parameters": {"a": [1, 2.5e3, true]}}',
     "", [("elsewhere", {"a": [1, 2500.0, True]})]),
    ("mistral", '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Zürich"}, "id": "abcdefghi"}, '
     '{"name": "now"}]', "", [ZURICH, NOW]),
    ("mistral", '[TOOL_CALLS]weather[ARGS]{"city": "Zürich"}[TOOL_CALLS]now[CALL_ID]123456789[ARGS]{}',
     "", [ZURICH, NOW]),
    ("mistral", 'Sure.[TOOL_CALLS]now{}', "Sure.", [NOW]),
    ("phi4_mini_json", '<|tool_call|>[{"name": "weather", "arguments": {"city": "Zürich"}}]<|/tool_call|>',
     "", [ZURICH]),
    ("phi4_mini_json", 'functools[{"name": "now", "arguments": {}}]', "", [NOW]),
    ("qwen3_coder", f"<tool_call>\n{TAGGED_ZURICH}\n</tool_call>", "", [ZURICH]),
    ("qwen3_coder", f"Look:\n\n<tool_call>\n{TAGGED_NOW}\n</tool_call>\n<tool_call>{TAGGED_ZURICH}</tool_call>\n",
     "Look:", [NOW, ZURICH]),
    ("qwen3_coder", "<function=weather><parameter=city>Zürich</parameter></function> <function=now></function>",
     "", [ZURICH, NOW]),
    ("qwen3_coder", '<function=weather>\n<parameter=city>\n\n a </b> "c"\\\n\n</parameter>\n'
     "<parameter=days>\n7\n</parameter>\n<parameter=warm>\nTrue\n</parameter>\n"
     '<parameter=place>\n{"x": [1, 2]}\n</parameter>\n<parameter=unit>\nC\n</parameter>\n'
     "<parameter=many>\n1e3\n</parameter>\n<parameter=else>\n7\n</parameter>\n</function>",
     "", [("weather", {"city": '\n a </b> "c"\\\n', "days": 7, "warm": True, "place": {"x": [1, 2]}, "unit": "C",
                       "many": 1000.0, "else": "7"})]),
    ("qwen3_coder", "<function=weather><parameter=days>a few</parameter><parameter=warm>None</parameter>"
     "<parameter=many>NaN</parameter></function>",
     "", [("weather", {"days": "a few", "warm": None, "many": "NaN"})]),
]  # fmt: skip


@pytest.mark.parametrize(("form", "text", "content", "calls"), CALLS)
def test_calls_are_found(form: str, text: str, content: str, calls: list[tuple[str, Any]]) -> None:
    assert read(form, text) == Answer(content, calls)


NO_CALLS = [
    ("hermes", "No calls here, < not even <tool_cal> ones.\n"),
    ("hermes", "  leading and trailing space \n\n"),
    ("hermes", '<tool_call>{"name": "weather", "arguments": {"city": }}</tool_call>'),
    ("hermes", '<tool_call>{"name": "weather", "arguments": {"city": "Zür'),
    ("hermes", '<tool_call>{"name": 7, "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "\\ud83d", "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "weather", "arguments": {}, "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "weather", "arguments": "{\\"city\\": \\"\\ud83d\\"}"}</tool_call>'),
    ("hermes", '<tool_call>{"name": "weather", "arguments": [1]}</tool_call>'),
    ("hermes", "<tool_call>{'name': 'weather'}</tool_call>"),
    ("hermes", "<tool_call></tool_call>"),
    ("hermes", "<tool_call>[]</tool_call>"),
    ("hermes", "<tool_call>" + '{"name": "now", "arguments": {"a":' + "[" * 200),
    ("llama3_json", '{"name": "Bob", "parameters": {"age": 7}}'),
    ("llama3_json", '{"answer": 42}'),
    ("llama3_json", 'It is {"name": "now", "parameters": {}}'),
    ("llama3_json", '<|python_tag|>brave_search.call(query="x")'),
    ("llama3_json", "{ "),
    ("mistral", "[TOOL_CALLS] none today"),
    ("mistral", "[TOOL_CALLS] [,]"),
    ("mistral", "[TOOL_CALLS]two words[ARGS]{}"),
    ("mistral", "[TOOL_CALLS]now[OTHER]{}"),
    ("phi4_mini_json", "functools are a module of Python"),
    ("phi4_mini_json", "<|tool_call|>"),
    ("qwen3_coder", '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'),
    ("qwen3_coder", "<tool_call>\n<function=>\n</function>\n</tool_call>"),
    ("qwen3_coder", "a <function of time, and <functions are more"),
    ("qwen3_coder", "<tool_call>\n<function=weather>\n<parameter=city>\nZür"),
    ("qwen3_coder", "<function=weather>\n<parameter=days>\n7"),
    ("qwen3_coder", "<function=weather>\nZürich\n</function>"),
    ("qwen3_coder", "<function=now><parameter=a>1</parameter><parameter=a>2</parameter></function>"),
    ("qwen3_coder", "<function=weather><parameter=city>a</parameter>, please"),
]


@pytest.mark.parametrize(("form", "text"), NO_CALLS)
def test_what_is_no_call_is_content_to_the_letter(form: str, text: str) -> None:
    assert read(form, text) == Answer(text, [])


def test_a_call_that_breaks_late_takes_nothing_else_along() -> None:
    good = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
    bad = '<tool_call>{"name": "now", "arguments": {"a" 1}}</tool_call>'
    assert read("hermes", f"{good}{bad}{good}") == Answer(bad, [NOW, NOW])
    kinds = [part.kind for part in parts_of("hermes", [bad])]
    assert kinds == ["call", "arguments", "broken", "content"]


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_of_calls_only_the_first_that_does_not_break_is_told(size: int) -> None:
    broken, whole = '<tool_call>{"name": "f", "arguments": {"a":}}</tool_call>', '{"name": "f", "arguments": {"a": 1}}'
    text = f"{broken}<tool_call>{whole}</tool_call><tool_call>{whole}</tool_call>"
    parser = FORMATS["hermes"].parser(FUNCTIONS)
    reader = AnswerReader([parser], lambda: "id", show_reasoning=True, most_calls=1)
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    found = [read for piece in pieces for read in reader.read(piece, last=False)] + reader.read("", last=True)
    assert "".join(read.text for read in found) == broken
    calls = [call for read in found for call in read.calls]
    assert [call.index for call in calls if call.name] == [0, 1]
    assert [call for call in calls if call.broken] == [CallDelta(0, broken=True)]
    assert "".join(call.arguments for call in calls if call.index == 1) == '{"a": 1}'
    assert reader.called


def test_a_marker_inside_a_broken_call_is_seen() -> None:
    text = '<tool_call>{"name": <tool_call>{"name": "now"}</tool_call>'
    assert read("hermes", text) == Answer('<tool_call>{"name":', [NOW])


def test_arguments_come_before_the_call_is_whole() -> None:
    parser = FORMATS["hermes"].parser(FUNCTIONS)
    parser.feed('<tool_call>{"name": "weather", "argu')
    assert parser.feed('ments": {"city": "Zü') == [Part("arguments", '{"city": "Zü')]
    assert parser.feed("rich") == [Part("arguments", "rich")]


def test_line_breaks_within_strings_are_escaped() -> None:
    assert read("hermes", '<tool_call>{"name": "now", "arguments": {"code": "a\n\tb\x01"}}</tool_call>') == Answer(
        "", [("now", {"code": "a\n\tb\x01"})]
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
ARGUMENTS = st.dictionaries(st.text(max_size=6), JSON, max_size=3)
OF_JSON = sorted(FORMATS.keys() - {"qwen3_coder"})
# What TYPED takes of them, under such names.
TAGGED = st.fixed_dictionaries(
    {},
    optional={
        "city": st.text(max_size=12).filter(lambda text: "</parameter>" not in text),
        "days": st.integers(),
        "warm": st.booleans() | st.none(),
        "place": st.dictionaries(st.text(max_size=4), JSON, max_size=3),
        "unit": st.sampled_from(["C", "F"]),
        "many": st.lists(JSON, max_size=3) | st.floats(allow_nan=False, allow_infinity=False),
    },
)
WORDS = st.text("ab <[{\n", max_size=12)


def written(form: str, calls: list[tuple[str, dict[str, Any]]], before: str) -> str:
    body = FORMATS[form].call_text([{"name": name, "arguments": arguments} for name, arguments in calls])
    return f"{'' if form == 'llama3_json' else before}{body}"


@given(
    st.sampled_from(sorted(FORMATS)),
    st.lists(st.tuples(st.sampled_from(sorted(FUNCTIONS)), ARGUMENTS), min_size=1, max_size=3),
    WORDS,
    st.data(),
)
def test_pieces_make_no_difference(
    form: str, calls: list[tuple[str, dict[str, Any]]], before: str, data: st.DataObject
) -> None:
    text = written(form, calls, before)
    if data.draw(st.booleans(), "damaged"):
        at = data.draw(st.integers(0, len(text)))
        text = text[:at] + data.draw(st.sampled_from(["", "}", '"', "<", "x"])) + text[at + 1 :]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole = parts_of(form, [text])
    assert parts_of(form, pieces) == whole == parts_of(form, list(text))


@given(st.sampled_from(OF_JSON), st.lists(st.tuples(st.sampled_from(sorted(FUNCTIONS)), ARGUMENTS), min_size=1))
def test_what_was_written_is_read(form: str, calls: list[tuple[str, dict[str, Any]]]) -> None:
    assert read(form, written(form, calls, "")) == Answer("", calls)


@given(st.lists(st.tuples(st.just("weather"), TAGGED), min_size=1))
def test_what_was_written_between_tags_is_read_by_its_schema(calls: list[tuple[str, dict[str, Any]]]) -> None:
    assume("</parameter>" not in str(calls))
    assert read("qwen3_coder", written("qwen3_coder", calls, "")) == Answer("", calls)


def test_text_between_tags_comes_before_it_is_whole() -> None:
    parser = FORMATS["qwen3_coder"].parser(FUNCTIONS)
    parser.feed("<tool_call>\n<function=weather>\n<parameter=ci")
    assert merged(parser.feed('ty>\nZ"ü')) == [Part("arguments", '{"city": "Z\\"ü')]
    assert parser.feed("rich\n</para") == [Part("arguments", "rich")]
    assert parser.feed("meter>\n<parameter=days>\n1") == [Part("arguments", '"'), Part("arguments", ', "days": ')]


@given(st.sampled_from(sorted(FORMATS)), st.text(st.sampled_from('{}[]",:<>|/ab1.e \n\\'), max_size=40), st.data())
def test_no_text_is_lost(form: str, noise: str, data: st.DataObject) -> None:
    marker = data.draw(st.sampled_from(["", *FORMATS[form].markers]))
    text = f"{noise[:20]}{marker}{noise[20:]}"
    parts = parts_of(form, [text])
    if not any(part.kind == "complete" for part in parts):
        assert answer_of(parts).content == text


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("... <tool_call> ...", "hermes"),
        ("<tool_call>\n<function={{ name }}>\n<parameter=", "qwen3_coder"),
        ("<function={{ name }}>{{ arguments }}</function>", None),
        ("<tool_call>{{ name }}\n<arg_key>", None),  # GLM 4.5
        ("{{ '<|python_tag|>' }}", "llama3_json"),
        ("{{ '[TOOL_CALLS]' }}", "mistral"),
        ("<|tool|>", "phi4_mini_json"),
        ("{{ messages }}", None),
        (None, None),
    ],
)
def test_formats_are_recognised_by_the_template(template: str | None, name: str | None) -> None:
    found = format_of("auto", template)
    assert (found.name if found else None) == name
    assert format_of("none", template) is None
    assert format_of("mistral", template) is FORMATS["mistral"]


def test_the_settings_know_every_format() -> None:
    assert get_args(Settings.model_fields["tool_parser"].annotation) == NAMES
    assert get_args(Settings.model_fields["reasoning_parser"].annotation) == REASONING_NAMES
