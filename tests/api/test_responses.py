"""POST /v1/responses with the official client, which reads every shape it gets back."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response as OpenAIResponse
from pydantic import BaseModel

from api.live_server import BASE, LiveServer, Serve, Setup, saying
from livery.api.responses_body import ResponsesBody
from livery.engine.fake import Behaviour
from livery.text import Tokenizer

TEXT = "Ahoy, wörld 🙂!"
EOS = 2


def ending(tokenizer: Tokenizer) -> Setup:
    """An engine that says the text and then, of itself, no more."""
    ids = [*tokenizer.encode(TEXT), EOS]
    return Setup(Behaviour(script=lambda _: ids), max_model_len=4096, eos_token_ids=(EOS,))


@pytest.fixture(scope="module")
def speaking(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    server = LiveServer(ending(tokenizer), tokenizer, tmp_path_factory.mktemp("says"))
    server.start()
    yield server
    server.stop()


def client(server: LiveServer) -> openai.OpenAI:
    """Every answer is held against the client's own types."""
    return openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=30, _strict_response_validation=True
    )


def read(server: LiveServer, tokenizer: Tokenizer) -> str:
    """What the engine was asked to read last, as text."""
    return tokenizer.decode_all(server.engine.requests[-1].prompt_token_ids)


def test_a_text_is_answered(speaking: LiveServer, tokenizer: Tokenizer) -> None:
    answer = client(speaking).responses.create(
        model=BASE, input="Hi", instructions="Be brief.", metadata={"run": "7"}, max_output_tokens=64, user="me"
    )
    assert answer.output_text == TEXT
    assert (answer.status, answer.object, answer.model, answer.store) == ("completed", "response", BASE, False)
    assert answer.id.startswith("resp")
    assert (answer.instructions, answer.metadata, answer.max_output_tokens) == ("Be brief.", {"run": "7"}, 64)
    assert answer.usage is not None
    sampled = speaking.engine.requests[-1]
    assert answer.usage.input_tokens == len(sampled.prompt_token_ids)
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert sampled.sampling.max_tokens == 64
    text = read(speaking, tokenizer)
    assert "system\nBe brief." in text and "user\nHi" in text


def test_an_answer_that_is_cut_says_so(speaking: LiveServer) -> None:
    answer = client(speaking).responses.create(model=BASE, input="Hi", max_output_tokens=2)
    assert answer.status == "incomplete"
    assert answer.incomplete_details and answer.incomplete_details.reason == "max_output_tokens"
    assert answer.usage and answer.usage.output_tokens == 2
    kinds = [event.type for event in client(speaking).responses.create(
        model=BASE, input="Hi", max_output_tokens=2, stream=True
    )]  # fmt: skip
    assert kinds[-1] == "response.incomplete"


def test_a_stream_has_every_event_in_order(speaking: LiveServer) -> None:
    events: list[Any] = list(
        client(speaking).responses.create(model=BASE, input="Hi", max_output_tokens=64, stream=True)
    )
    kinds = [event.type for event in events]
    deltas = kinds.count("response.output_text.delta")
    assert deltas > 1
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * deltas,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == TEXT
    done = events[-1].response
    assert done.output_text == TEXT
    assert done.id == events[0].response.id
    assert done.output[0].id == events[2].item.id == events[4].item_id
    assert events[0].response.status == "in_progress" and events[0].response.usage is None


def test_the_clients_own_stream_helper_puts_it_together(speaking: LiveServer) -> None:
    with client(speaking).responses.stream(model=BASE, input="Hi", max_output_tokens=64) as stream:
        final = stream.get_final_response()
    assert final.output_text == TEXT


def test_every_event_is_named_and_nothing_follows_the_last(speaking: LiveServer) -> None:
    body = {"model": BASE, "input": "Hi", "stream": True}
    lines = httpx.post(f"{speaking.url}/v1/responses", json=body, timeout=30).text.strip().split("\n\n")
    assert all(line.startswith("event: response.") and '\ndata: {"type":"response.' in line for line in lines)
    assert lines[-1].startswith("event: response.completed")


