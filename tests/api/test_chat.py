"""Chat completions through the official client: shapes, streams, stops, usage."""

from __future__ import annotations

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionUserMessageParam

from api.live_server import BASE, VOCAB, LiveServer, Serve, Setup, saying
from livery.chat_template import Conversation
from livery.engine.base import GenerationRequest
from livery.engine.fake import Behaviour
from livery.text import Tokenizer

HELLO: list[ChatCompletionUserMessageParam] = [{"role": "user", "content": "Hello"}]


def test_the_answer_is_the_engines_tokens_as_text(server: LiveServer, tokenizer: Tokenizer) -> None:
    answer = server.client().chat.completions.create(model=BASE, messages=HELLO, max_tokens=3)
    prompt = tokenizer.encode_chat([{"role": "user", "content": "Hello"}])
    first = sum(prompt) % VOCAB
    assert answer.choices[0].message.content == tokenizer.decode([first, first + 1, first + 2])
    assert answer.choices[0].finish_reason == "length"
    assert answer.model == BASE
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(prompt), 3)
    assert answer.usage.total_tokens == len(prompt) + 3


def test_a_stream_opens_with_the_role_and_ends_with_usage(server: LiveServer) -> None:
    with server.client().chat.completions.create(
        model=BASE, messages=HELLO, max_tokens=4, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].choices[0].delta.content == ""
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 4
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


def test_streamed_and_collected_text_are_the_same(serve: Serve, tokenizer: Tokenizer) -> None:
    text = "Grüße 👩‍👩‍👧 — naïve 日本語 ok"
    server = serve(Setup(behaviour=saying(tokenizer, text)))
    whole = server.client().chat.completions.create(model=BASE, messages=HELLO)
    stream = server.client().chat.completions.create(model=BASE, messages=HELLO, stream=True)
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert whole.choices[0].message.content == streamed == text


@pytest.mark.parametrize("stop", ["three", "o th", ["nothing", " three"], "e four"])
def test_stop_strings_over_token_borders(serve: Serve, tokenizer: Tokenizer, stop: str | list[str]) -> None:
    text = "one two three four five"
    server = serve(Setup(behaviour=saying(tokenizer, text)))
    stops = [stop] if isinstance(stop, str) else stop
    expected = text[: min(text.index(s) for s in stops if s in text)]
    client = server.client()
    whole = client.chat.completions.create(model=BASE, messages=HELLO, stop=stop)
    assert whole.choices[0].message.content == expected
    assert whole.choices[0].finish_reason == "stop"
    chunks = list(client.chat.completions.create(model=BASE, messages=HELLO, stop=stop, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
    assert chunks[-1].choices[0].finish_reason == "stop"
    server.wait_until(lambda engine: len(engine.aborted) == 2)


def test_two_answers_come_in_one_stream_by_index(serve: Serve, tokenizer: Tokenizer) -> None:
    def script(request: GenerationRequest) -> list[int]:
        return tokenizer.encode("first" if request.request_id.endswith("-0") else "second answer")

    server = serve(Setup(behaviour=Behaviour(script=script)))
    chunks = list(server.client().chat.completions.create(model=BASE, messages=HELLO, n=2, stream=True))
    texts = ["", ""]
    for chunk in chunks:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == ["first", "second answer"]
    whole = server.client().chat.completions.create(model=BASE, messages=HELLO, n=2)
    assert [choice.message.content for choice in whole.choices] == texts
    assert whole.usage is not None
    assert whole.usage.completion_tokens == len(tokenizer.encode("first")) + len(tokenizer.encode("second answer"))


def test_the_prompt_ends_where_the_client_wants_it(server: LiveServer, tokenizer: Tokenizer) -> None:
    messages = [{"role": "user", "content": "Count"}, {"role": "assistant", "content": "one, two"}]
    for field, opening, continued in (("add_generation_prompt", False, False), ("continue_final_message", False, True)):
        value = field == "continue_final_message"
        body = {"model": BASE, "messages": messages, "max_tokens": 1, field: value}
        answer = server.client().post("/chat/completions", body=body, cast_to=ChatCompletion)
        chat = Conversation(messages, add_generation_prompt=opening, continue_final_message=continued)
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == len(tokenizer.encode_chat(chat))
        assert server.engine.requests[-1].prompt_token_ids == tokenizer.encode_chat(chat)


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("documents", [{"text": "Tea is green."}], "documents"),
        ("documents", ["Tea is green."], "documents.0"),
        ("chat_template_kwargs", {"messages": []}, "chat_template_kwargs.messages"),
        ("chat_template_kwargs", [], "chat_template_kwargs"),
        ("chat_template_kwargs", {str(index): 0 for index in range(65)}, "chat_template_kwargs"),
    ],
)
def test_what_the_template_can_not_take_is_refused(server: LiveServer, field: str, value: object, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        server.client().chat.completions.create(model=BASE, messages=HELLO, extra_body={field: value})
    assert refused.value.param == param


def test_a_prompt_can_not_end_in_two_places(server: LiveServer) -> None:
    both = {"continue_final_message": True, "add_generation_prompt": True}
    with pytest.raises(openai.BadRequestError, match="exclude each other") as refused:
        server.client().chat.completions.create(model=BASE, messages=HELLO, extra_body=both)
    assert refused.value.param == "continue_final_message"
