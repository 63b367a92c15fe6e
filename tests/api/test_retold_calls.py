"""Calls of functions and thoughts through /v1/responses and /v1/messages: the chat's, in each API's own words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from api.live_server import BASE, LiveServer, Setup
from livery.engine.fake import Behaviour
from livery.models import resolve_model
from livery.text import Tokenizer
from livery.tokenizer_files import TokenizerFiles, load_tokenizer_files
from text.template_styles import HERMES

CITY = '{"city": "Zürich"}'
WEATHER = f'<tool_call>\n{{"name": "weather", "arguments": {CITY}}}\n</tool_call>'
SAID = f'Let me look.\n{WEATHER}<tool_call>{{"name": "now"}}</tool_call>'
THOUGHT = f"<think>It may rain.</think>{SAID}"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: list[Any] = [{"type": "function", "name": "weather", "parameters": SCHEMA}, {"type": "function", "name": "now"}]
THEIRS: list[Any] = [{"name": "weather", "input_schema": SCHEMA}, {"name": "now", "input_schema": {"type": "object"}}]
BODY: dict[str, Any] = {"model": BASE, "max_tokens": 128, "messages": [{"role": "user", "content": "Weather?"}]}


class Speaking:
    """A server whose engine says what it is told, with a template that knows tools and thoughts."""

    def __init__(self, folder: Any) -> None:
        files = load_tokenizer_files(resolve_model("smollm2-135m-instruct").path)
        template = HERMES + "{# </think> #}"  # by which the reasoning's style is known
        self.tokenizer = Tokenizer(TokenizerFiles(files.tokenizer, template, files.named_tokens))
        self.says = THOUGHT
        behaviour = Behaviour(script=lambda _: [*self.tokenizer.encode(self.says), 0])
        self.server = LiveServer(Setup(behaviour, max_model_len=8192, eos_token_ids=(0,)), self.tokenizer, folder)
        self.server.start()

    @property
    def read(self) -> str:
        """What the engine was asked to read last, as text."""
        return self.tokenizer.decode_all(self.server.engine.requests[-1].prompt_token_ids)

    def responses(self, **fields: Any) -> Any:
        client = openai.OpenAI(
            base_url=f"{self.server.url}/v1", api_key="none", max_retries=0, _strict_response_validation=True
        )
        return client.responses.create(**{"model": BASE, "input": "Weather?", "tools": TOOLS, **fields})

    def messages(self, **fields: Any) -> httpx.Response:
        body = {**BODY, "tools": THEIRS, **fields}
        return httpx.post(f"{self.server.url}/v1/messages", json=body, timeout=30)

    def message_events(self, **fields: Any) -> list[Any]:
        lines = self.messages(stream=True, **fields).text.split("\n")
        return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]

    def cut_in_the_call(self) -> int:
        """Tokens of what it says up to the middle of the first call's arguments."""
        return len(self.tokenizer.encode(THOUGHT[: THOUGHT.index("rich")]))


@pytest.fixture(scope="module")
def speaking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Speaking]:
    made = Speaking(tmp_path_factory.mktemp("says"))
    yield made
    made.server.stop()


def test_a_response_has_thoughts_text_and_calls(speaking: Speaking) -> None:
    answer = speaking.responses()
    thought, text, weather, now = answer.output
    assert (thought.type, thought.content[0].text) == ("reasoning", "It may rain.")
    assert (text.type, text.content[0].text.strip()) == ("message", "Let me look.")
    assert (weather.type, weather.name, json.loads(weather.arguments)) == ("function_call", "weather", json.loads(CITY))
    assert (now.name, json.loads(now.arguments)) == ("now", {})
    assert weather.call_id and weather.call_id != now.call_id
    assert (answer.status, weather.status) == ("completed", "completed")
    assert '"name": "weather"' in speaking.read