def test_a_conversation_is_read_in_order(speaking: LiveServer, tokenizer: Tokenizer) -> None:
    items: Any = [
        {"role": "developer", "content": "Rhyme."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "One"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
         "content": [{"type": "output_text", "text": "Two", "annotations": []}]},
        {"role": "user", "content": "Three"},
    ]  # fmt: skip
    client(speaking).responses.create(model=BASE, input=items)
    text = read(speaking, tokenizer)
    places = [text.index(word) for word in ("Rhyme.", "One", "Two", "Three")]
    assert places == sorted(places)


def test_calls_and_their_outputs_become_one_assistants_message_each() -> None:
    body = ResponsesBody.model_validate(
        {
            "input": [
                {"role": "user", "content": "Weather?"},
                {"type": "function_call", "call_id": "a", "name": "look", "arguments": '{"at": 1}'},
                {"type": "function_call", "call_id": "b", "name": "look", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "a", "output": "sun"},
                {"type": "function_call_output", "call_id": "b", "output": [{"type": "input_text", "text": "rain"}]},
            ]
        }
    )
    messages = body.to_chat().messages
    assert [message.role for message in messages] == ["user", "assistant", "tool", "tool"]
    assert [call["id"] for call in messages[1].tool_calls or ()] == ["a", "b"]
    assert [(message.tool_call_id, message.content) for message in messages[2:]] == [("a", "sun"), ("b", "rain")]


def test_thoughts_belong_to_what_the_assistant_does_next() -> None:
    def thought(text: str) -> dict[str, Any]:
        return {"type": "reasoning", "content": [{"type": "reasoning_text", "text": text}]}

    call = {"type": "function_call", "call_id": "a", "name": "look", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "a", "output": "sun"}
    items = [
        {"role": "user", "content": "Weather?"}, thought("One."), {"role": "assistant", "content": "I look."},
        thought("Two."), call, output, thought("Three."), {**call, "call_id": "b"}, {**output, "call_id": "b"},
    ]  # fmt: skip
    messages = ResponsesBody.model_validate({"input": items}).to_chat().messages
    assert [(message.role, message.reasoning_content) for message in messages] == [
        ("user", None), ("assistant", "One.Two."), ("tool", None), ("assistant", "Three."), ("tool", None),
    ]  # fmt: skip
    cut = [
        *items[:1],
        thought("Of nothing."),
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "!"},
    ]
    messages = ResponsesBody.model_validate({"input": cut}).to_chat().messages
    assert [message.reasoning_content for message in messages] == [None, None, None]


def test_sampling_is_passed_on(speaking: LiveServer) -> None:
    extra = {"top_k": 5, "min_p": 0.25, "seed": 11, "ignore_eos": True, "stop": ["xyz"]}
    client(speaking).responses.create(model=BASE, input="Hi", temperature=0.5, top_p=0.75, extra_body=extra)
    sampling = speaking.engine.requests[-1].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.75, 5, 0.25)
    assert (sampling.seed, sampling.ignore_eos) == (11, True)


