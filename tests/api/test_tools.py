"""Tools through the official client: what is asked for, how calls come, streamed and whole, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from api.live_server import BASE
from api.peft_files import make_adapter
from api.scripted import ASK, CITY, FILES, NOW, SAID, STRICT, THOUGHT, TOOLS, WEATHER, Scripted, calls_of
from livery.chat_template import Conversation
from livery.reading import ParserNames
from livery.text import Tokenizer
from livery.tokenizer_files import TokenizerFiles
from text.template_styles import HERMES, STYLES


@pytest.fixture(scope="module")
def hermes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scripted]:
    scripted = Scripted(HERMES, tmp_path_factory.mktemp("hermes"), ParserNames())
    yield scripted
    scripted.server.stop()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scripted]:
    """The demo model's template, which has no place for tools, and no format named."""
    folder = tmp_path_factory.mktemp("demo")
    make_adapter(folder / "adapters" / ".pool" / "one", seed=1)
    scripted = Scripted(FILES.chat_template, folder, ParserNames())
    yield scripted
    scripted.server.stop()


@pytest.fixture(scope="module")
def demo_told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scripted]:
    scripted = Scripted(FILES.chat_template, tmp_path_factory.mktemp("told"), ParserNames(tools="hermes"))
    yield scripted
    scripted.server.stop()


@pytest.mark.parametrize("style", STYLES)
def test_calls_come_as_the_template_of_the_base_has_them(style: str, tmp_path: Path) -> None:
    scripted = Scripted(STYLES[style], tmp_path, ParserNames())
    try:
        choice = scripted.whole(SAID[style], tools=TOOLS)
        assert choice.finish_reason == "tool_calls"
        assert calls_of(choice.message) == [("weather", {"city": "Zürich"})]
        assert choice.message.content == ("Let me look." if style == "hermes" else None)
        expected = scripted.tokenizer.encode_chat(Conversation(ASK, tools=TOOLS))
        assert scripted.last.prompt_token_ids == expected
        if style == "mistral":
            assert len(choice.message.tool_calls[0].id) == 9
    finally:
        scripted.server.stop()


def test_streamed_calls_have_openais_shape(hermes: Scripted) -> None:
    says = SAID["hermes"] + '<tool_call>{"name": "now"}</tool_call>'
    choices = hermes.streamed(says, tools=TOOLS)
    deltas = [call for choice in choices for call in choice.delta.tool_calls or []]
    firsts = [call for call in deltas if call.id]
    assert [(call.index, call.type, call.function.name, call.function.arguments) for call in firsts] == [
        (0, "function", "weather", ""),
        (1, "function", "now", "{}"),
    ]
    assert len({call.id for call in firsts}) == 2
    pieces = [call for call in deltas if not call.id]
    assert all(call.function.name is None and call.type is None for call in pieces)
    assert "".join(call.function.arguments for call in pieces if call.index == 0) == CITY
    assert len([call for call in pieces if call.index == 0]) > 1
    assert "".join(choice.delta.content or "" for choice in choices) == "Let me look."
    assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["tool_calls"]


def test_the_clients_own_helper_puts_a_stream_together(hermes: Scripted) -> None:
    hermes.says = SAID["hermes"]
    with hermes.server.client().chat.completions.stream(model=BASE, messages=ASK, tools=[STRICT]) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion().choices[0]
    assert "tool_calls.function.arguments.delta" in kinds
    assert "tool_calls.function.arguments.done" in kinds
    assert calls_of(final.message) == [("weather", {"city": "Zürich"})]
    assert final.finish_reason == "tool_calls"
    assert final.message.content == "Let me look."


def test_strict_functions_are_held_to_their_schemas_though_they_need_not_be_called(hermes: Scripted) -> None:
    choice = hermes.whole(THOUGHT.removesuffix("Grey.") + SAID["hermes"], tools=[NOW, STRICT])
    assert calls_of(choice.message) == [("weather", {"city": "Zürich"})]
    assert choice.message.model_extra["reasoning"] == "It rains\noften."
    grammar = hermes.last.sampling.grammar
    assert grammar is not None and grammar.kind == "lark"
    bad: Any = {"name": "x", "strict": True, "parameters": {"properties": {"y": {"type": "strin"}}}}
    with pytest.raises(openai.BadRequestError, match="Invalid type: strin") as refused:
        hermes.whole("x", tools=[{"type": "function", "function": bad}])
    assert refused.value.param == "tools"
    hermes.whole(SAID["hermes"], tools=TOOLS)
    assert hermes.last.sampling.grammar is None
    own: Any = {"type": "json_object"}
    hermes.whole("{}", tools=[STRICT], response_format=own)
    grammar = hermes.last.sampling.grammar
    assert grammar is not None and grammar.kind == "json_schema"


