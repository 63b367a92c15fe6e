"""The official Python client, which is told to check every answer against its own types."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion
from pydantic import BaseModel
from served import ADAPTERS, BASE, V1

QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}, "unit": {"enum": ["C", "F"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}


class City(BaseModel):
    name: str
    big: bool


@pytest.fixture(scope="module")
def client() -> openai.OpenAI:
    return openai.OpenAI(base_url=V1, api_key="none", timeout=300, max_retries=0, _strict_response_validation=True)


@pytest.fixture(scope="module")
def lenient() -> openai.OpenAI:
    """For the answers that OpenAI gives as well and its client's own types have no place for."""
    return openai.OpenAI(base_url=V1, api_key="none", timeout=300, max_retries=0)


def ask(client: openai.OpenAI, model: str = BASE, **fields: Any) -> ChatCompletion:
    fields = {"messages": QUESTION, "temperature": 0, "max_completion_tokens": 24, **fields}
    return client.chat.completions.create(model=model, **fields)


@pytest.mark.parametrize("model", [BASE, *ADAPTERS])
def test_a_model_is_listed_and_retrieved(client: openai.OpenAI, model: str) -> None:
    assert model in [card.id for card in client.models.list()]
    assert client.models.retrieve(model).id == model


@pytest.mark.parametrize("model", [BASE, *ADAPTERS])
def test_chat(client: openai.OpenAI, model: str) -> None:
    answer = ask(client, model)
    assert answer.model == model
    assert answer.choices[0].message.content
    assert answer.usage and answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@pytest.mark.parametrize("model", [BASE, *ADAPTERS])
def test_a_stream_is_the_answer_in_pieces(client: openai.OpenAI, model: str) -> None:
    whole = ask(client, model)
    stream = client.chat.completions.create(
        model=model,
        messages=QUESTION,
        temperature=0,
        max_completion_tokens=24,
        stream=True,
        stream_options={"include_usage": True},
    )
    *chunks, last = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == whole.choices[0].finish_reason
    assert last.usage and whole.usage
    assert last.usage.completion_tokens == whole.usage.completion_tokens


def test_several_answers(client: openai.OpenAI) -> None:
    answer = ask(client, n=3, temperature=1, seed=5)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    again = ask(client, n=3, temperature=1, seed=5)
    assert [choice.message.content for choice in again.choices] == [choice.message.content for choice in answer.choices]


def test_completions_of_texts_and_token_ids(client: openai.OpenAI) -> None:
    texts = client.completions.create(model=BASE, prompt=["The sky is", "One, two,"], temperature=0, max_tokens=4)
    assert [choice.index for choice in texts.choices] == [0, 1]
    ids = client.completions.create(model=BASE, prompt=[504, 6376, 314], temperature=0, max_tokens=4, stop=None)
    assert ids.usage and ids.usage.prompt_tokens == 3


def test_stop_strings(client: openai.OpenAI) -> None:
    whole = ask(client).choices[0].message.content or ""
    stopped = ask(client, stop=[whole[5:9]])
    assert stopped.choices[0].message.content == whole[: whole.index(whole[5:9])]
    assert stopped.choices[0].finish_reason == "stop"


def test_logprobs_of_chat(client: openai.OpenAI) -> None:
    answer = ask(client, logprobs=True, top_logprobs=3)
    assert answer.choices[0].logprobs and answer.choices[0].logprobs.content
    for token in answer.choices[0].logprobs.content:
        assert len(token.top_logprobs) == 3
        assert token.logprob == max(top.logprob for top in token.top_logprobs)  # greedy
        assert bytes(token.bytes or []).decode("utf-8", "replace") == token.token


def test_logprobs_of_a_prompt_given_back(lenient: openai.OpenAI) -> None:
    """Nothing comes before the first token, so its number is null, which the client's strict check refuses."""
    answer = lenient.completions.create(
        model=BASE, prompt="The capital of France is", echo=True, logprobs=2, max_tokens=1, temperature=0
    )
    told = answer.choices[0].logprobs
    assert told and told.token_logprobs and told.tokens and told.top_logprobs
    assert told.token_logprobs[0] is None
    assert all(value is not None and value <= 0 for value in told.token_logprobs[1:])
    assert "".join(told.tokens) == answer.choices[0].text


def test_a_bias_forbids_and_forces_tokens(client: openai.OpenAI) -> None:
    free = client.completions.create(model=BASE, prompt="The sky is", max_tokens=1, temperature=0, logprobs=1)
    forced = client.completions.create(
        model=BASE, prompt="The sky is", max_tokens=2, temperature=0, logit_bias={"504": 100}
    )
    assert forced.choices[0].text != free.choices[0].text


@pytest.mark.parametrize("field", ["presence_penalty", "frequency_penalty"])
def test_a_penalty_breaks_a_repetition(client: openai.OpenAI, field: str) -> None:
    prompt = "la la la la la la la la"
    fields: Any = {"model": BASE, "prompt": prompt, "max_tokens": 12, "temperature": 0}
    free, fined = client.completions.create(**fields), client.completions.create(**fields, **{field: 2})
    assert free.choices[0].text != fined.choices[0].text


def test_json_object(client: openai.OpenAI) -> None:
    answer = ask(client, "json", response_format={"type": "json_object"}, max_completion_tokens=120)
    assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)