def test_log_probabilities_are_told_where_they_are_asked_for(serve: Serve, tokenizer: Tokenizer) -> None:
    server = serve(ending(tokenizer))
    ask: dict[str, Any] = {"model": BASE, "input": "Hi", "include": ["message.output_text.logprobs"], "top_logprobs": 2}
    whole: Any = client(server).responses.create(**ask)
    told = whole.output[0].content[0].logprobs
    assert b"".join(bytes(one.bytes) for one in told).decode() == TEXT + tokenizer.decode_all([EOS])
    assert all(one.top_logprobs for one in told)
    chat = server.client().chat.completions.create(
        model=BASE, messages=[{"role": "user", "content": "Hi"}], logprobs=True, top_logprobs=2
    )
    assert [one.model_dump() for one in told] == [one.model_dump() for one in chat.choices[0].logprobs.content]  # type: ignore
    events: list[Any] = list(client(server).responses.create(**ask, stream=True))
    pieces = [one for event in events if event.type == "response.output_text.delta" for one in event.logprobs]
    (done,) = [event for event in events if event.type == "response.output_text.done"]
    assert [one.token for one in pieces] == [one.token for one in done.logprobs] == [one.token for one in told]
    assert events[-1].response.output[0].content[0].logprobs == told
    assert not client(server).responses.create(model=BASE, input="Hi").output[0].content[0].logprobs  # type: ignore


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"store": True}, "store", "unsupported_parameter"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "unsupported_parameter"),
        ({"conversation": "conv_1"}, "conversation", "unsupported_parameter"),
        ({"background": True}, "background", "unsupported_parameter"),
        ({"prompt": {"id": "p"}}, "prompt", "unsupported_parameter"),
        ({"truncation": "auto"}, "truncation", "unsupported_parameter"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type", "unsupported_parameter"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice", "unsupported_parameter"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0.type", "unsupported_parameter"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:"}]}]},
            "input.0.content.0",
            "unsupported_parameter",
        ),
        ({"input": [{"role": "user"}]}, "input.0", "invalid_value"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input.0", "invalid_value"),
        # The demo's template has no place for calls.
        (
            {"input": [{"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"}]},
            "input",
            "invalid_value",
        ),
        ({"input": []}, "input", "invalid_value"),
        ({"input": None}, "input", "invalid_value"),
        ({"max_output_tokens": 0}, "max_output_tokens", "invalid_value"),
        ({"max_output_tokens": 5000}, "input", "context_length_exceeded"),
        ({"temperature": 3}, "temperature", "invalid_value"),
        ({"text": {"format": {"type": "nothing"}}}, "text.format.type", "invalid_value"),
        ({"model": "nobody"}, None, "model_not_found"),
    ],
)
def test_what_is_refused_is_named_as_the_client_named_it(
    speaking: LiveServer, body: dict[str, Any], param: str | None, code: str | None
) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        client(speaking).responses.create(**{"model": BASE, "input": "Hi", **body})
    assert caught.value.status_code in (400, 404)
    assert caught.value.param == param
    assert code is None or caught.value.code == code


def test_a_reference_to_an_item_is_refused_with_what_has_clients_send_items(speaking: LiveServer) -> None:
    """The AI SDK refers to its first turn's items in the second one unless it is told not to store."""
    with pytest.raises(openai.BadRequestError, match=r"store: false.*providerOptions\.openai\.store.*/v1/chat"):
        client(speaking).responses.create(model=BASE, input=[{"type": "item_reference", "id": "msg_1"}])


class Place(BaseModel):
    city: str


def test_a_format_holds_the_engine_and_is_parsed(serve: Serve, tokenizer: Tokenizer) -> None:
    said = [*tokenizer.encode('{"city": "Paris"}'), EOS]
    server = serve(Setup(Behaviour(script=lambda _: said), eos_token_ids=(EOS,)))
    answer = client(server).responses.parse(model=BASE, input="Where?", text_format=Place)
    assert answer.output_parsed == Place(city="Paris")
    grammar = server.engine.requests[-1].sampling.grammar
    assert grammar and grammar.kind == "json_schema" and '"city"' in grammar.source
    bad = {"format": {"type": "json_schema", "name": "x", "schema": {"type": "nothing"}}}
    with pytest.raises(openai.BadRequestError) as caught:
        server.client().responses.create(model=BASE, input="Where?", text=bad)  # type: ignore[arg-type]
    assert caught.value.param == "text.format"
    client(server).responses.create(model=BASE, input="Where?", text={"format": {"type": "json_object"}})
    assert server.engine.requests[-1].sampling.grammar


def test_a_failure_in_the_middle_is_the_last_event(serve: Serve, tokenizer: Tokenizer) -> None:
    behaviour = saying(tokenizer, TEXT)
    behaviour.fail_after = 3
    server = serve(Setup(behaviour))
    body = {"model": BASE, "input": "Hi", "stream": True}
    last = httpx.post(f"{server.url}/v1/responses", json=body, timeout=30).text.strip().split("\n\n")[-1]
    assert last.startswith("event: error\n")
    with pytest.raises(openai.APIError) as caught:
        list(server.client().responses.create(model=BASE, input="Hi", stream=True))
    assert caught.value.code == "generation_failed"


def test_an_adapter_answers_and_is_named(serve: Serve) -> None:
    server = serve()
    raw = server.client().responses.with_raw_response.create(model=BASE, input="Hi", max_output_tokens=2)
    assert raw.headers["x-livery-adapter"].startswith(f"{BASE}@")
    assert isinstance(raw.parse(), OpenAIResponse)