def test_a_streamed_response_tells_each_call_as_an_item(speaking: Speaking) -> None:
    events = list(speaking.responses(stream=True))
    output = events[-1].response.output
    assert [item.type for item in output] == ["reasoning", "message", "function_call", "function_call"]
    for index, item in enumerate(output):
        own = [event for event in events if getattr(event, "output_index", None) == index]
        assert own[0].type == "response.output_item.added" and own[-1].type == "response.output_item.done"
        assert own[-1].item == item
        if item.type == "function_call":
            pieces = [event.delta for event in own if event.type == "response.function_call_arguments.delta"]
            (done,) = [event for event in own if event.type == "response.function_call_arguments.done"]
            assert "".join(pieces) == done.arguments == item.arguments
            assert (own[0].item.name, own[0].item.call_id) == (item.name, item.call_id)
    assert json.loads(output[2].arguments) == json.loads(CITY)


def test_a_call_that_is_cut_is_no_item_of_a_response(speaking: Speaking) -> None:
    cut = speaking.cut_in_the_call()
    events = list(speaking.responses(stream=True, max_output_tokens=cut))
    kinds = [event.type for event in events]
    (added,) = [event for event in events if event.type == "response.output_item.added" and event.output_index == 2]
    (done,) = [event for event in events if event.type == "response.output_item.done" and event.output_index == 2]
    assert (added.item.type, added.item.name, done.item.status) == ("function_call", "weather", "incomplete")
    assert "response.function_call_arguments.delta" in kinds
    assert "response.function_call_arguments.done" not in kinds
    final = events[-1].response
    assert (final.status, [item.type for item in final.output]) == ("incomplete", ["reasoning", "message", "message"])
    whole = speaking.responses(max_output_tokens=cut)
    assert (whole.status, [item.type for item in whole.output]) == ("incomplete", ["reasoning", "message"])
    assert final.output_text == whole.output_text


def test_a_whole_call_before_the_cut_is_complete(speaking: Speaking) -> None:
    cut = len(speaking.tokenizer.encode(THOUGHT[: THOUGHT.index("</tool_call>")]))
    for output in (
        list(speaking.responses(stream=True, max_output_tokens=cut))[-1].response.output,
        speaking.responses(max_output_tokens=cut).output,
    ):
        assert [(item.type, item.status) for item in output[2:]] == [("function_call", "completed")]


def test_a_message_has_thoughts_text_and_calls(speaking: Speaking) -> None:
    message = speaking.messages().json()
    thought, text, weather, now = message["content"]
    assert (thought["type"], thought["thinking"]) == ("thinking", "It may rain.")
    assert (text["type"], text["text"].strip()) == ("text", "Let me look.")
    assert (weather["type"], weather["name"], weather["input"]) == ("tool_use", "weather", json.loads(CITY))
    assert (now["name"], now["input"]) == ("now", {})
    assert weather["id"] and weather["id"] != now["id"]
    assert message["stop_reason"] == "tool_use"
    assert '"name": "weather"' in speaking.read


def test_a_streamed_message_tells_each_call_as_a_block(speaking: Speaking) -> None:
    events = speaking.message_events()
    started = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    assert [block["type"] for block in started] == ["thinking", "text", "tool_use", "tool_use"]
    assert (started[2]["name"], started[2]["input"]) == ("weather", {})
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta" and event["index"] == 2]
    assert {delta["type"] for delta in deltas} == {"input_json_delta"}
    assert json.loads("".join(delta["partial_json"] for delta in deltas)) == json.loads(CITY)
    (end,) = [event for event in events if event["type"] == "message_delta"]
    assert end["delta"]["stop_reason"] == "tool_use"


def test_a_call_that_is_cut_is_never_told_as_whole_in_a_message(speaking: Speaking) -> None:
    events = speaking.message_events(max_tokens=speaking.cut_in_the_call())
    (call,) = [
        event["index"]
        for event in events
        if event["type"] == "content_block_start" and event["content_block"]["type"] == "tool_use"
    ]
    stopped = [event["index"] for event in events if event["type"] == "content_block_stop"]
    assert stopped == [index for index in range(4) if index != call]
    (end,) = [event for event in events if event["type"] == "message_delta"]
    assert end["delta"]["stop_reason"] == "max_tokens"


