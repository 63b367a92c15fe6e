"""Text completions: every form of prompt, several answers, the sampling fields, the engine's numbers."""

from __future__ import annotations

import pytest

from api.live_server import BASE, VOCAB, LiveServer, Serve, Setup
from livery.engine.fake import Behaviour
from livery.text import Tokenizer


def counting(tokenizer: Tokenizer, first: int, count: int) -> str:
    """What the fake engine answers when its first token is `first`."""
    return tokenizer.decode([(first + index) % VOCAB for index in range(count)])


def test_a_prompt_of_token_ids(server: LiveServer, tokenizer: Tokenizer) -> None:
    answer = server.client().completions.create(model=BASE, prompt=[3000, 4000], max_tokens=3)
    assert answer.choices[0].text == counting(tokenizer, 7000, 3)
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, 3)


def test_the_default_is_sixteen_tokens(server: LiveServer) -> None:
    answer = server.client().completions.create(model=BASE, prompt="Hello")
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16


def test_several_prompts_and_answers_are_numbered_by_prompt_then_answer(
    server: LiveServer, tokenizer: Tokenizer
) -> None:
    client = server.client()
    answer = client.completions.create(model=BASE, prompt=[[3000], [5000]], n=2, max_tokens=2)
    expected = [counting(tokenizer, 3000, 2)] * 2 + [counting(tokenizer, 5000, 2)] * 2
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in answer.choices] == expected
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, 8)
    texts = [""] * 4
    for chunk in client.completions.create(model=BASE, prompt=[[3000], [5000]], n=2, max_tokens=2, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == expected


def test_string_prompts_in_a_list(server: LiveServer, tokenizer: Tokenizer) -> None:
    answer = server.client().completions.create(model=BASE, prompt=["Hello", "Good bye"], max_tokens=2)
    firsts = [sum(tokenizer.encode(prompt)) for prompt in ("Hello", "Good bye")]
    assert [choice.text for choice in answer.choices] == [counting(tokenizer, first, 2) for first in firsts]


def test_the_sampling_fields_reach_the_engine(serve: Serve, tokenizer: Tokenizer) -> None:
    server = serve()
    server.client().completions.create(
        model=BASE,
        prompt=[7],
        max_tokens=5,
        temperature=0.5,
        top_p=0.9,
        seed=11,
        n=2,
        frequency_penalty=0.25,
        presence_penalty=-0.5,
        logit_bias={"7": -100, "49151": 1.5},
        extra_body={
            "top_k": 40,
            "min_p": 0.05,
            "min_tokens": 2,
            "stop_token_ids": [9],
            "ignore_eos": True,
            "repetition_penalty": 1.25,
            "allowed_token_ids": [8, 9, 10],
            "bad_words": [" grey ", "Zürich"],
        },
    )
    first, second = (request.sampling for request in server.engine.requests)
    assert (first.max_tokens, first.temperature, first.top_p, first.top_k) == (5, 0.5, 0.9, 40)
    assert (first.min_p, first.min_tokens, first.stop_token_ids, first.ignore_eos) == (0.05, 2, (9,), True)
    assert {first.seed, second.seed} == {11, 12}
    assert (first.frequency_penalty, first.presence_penalty, first.repetition_penalty) == (0.25, -0.5, 1.25)
    assert (first.logit_bias, first.allowed_token_ids) == ({7: -100, 49151: 1.5}, (8, 9, 10))
    words = {tuple(tokenizer.encode(text)) for text in ("grey", " grey", "Zürich", " Zürich")}
    assert set(first.bad_words) == words and len(words) == 4


def test_a_stop_token_ends_the_text_and_is_counted_but_not_shown(serve: Serve, tokenizer: Tokenizer) -> None:
    server = serve(Setup(eos_token_ids=(3003,)))
    answer = server.client().completions.create(model=BASE, prompt=[3000])
    assert answer.choices[0].text == counting(tokenizer, 3000, 3)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4
    other = server.client().completions.create(model=BASE, prompt=[3000], extra_body={"stop_token_ids": [3001]})
    assert other.choices[0].text == counting(tokenizer, 3000, 1)
    longer = server.client().completions.create(model=BASE, prompt=[3000], extra_body={"ignore_eos": True})
    assert longer.choices[0].text == counting(tokenizer, 3000, 16)


@pytest.mark.parametrize(
    ("stop", "min_tokens", "text", "count"), [(" b", 0, "a", 2), (" b", 5, "a b a b a", 6), ("b a", 2, "a ", 3)]
)
def test_stop_strings_wait_for_min_tokens(
    serve: Serve, tokenizer: Tokenizer, stop: str, min_tokens: int, text: str, count: int
) -> None:
    ids = tokenizer.encode("a b a b a b a b c d")
    server = serve(Setup(behaviour=Behaviour(script=lambda _: ids)))
    answer = server.client().completions.create(
        model=BASE, prompt="x", stop=stop, extra_body={"min_tokens": min_tokens}
    )
    assert answer.choices[0].text == text
    assert answer.usage is not None
    assert answer.usage.completion_tokens == count