@pytest.mark.parametrize("model", [BASE, "pirate"])
def test_parse(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.parse(
        model=model, messages=QUESTION, response_format=City, temperature=0, max_completion_tokens=120
    )
    assert isinstance(answer.choices[0].message.parsed, City)


def test_parse_of_a_cut_answer(client: openai.OpenAI) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(
            model=BASE, messages=QUESTION, response_format=City, temperature=0, max_completion_tokens=2
        )


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_tool_is_called(client: openai.OpenAI, choice: Any) -> None:
    answer = ask(client, tools=[WEATHER], tool_choice=choice, max_completion_tokens=120)
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    check_weather(call.function.name, call.function.arguments)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_tool_is_called_in_a_stream(client: openai.OpenAI, choice: Any) -> None:
    with client.chat.completions.stream(
        model=BASE,
        messages=QUESTION,
        tools=[WEATHER],
        tool_choice=choice,
        temperature=0,
        max_completion_tokens=120,
    ) as stream:
        answer = stream.get_final_completion()
    (call,) = answer.choices[0].message.tool_calls or []
    check_weather(call.function.name, call.function.arguments)


def test_the_result_of_a_tool_goes_into_the_conversation(client: openai.OpenAI) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
    messages = [
        *QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Sunny, 20 C"},
    ]
    assert ask(client, messages=messages, tools=[WEATHER], tool_choice="none").choices[0].message.content


def check_weather(name: str, arguments: str) -> None:
    assert name == "weather"
    given = json.loads(arguments)
    assert set(given) == {"city", "unit"}
    assert given["unit"] in ("C", "F")


def test_a_response(client: openai.OpenAI) -> None:
    response = client.responses.create(model="pirate", input="Who are you?", max_output_tokens=24, temperature=0)
    assert response.model == "pirate"
    assert response.output_text
    assert response.usage and response.usage.output_tokens > 0


def test_a_response_in_a_stream(client: openai.OpenAI) -> None:
    """One that ends of itself: the client's helper knows no end of answers that are cut."""
    ends = {"stop": ["."]}
    with client.responses.stream(model=BASE, input="Who are you?", temperature=0, extra_body=ends) as stream:
        pieces = [event.delta for event in stream if event.type == "response.output_text.delta"]
        whole = stream.get_final_response()
    assert "".join(pieces) == whole.output_text != ""


def test_a_response_of_a_shape(client: openai.OpenAI) -> None:
    response = client.responses.parse(
        model=BASE, input="Name a city.", text_format=City, max_output_tokens=120, temperature=0
    )
    assert isinstance(response.output_parsed, City)


def test_a_response_calls_a_tool(client: openai.OpenAI) -> None:
    tool: Any = {"type": "function", "strict": True, **WEATHER["function"]}
    response = client.responses.create(
        model=BASE,
        input="Weather?",
        tools=[tool],
        tool_choice="required",
        parallel_tool_calls=False,
        max_output_tokens=120,
        temperature=0,
    )
    (call,) = [item for item in response.output if item.type == "function_call"]
    check_weather(call.name, call.arguments)


@pytest.mark.parametrize("model", [BASE, "pirate"])
def test_embeddings(lenient: openai.OpenAI, model: str) -> None:
    """Asked for without a format the client wants base64 and decodes it, which its strict check refuses."""
    packed = lenient.embeddings.create(model=model, input=["one", "two"])
    floats = lenient.embeddings.create(model=model, input=["one", "two"], encoding_format="float")
    for left, right in zip(packed.data, floats.data, strict=True):
        assert left.embedding == pytest.approx(right.embedding, rel=1e-5)
        assert math.isclose(sum(x * x for x in left.embedding), 1, rel_tol=1e-3)


def test_an_unknown_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        ask(client, "nobody")
    assert (raised.value.code, raised.value.type) == ("model_not_found", "invalid_request_error")
    assert raised.value.request_id


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"messages": []}, "messages"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"tools": []}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"logit_bias": {"foo": 1}}, "logit_bias"),
    ],
)
def test_a_bad_field_is_named(client: openai.OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        ask(client, **fields)
    assert (raised.value.param or "").startswith(param), raised.value
    assert isinstance(raised.value.code, str)


def test_a_prompt_over_the_context(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.completions.create(model=BASE, prompt="word " * 20000)
    assert raised.value.code == "context_length_exceeded"
    assert "maximum context length is" in raised.value.message


def test_an_unknown_route(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        client.moderations.create(input="text")
    assert raised.value.code == "unknown_url"


def test_a_stream_that_is_left_ends(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(model=BASE, messages=QUESTION, stream=True, max_completion_tokens=200)
    next(iter(stream))
    stream.close()
    assert ask(client).choices


def test_the_asynchronous_client() -> None:
    async def last_finish_reason() -> str | None:
        async with openai.AsyncOpenAI(base_url=V1, api_key="none", timeout=300) as client:
            stream = await client.chat.completions.create(
                model=BASE, messages=QUESTION, stream=True, max_completion_tokens=4, temperature=0
            )
            return [chunk async for chunk in stream][-1].choices[0].finish_reason

    assert asyncio.run(last_finish_reason()) == "length"