def test_the_only_call_is_told_though_one_before_it_broke(speaking: Speaking) -> None:
    broken = '<tool_call>{"name": "weather", "arguments": {"city": }}</tool_call>'
    speaking.says = broken + SAID[SAID.index("<") :]
    try:
        for output in (
            speaking.responses(parallel_tool_calls=False).output,
            list(speaking.responses(stream=True, parallel_tool_calls=False))[-1].response.output,
        ):
            text, weather = output
            assert (text.type, text.content[0].text) == ("message", broken)
            assert (weather.type, json.loads(weather.arguments)) == ("function_call", json.loads(CITY))
        alone = {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}}
        said, use = speaking.messages(**alone).json()["content"]
        assert (said["text"], use["input"]) == (broken, json.loads(CITY))
        events = speaking.message_events(**alone)
        called = [one["index"] for one in events if one.get("content_block", {}).get("type") == "tool_use"]
        stopped = [one["index"] for one in events if one["type"] == "content_block_stop"]
        assert [index for index in called if index in stopped] == called[1:], (
            "where a block stops, clients make the call"
        )
        pieces = [one["delta"] for one in events if one.get("delta") and one.get("index") == called[1]]
        assert json.loads("".join(piece["partial_json"] for piece in pieces)) == json.loads(CITY)
        assert len(called) == 2
    finally:
        speaking.says = THOUGHT


def test_a_stop_sequence_is_said_where_no_call_was_made(speaking: Speaking) -> None:
    for stop, wanted in (("look", ("stop_sequence", "look")), ('"now"', ("tool_use", None))):
        message = speaking.messages(stop_sequences=[stop]).json()
        assert (message["stop_reason"], message["stop_sequence"]) == wanted
        (end,) = [one for one in speaking.message_events(stop_sequences=[stop]) if one["type"] == "message_delta"]
        assert (end["delta"]["stop_reason"], end["delta"]["stop_sequence"]) == wanted


def test_what_came_of_a_call_is_read(speaking: Speaking) -> None:
    call = {"type": "function_call", "call_id": "a", "name": "weather", "arguments": CITY}
    output = {"type": "function_call_output", "call_id": "a", "output": "sun"}
    speaking.responses(input=[{"role": "user", "content": "Weather?"}, call, output])
    responses = speaking.read
    use = {"type": "tool_use", "id": "a", "name": "weather", "input": json.loads(CITY)}
    result = {"type": "tool_result", "tool_use_id": "a", "content": "sun"}
    history = [{"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
    speaking.messages(messages=[*BODY["messages"], *history])
    for read in (responses, speaking.read):
        assert '{"name": "weather"' in read[read.index("Weather?") :]
        assert "sun" in read[read.index("Weather?") :]


def test_what_was_thought_is_read(speaking: Speaking) -> None:
    item = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "It may rain."}]}
    said = {"role": "assistant", "content": "Take a coat."}
    question, again = {"role": "user", "content": "Weather?"}, {"role": "user", "content": "Sure?"}
    speaking.responses(input=[question, item, said, again])
    responses = speaking.read
    blocks = [{"type": "thinking", "thinking": "It may rain."}, {"type": "text", "text": "Take a coat."}]
    speaking.messages(messages=[question, {"role": "assistant", "content": blocks}, again])
    for read in (responses, speaking.read):
        assert "<think>\nIt may rain.\n</think>\nTake a coat." in read


def test_a_call_can_be_demanded(speaking: Speaking) -> None:
    speaking.says = CITY
    try:
        (item,) = speaking.responses(tool_choice={"type": "function", "name": "weather"}).output
        assert (item.type, item.name, item.arguments) == ("function_call", "weather", CITY)
        assert speaking.server.engine.requests[-1].sampling.grammar
        message = speaking.messages(tool_choice={"type": "tool", "name": "weather"}).json()
        assert [(block["type"], block["input"]) for block in message["content"]] == [("tool_use", json.loads(CITY))]
        assert speaking.server.engine.requests[-1].sampling.grammar
    finally:
        speaking.says = THOUGHT