def test_strict_functions_of_other_formats_have_to_be_called(tmp_path: Path) -> None:
    scripted = Scripted(STYLES["llama3"], tmp_path, ParserNames())
    try:
        with pytest.raises(openai.BadRequestError, match="tool_choice 'required'") as refused:
            scripted.whole("x", tools=[NOW, STRICT])
        assert refused.value.param == "tools.1.function.strict"
        says = f'[{{"name": "weather", "arguments": {CITY}}}]'
        assert calls_of(scripted.whole(says, tools=[NOW, STRICT], tool_choice="required").message)
    finally:
        scripted.server.stop()


def test_only_the_first_of_calls_is_told_where_they_must_not_be_parallel(hermes: Scripted) -> None:
    says = SAID["hermes"] + '\n<tool_call>{"name": "now"}</tool_call>'
    choice = hermes.whole(says, tools=TOOLS, parallel_tool_calls=False)
    assert calls_of(choice.message) == [("weather", {"city": "Zürich"})]
    assert choice.finish_reason == "tool_calls"
    deltas = [choice.delta for choice in hermes.streamed(says, tools=TOOLS, parallel_tool_calls=False)]
    assert {call.index for delta in deltas for call in delta.tool_calls or []} == {0}
    assert len(calls_of(hermes.whole(says, tools=TOOLS).message)) == 2


def test_a_call_that_broke_does_not_take_the_place_of_the_only_one(hermes: Scripted) -> None:
    broken = '<tool_call>{"name": "weather", "arguments": {"city": }}</tool_call>'
    whole = f'<tool_call>{{"name": "weather", "arguments": {CITY}}}</tool_call>'
    says, asked = f'{broken}{broken}{whole}<tool_call>{{"name": "now"}}</tool_call>', {"tools": TOOLS}
    choice = hermes.whole(says, parallel_tool_calls=False, **asked)
    assert calls_of(choice.message) == [("weather", {"city": "Zürich"})]
    assert (choice.message.content, choice.finish_reason) == (broken + broken, "tool_calls")
    choices = hermes.streamed(says, parallel_tool_calls=False, **asked)
    calls = [call for choice in choices for call in choice.delta.tool_calls or []]
    # A stream can't take back the broken ones: the whole one has an index of its own, and is the last.
    assert [call.index for call in calls if call.id] == [0, 1, 2]
    assert "".join(call.function.arguments for call in calls if call.index == 2) == CITY
    assert "".join(choice.delta.content or "" for choice in choices) == broken + broken
    assert choices[-1].finish_reason == "tool_calls"


def test_every_token_is_told_once_whatever_its_text_is_read_as(hermes: Scripted) -> None:
    says = THOUGHT + SAID["hermes"]
    ids = [*hermes.tokenizer.encode(says), 0]
    asked: dict[str, Any] = {"tools": TOOLS, "extra_body": {"return_token_ids": True}}
    assert hermes.whole(says, **asked).model_extra["token_ids"] == ids
    chunks = [choice.model_extra or {} for choice in hermes.streamed(says, **asked)]
    assert [token for chunk in chunks for token in chunk.get("token_ids") or ()] == ids


def test_what_is_no_call_stays_content(hermes: Scripted) -> None:
    broken = '<tool_call>{"name": "weather", "arguments": {"city" Zürich}}</tool_call>'
    choice = hermes.whole(broken, tools=TOOLS)
    assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == (broken, None, "stop")
    streamed = hermes.streamed(broken, tools=TOOLS)
    assert "".join(choice.delta.content or "" for choice in streamed) == broken
    assert streamed[-1].finish_reason == "stop"


def test_a_call_cut_short_is_no_call(hermes: Scripted) -> None:
    choice = hermes.whole(SAID["hermes"], tools=TOOLS, max_tokens=20)
    assert choice.finish_reason == "length"
    assert choice.message.tool_calls is None
    assert choice.message.content.startswith("Let me look.\n<tool_call>")


@pytest.mark.parametrize("fields", [{}, {"tools": TOOLS, "tool_choice": "none"}])
def test_without_anything_to_call_text_is_text(hermes: Scripted, fields: dict[str, Any]) -> None:
    choice = hermes.whole(SAID["hermes"], **fields)
    assert (choice.message.content, choice.message.tool_calls) == (SAID["hermes"], None)
    assert hermes.last.sampling.grammar is None