def test_what_is_wrong_in_a_tool_is_named_as_the_client_named_it(speaking: Speaking) -> None:
    wrong = {"type": "string"}
    with pytest.raises(openai.BadRequestError) as caught:
        speaking.responses(tools=[{"type": "function", "name": "weather", "parameters": wrong}])
    assert caught.value.param == "tools.0.parameters"
    with pytest.raises(openai.BadRequestError) as caught:
        speaking.responses(tools=[{"type": "function", "name": "we ather"}])
    assert caught.value.param == "tools.0.name"
    answer = speaking.messages(tools=[{"name": "weather", "input_schema": wrong}])
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("tools.0.input_schema: ")


@pytest.mark.parametrize(
    ("arguments", "read"),
    [
        (f'{{"n": {10**21}}}', {"n": 10**21}),
        ('{"x": "\\ud83d"}', {"arguments": '{"x": "\\ud83d"}'}),  # which strict readers refuse all of the answer for
        ('{"n": 1e999}', {"arguments": '{"n": 1e999}'}),
    ],
)
def test_arguments_that_not_every_reader_takes_are_told_all_the_same(
    speaking: Speaking, arguments: str, read: Any
) -> None:
    speaking.says = f'<tool_call>{{"name": "weather", "arguments": {arguments}}}</tool_call>'
    try:
        answer = speaking.messages()
        assert answer.status_code == 200, answer.text
        (use,) = answer.json()["content"]
        assert use["input"] == read
        deltas = [one["delta"] for one in speaking.message_events() if one["type"] == "content_block_delta"]
        assert "".join(delta["partial_json"] for delta in deltas) == arguments
        (item,) = speaking.responses().output
        assert item.arguments == arguments
        assert list(speaking.responses(stream=True))[-1].response.output[0].arguments == arguments
    finally:
        speaking.says = THOUGHT


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_tells_schemas_with_whole_numbers_of_any_length(speaking: Speaking, stream: bool) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 2**64}}}
    tools = [{"type": "function", "name": "count", "parameters": schema}]
    form = {"type": "json_schema", "name": "count", "schema": schema}
    body = {"model": BASE, "input": "Hi", "tools": tools, "text": {"format": form}, "stream": stream}
    answer = httpx.post(f"{speaking.server.url}/v1/responses", json=body, timeout=30)
    assert answer.status_code == 200, answer.text
    told = answer.text.count(f'"maximum":{2**64}')
    assert told == (6 if stream else 2), "in the first two events and the last"


def test_tools_have_the_same_bounds_whichever_route_they_come_by(speaking: Speaking) -> None:
    """As many as there may be and with the longest names, and one more or longer."""

    def ask(path: str, names: list[str]) -> tuple[int, str]:
        functions = [{"type": "function", "name": name} for name in names]
        fields: dict[str, Any] = {
            "chat/completions": {"tools": [{"type": "function", "function": {"name": name}} for name in names]},
            "responses": {"input": "Hi", "tools": functions, "max_output_tokens": 1},
            "messages": {"tools": [{"name": name, "input_schema": {"type": "object"}} for name in names]},
        }[path]
        body = {**BODY, **fields, "max_tokens": 1} if path != "responses" else {"model": BASE, **fields}
        answer = httpx.post(f"{speaking.server.url}/v1/{path}", json=body, timeout=30)
        return answer.status_code, answer.text

    most = [f"{at:02}".ljust(6, "x") for at in range(128)]
    for path in ("chat/completions", "responses", "messages"):
        assert ask(path, ["x" * 128])[0] == 200, path
        assert ask(path, most)[0] == 200, path
        for names, place in ((["x" * 129], "tools.0"), ([*most, "last"], "tools")):
            status, text = ask(path, names)
            assert (status, place in text) == (400, True), (path, text)
    described = httpx.get(f"{speaking.server.url}/openapi.json", timeout=30).json()["components"]["schemas"]
    for body, tool in (
        ("ChatCompletionBody", "FunctionBody"), ("ResponsesBody", "FunctionTool"), ("MessagesBody", "MessagesTool")
    ):  # fmt: skip
        assert _bound(described[body]["properties"]["tools"], "maxItems") == 128
        assert _bound(described[tool]["properties"]["name"], "maxLength") == 128


def _bound(schema: dict[str, Any], name: str) -> int:
    """Of a field, which may be null as well."""
    return next(one[name] for one in schema.get("anyOf", [schema]) if name in one)