def test_required_answers_are_held_to_a_list_of_calls(hermes: Scripted) -> None:
    says = f'[{{"name": "weather", "arguments": {CITY}}}, {{"name": "now", "arguments": {{}}}}]'
    choice = hermes.whole(says, tools=TOOLS, tool_choice="required")
    assert calls_of(choice.message) == [("weather", {"city": "Zürich"}), ("now", {})]
    assert (choice.message.content, choice.finish_reason) == (None, "tool_calls")
    grammar = hermes.last.sampling.grammar
    assert grammar is not None
    schema = json.loads(grammar.source)
    assert (grammar.kind, schema["type"], schema["minItems"]) == ("json_schema", "array", 1)
    assert schema["maxItems"] > 1
    hermes.whole(says, tools=TOOLS, tool_choice="required", parallel_tool_calls=False)
    grammar = hermes.last.sampling.grammar
    assert grammar is not None
    assert json.loads(grammar.source)["maxItems"] == 1


def test_a_named_function_is_called_with_the_whole_answer(hermes: Scripted) -> None:
    named: Any = {"type": "function", "function": {"name": "weather"}}
    choice = hermes.whole(CITY, tools=TOOLS, tool_choice=named)
    assert calls_of(choice.message) == [("weather", {"city": "Zürich"})]
    assert (choice.message.content, choice.finish_reason) == (None, "tool_calls")
    grammar = hermes.last.sampling.grammar
    assert grammar is not None
    assert json.loads(grammar.source)["required"] == ["city"]
    cut = hermes.whole(CITY, tools=TOOLS, tool_choice=named, max_tokens=3)
    assert (cut.message.tool_calls, cut.finish_reason) == (None, "length")
    assert CITY.startswith(cut.message.content)


def test_schemas_that_refer_to_themselves_still_do_within_the_list(hermes: Scripted) -> None:
    tree = {
        "type": "object",
        "properties": {"left": {"$ref": "#"}, "leaf": {"$ref": "#/$defs/leaf"}},
        "$defs": {"leaf": {"type": "integer"}},
    }
    tool: Any = {"type": "function", "function": {"name": "plant", "parameters": tree}}
    hermes.whole("[]", tools=[NOW, tool], tool_choice="required")
    grammar = hermes.last.sampling.grammar
    assert grammar is not None
    properties = json.loads(grammar.source)["$defs"]["f1"]["properties"]
    assert properties == {"left": {"$ref": "#/$defs/f1"}, "leaf": {"$ref": "#/$defs/f1/$defs/leaf"}}


def test_a_template_without_tools_refuses_them_with_a_remedy(demo: Scripted) -> None:
    with pytest.raises(openai.BadRequestError, match="--tool-parser") as refused:
        demo.whole("x", tools=TOOLS)
    assert refused.value.param == "tools"
    call: Any = {"id": "1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    history: Any = [*ASK, {"role": "assistant", "content": None, "tool_calls": [call]}]
    with pytest.raises(openai.BadRequestError, match="--tool-parser") as refused:
        demo.server.client().chat.completions.create(model=BASE, messages=history)
    assert refused.value.param == "messages"
    assert demo.whole("x", tools=TOOLS, tool_choice="none").message.content == "x"


def test_a_named_format_tells_a_model_whose_template_does_not(demo_told: Scripted) -> None:
    choice = demo_told.whole(SAID["hermes"], tools=TOOLS)
    assert calls_of(choice.message) == [("weather", {"city": "Zürich"})]
    shown = demo_told.tokenizer.decode_all(demo_told.last.prompt_token_ids)
    assert json.dumps(WEATHER, ensure_ascii=False) in shown.partition("<|im_end|>")[0]
    call: Any = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": CITY}}
    history: Any = [
        {"role": "system", "content": "Be brief."},
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "grey"},
    ]
    demo_told.server.client().chat.completions.create(model=BASE, messages=history, tools=TOOLS)
    shown = demo_told.tokenizer.decode_all(demo_told.last.prompt_token_ids)
    assert "<|im_start|>system\nBe brief.\n\nYou may call" in shown
    assert f'<tool_call>\n{{"name": "weather", "arguments": {CITY}}}\n</tool_call><|im_end|>' in shown
    assert "<|im_start|>tool\ngrey<|im_end|>" in shown


def test_prompts_are_looked_at_with_their_tools(demo_told: Scripted) -> None:
    demo_told.whole("x", tools=TOOLS)
    url = f"{demo_told.server.url}/tokenize"
    looked = httpx.post(url, json={"model": BASE, "messages": ASK, "tools": TOOLS}, timeout=30).json()
    assert looked["tokens"] == demo_told.last.prompt_token_ids


def test_calls_come_as_the_adapters_own_template_has_them(demo: Scripted) -> None:
    profile = {"chat_template": STYLES["mistral"]}
    answer = httpx.put(
        f"{demo.server.url}/v1/adapters/mistral", json={"source": ".pool/one", "profile": profile}, timeout=30
    )
    assert answer.status_code == 200, answer.text
    demo.says = SAID["mistral"]
    choice = demo.server.client().chat.completions.create(model="mistral", messages=ASK, tools=TOOLS).choices[0]
    assert calls_of(choice.message) == [("weather", {"city": "Zürich"})]
    files = TokenizerFiles(FILES.tokenizer, STYLES["mistral"], FILES.named_tokens)
    assert demo.last.prompt_token_ids == Tokenizer(files).encode_chat(Conversation(ASK, tools=TOOLS))


def test_a_profile_names_the_format_of_calls(demo: Scripted) -> None:
    put = {"source": ".pool/one", "profile": {"tool_parser": "hermes"}}
    answer = httpx.put(f"{demo.server.url}/v1/adapters/named", json=put, timeout=30)
    assert answer.status_code == 200, answer.text
    demo.says = SAID["hermes"]
    choice = demo.server.client().chat.completions.create(model="named", messages=ASK, tools=TOOLS).choices[0]
    assert calls_of(choice.message) == [("weather", {"city": "Zürich"})]


def test_a_profiles_format_is_for_answers_and_never_in_the_way_of_calls(demo: Scripted) -> None:
    profile = {"tool_parser": "hermes", "response_format": {"type": "json_object"}}
    put = {"source": ".pool/one", "profile": profile}
    answer = httpx.put(f"{demo.server.url}/v1/adapters/formed", json=put, timeout=30)
    assert answer.status_code == 200, answer.text
    demo.says = SAID["hermes"]
    create = demo.server.client().chat.completions.create
    choice = create(model="formed", messages=ASK, tools=TOOLS).choices[0]
    assert calls_of(choice.message) == [("weather", {"city": "Zürich"})]
    assert demo.last.sampling.grammar is None
    create(model="formed", messages=ASK, tools=[STRICT])
    grammar = demo.last.sampling.grammar
    assert grammar is not None and grammar.kind == "lark", "strict calls are held to their schemas"
    own: Any = {"type": "json_object"}
    for more in ({}, {"tools": TOOLS, "tool_choice": "none"}, {"tools": TOOLS, "response_format": own}):
        create(model="formed", messages=ASK, **more)
        grammar = demo.last.sampling.grammar
        assert grammar is not None and grammar.kind == "json_schema", more


def test_a_profiles_schema_may_have_whole_numbers_of_any_length(demo: Scripted) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 2**64}}}
    form = {"type": "json_schema", "json_schema": {"name": "count", "schema": schema}}
    put = {"source": ".pool/one", "profile": {"response_format": form}}
    answer = httpx.put(f"{demo.server.url}/v1/adapters/counting", json=put, timeout=30)
    assert answer.status_code == 200, answer.text
    told = httpx.get(f"{demo.server.url}/v1/adapters/counting/profile", timeout=30)
    assert told.json()["profile"]["response_format"] == form


def test_a_schema_that_no_answer_can_be_held_to_is_refused_by_its_own_name(hermes: Scripted) -> None:
    bad: Any = {"type": "function", "function": {"name": "x", "parameters": {"properties": {"y": {"type": "strin"}}}}}
    with pytest.raises(openai.BadRequestError, match="Invalid schema for tools: Invalid type: strin") as refused:
        hermes.whole("[]", tools=[NOW, bad], tool_choice="required")
    assert refused.value.param == "tools"


def many(count: int) -> list[Any]:
    return [{"type": "function", "function": {"name": f"f{at}"}} for at in range(count)]


BIG: Any = {"type": "function", "function": {"name": "big", "description": "x" * 300_000}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": []}, "tools"),
        ({"tools": many(129)}, "tools"),
        ({"tools": [BIG]}, "tools"),
        ({"tools": [NOW, NOW]}, "tools"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools.0.type"),
        ({"tools": [{"type": "function"}]}, "tools.0.function"),
        ({"tools": [{"type": "function", "function": {"name": "two words"}}]}, "tools.0.function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "x", "parameters": {"type": "array"}}}]},
            "tools.0.function.parameters",
        ),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "gone"}}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice.function"),
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools"}}, "tool_choice.type"),
        ({"functions": [{"name": "x"}]}, "functions"),
        ({"function_call": "auto"}, "function_call"),
    ],
)
def test_what_can_not_be_asked_for(hermes: Scripted, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        hermes.server.client().chat.completions.create(model=BASE, messages=ASK, extra_body=fields)
    assert refused.value.param is not None
    assert refused.value.param.startswith(param)
    if "function" in param.split(".")[0]:
        assert "deprecated" in refused.value.message
