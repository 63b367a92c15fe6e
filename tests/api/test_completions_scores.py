"""Text completions that say how likely tokens are: echoed prompts, scores apart from the text, the best of several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import httpx
import pytest

from api.live_server import BASE, LiveServer, Setup
from livery.engine.base import GenerationRequest
from livery.engine.fake import Behaviour, logprobs_of
from livery.text import Tokenizer

PROMPT = "The capital of France is"
ANSWER = " Paris, not Lyon."
END = 0  # the token that ends a sequence


@pytest.fixture(scope="module")
def france(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server that knows a capital."""
    ids = [*tokenizer.encode(ANSWER), END]
    setup = Setup(Behaviour(script=lambda _: ids), eos_token_ids=(END,))
    server = LiveServer(setup, tokenizer, tmp_path_factory.mktemp("france"))
    server.start()
    yield server
    server.stop()


def complete(server: LiveServer, **fields: Any) -> dict[str, Any]:
    answer = httpx.post(f"{server.url}/v1/completions", json={"model": BASE, "prompt": PROMPT, **fields}, timeout=30)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def choice(server: LiveServer, **fields: Any) -> dict[str, Any]:
    return dict(complete(server, **fields)["choices"][0])


def streamed(server: LiveServer, **fields: Any) -> list[Any]:
    """The chunks' choices."""
    chunks = server.client().completions.create(model=BASE, stream=True, **{"prompt": PROMPT, **fields})
    return [chunk.choices[0] for chunk in chunks]


def words(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    return [tokenizer.token_bytes(token).decode() for token in ids]


def likeliest(tokenizer: Tokenizer, token: int, count: int) -> dict[str, float]:
    """What a client is told of the place of a token that the fake engine chose."""
    own = logprobs_of(token, count)
    return {tokenizer.token_bytes(other).decode(): value for other, value in (*own.top, (token, own.logprob))}


# -- the prompt in the text -------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", [PROMPT, " <|im_start|>naïve", "日本"])
@pytest.mark.parametrize("max_tokens", [0, 3])
def test_the_text_begins_with_the_prompt_whole_and_streamed(
    france: LiveServer, tokenizer: Tokenizer, prompt: str, max_tokens: int
) -> None:
    expected = prompt + tokenizer.decode(tokenizer.encode(ANSWER)[:max_tokens])
    whole = complete(france, prompt=prompt, echo=True, max_tokens=max_tokens)
    assert (whole["choices"][0]["text"], whole["choices"][0]["logprobs"]) == (expected, None)
    assert whole["choices"][0]["finish_reason"] == "length"
    assert whole["usage"]["completion_tokens"] == max_tokens
    chunks = streamed(france, prompt=prompt, echo=True, max_tokens=max_tokens)
    assert "".join(chunk.text for chunk in chunks) == expected
    assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == ["length"]


def test_a_prompt_of_ids_is_echoed_as_text(france: LiveServer, tokenizer: Tokenizer) -> None:
    assert choice(france, prompt=tokenizer.encode(PROMPT), echo=True, max_tokens=0)["text"] == PROMPT


@pytest.mark.parametrize("stream", [False, True])
def test_answers_without_tokens_are_scored_each(france: LiveServer, stream: bool) -> None:
    asked: dict[str, Any] = {"prompt": [PROMPT, "One and two"], "echo": True, "n": 3, "max_tokens": 0, "logprobs": 1}
    if stream:
        ended = Counter(chunk.index for chunk in streamed(france, **asked) if chunk.finish_reason)
        assert ended == Counter(range(6))
    else:
        scores = [one["logprobs"]["token_logprobs"] for one in complete(france, **asked)["choices"]]
        assert scores == [scores[0]] * 3 + [scores[3]] * 3 and len(scores[0]) > 1


def test_every_prompt_and_answer_is_echoed(france: LiveServer, tokenizer: Tokenizer) -> None:
    answers = complete(france, prompt=["One", "Two"], echo=True, n=2, max_tokens=1, logprobs=0)["choices"]
    first = tokenizer.decode(tokenizer.encode(ANSWER)[:1])
    assert [one["text"] for one in answers] == ["One" + first] * 2 + ["Two" + first] * 2
    assert all(one["logprobs"]["token_logprobs"][0] is None for one in answers)


@pytest.mark.parametrize("max_tokens", [0, 3])
@pytest.mark.parametrize("logprobs", [0, 2])
def test_an_echoed_prompt_is_scored_like_the_answer(
    france: LiveServer, tokenizer: Tokenizer, max_tokens: int, logprobs: int
) -> None:
    """What lm-eval reads: the first entries null, the chosen token among the likeliest with the identical number."""
    ids = [*tokenizer.encode(PROMPT), *tokenizer.encode(ANSWER)[:max_tokens]]
    assert any(token % 5 == 0 for token in ids[1:]), "one that isn't among the likeliest"
    found = choice(france, echo=True, logprobs=logprobs, max_tokens=max_tokens)
    told = found["logprobs"]
    assert found["text"] == tokenizer.decode(ids) == "".join(told["tokens"])
    assert told["tokens"] == words(tokenizer, ids)
    assert told["token_logprobs"] == [None, *(logprobs_of(token, 0).logprob for token in ids[1:])]
    assert told["top_logprobs"] == [None, *(likeliest(tokenizer, token, logprobs) for token in ids[1:])]
    assert told["text_offset"] == [0, *accumulate(map(len, told["tokens"][:-1]))]
    for token, own, top in list(zip(told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True))[1:]:
        assert top[token] == own
    chunks = streamed(france, echo=True, logprobs=logprobs, max_tokens=max_tokens)
    assert "".join(chunk.text for chunk in chunks) == found["text"]
    parts = [chunk.logprobs.model_dump() for chunk in chunks if chunk.logprobs]
    assert {name: [one for part in parts for one in part[name]] for name in told} == told


def test_offsets_count_characters_from_the_beginning_of_the_text(france: LiveServer, tokenizer: Tokenizer) -> None:
    alone = choice(france, max_tokens=4, logprobs=0)["logprobs"]
    assert alone["text_offset"] == [0, *accumulate(map(len, alone["tokens"][:-1]))]
    prompt = "日本 👩 né"  # tokens that are pieces of characters, or a character and a piece
    found = choice(france, prompt=prompt, echo=True, max_tokens=2, logprobs=0)
    told, ids = found["logprobs"], tokenizer.encode(prompt)
    # A token's text begins where that of the bytes before it ends, a character cut short not counted.
    raw = [b"".join(map(tokenizer.token_bytes, ids[:count])) for count in range(len(ids))]
    assert told["text_offset"][: len(ids)] == [len(begun.decode(errors="ignore")) for begun in raw]
    assert any(token.startswith("bytes:\\x") for token in told["tokens"])
    last = told["text_offset"][-1]
    assert found["text"][last:] == told["tokens"][-1]


# -- scores apart from the text ---------------------------------------------------------------------


@pytest.mark.parametrize("max_tokens", [0, 2])
def test_prompt_logprobs_come_by_token_id(france: LiveServer, tokenizer: Tokenizer, max_tokens: int) -> None:
    ids = tokenizer.encode(PROMPT)
    found = choice(france, prompt_logprobs=2, max_tokens=max_tokens)
    assert found["text"] == tokenizer.decode(tokenizer.encode(ANSWER)[:max_tokens])
    assert found["logprobs"] is None
    expected: list[dict[str, Any] | None] = [None]
    for token in ids[1:]:
        own = logprobs_of(token, 2)
        ranked = {other: (value, rank) for rank, (other, value) in enumerate(own.top, start=1)}
        ranked[token] = (own.logprob, own.rank)
        expected.append(
            {
                str(other): {"logprob": value, "rank": rank, "decoded_token": tokenizer.token_bytes(other).decode()}
                for other, (value, rank) in ranked.items()
            }
        )
    assert found["prompt_logprobs"] == expected
    assert "prompt_logprobs" not in choice(france, max_tokens=1)


def test_a_prompt_can_be_scored_both_ways(france: LiveServer, tokenizer: Tokenizer) -> None:
    """Each with as many of the likeliest as were asked for there."""
    found = choice(france, prompt_logprobs=0, echo=True, logprobs=3, max_tokens=0)
    ids = tokenizer.encode(PROMPT)
    assert [sorted(one) for one in found["prompt_logprobs"][1:]] == [[str(token)] for token in ids[1:]]
    assert found["logprobs"]["top_logprobs"][1:] == [likeliest(tokenizer, token, 3) for token in ids[1:]]


def test_a_prompt_is_scored_once_and_told_with_every_answer(france: LiveServer, tokenizer: Tokenizer) -> None:
    """Who wants scores computes the whole prompt: with eight answers it was computed eight times and counted once."""
    asked: dict[str, Any] = {"prompt": [PROMPT, "Two"], "n": 3, "echo": True, "logprobs": 1}
    before = len(france.engine.requests)
    found = complete(france, max_tokens=2, prompt_logprobs=0, **asked)["choices"]
    scored = [one.sampling.prompt_logprobs for one in france.engine.requests[before:]]
    assert sorted(scored, key=str) == [1, 1, None, None, None, None]
    for index, prompt in enumerate(asked["prompt"]):
        first, *others = found[3 * index : 3 * index + 3]
        assert first["logprobs"]["token_logprobs"][: len(tokenizer.encode(prompt))].count(None) == 1
        for other in others:
            assert {**other, "index": 0} == {**first, "index": 0}
    chunks = streamed(france, max_tokens=2, **asked)
    for answer in found:
        mine = [chunk for chunk in chunks if chunk.index == answer["index"]]
        assert "".join(chunk.text for chunk in mine) == answer["text"]
        told = [number for chunk in mine if chunk.logprobs for number in chunk.logprobs.token_logprobs]
        assert told == answer["logprobs"]["token_logprobs"]


def test_tokens_can_be_named_by_id(france: LiveServer, tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode(PROMPT), *tokenizer.encode(ANSWER)[:2]]
    asked = {"echo": True, "logprobs": 1, "max_tokens": 2}
    found = choice(france, **asked, return_tokens_as_token_ids=True)
    told = found["logprobs"]
    assert found["text"] == tokenizer.decode(ids)
    assert told["tokens"] == [f"token_id:{token}" for token in ids]
    for token, top in zip(ids[1:], told["top_logprobs"][1:], strict=True):
        own = logprobs_of(token, 1)
        assert top == {f"token_id:{other}": value for other, value in (*own.top, (token, own.logprob))}
    plain = choice(france, **asked)["logprobs"]
    assert (told["token_logprobs"], told["text_offset"]) == (plain["token_logprobs"], plain["text_offset"])


# -- what ends an answer ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ending", "kept", "dropped"),
    [
        ({"stop": ", n"}, " Paris, n", " Paris"),
        ({"stop": ["Lyon", "."]}, " Paris, not Lyon", " Paris, not "),
        ({"stop_token_ids": [END], "skip_special_tokens": False}, ANSWER + "<|endoftext|>", ANSWER),
        ({"stop": ["<|endoftext|>"]}, ANSWER + "<|endoftext|>", ANSWER),
    ],
)
def test_what_ends_an_answer_can_be_part_of_it(
    france: LiveServer, ending: dict[str, Any], kept: str, dropped: str
) -> None:
    for include, expected in ((True, kept), (False, dropped), (None, dropped)):
        fields = {**ending, "include_stop_str_in_output": include}
        found = choice(france, **fields, max_tokens=16)
        assert (found["text"], found["finish_reason"]) == (expected, "stop")
        chunks = streamed(france, max_tokens=16, extra_body=fields)
        assert "".join(chunk.text for chunk in chunks) == expected
        assert chunks[-1].finish_reason == "stop"


def test_stop_strings_in_an_echoed_prompt_end_nothing(france: LiveServer) -> None:
    for logprobs in (None, 0):
        found = choice(france, echo=True, stop=["France", "Lyon"], logprobs=logprobs, max_tokens=16)
        assert (found["text"], found["finish_reason"]) == (PROMPT + " Paris, not ", "stop")


# -- the best of several ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def several(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server whose answers to a prompt differ: each copy of a request has the next seed."""

    def script(request: GenerationRequest) -> list[int]:
        return BY_SEED[request.sampling.seed or 0]

    server = LiveServer(Setup(Behaviour(script=script)), tokenizer, tmp_path_factory.mktemp("several"))
    server.start()
    yield server
    server.stop()


# By the fake engine's rule the log-probability of token t is -1/4 - t % 4: means of -2.25, -1.25, -0.25 and -3.25.
BY_SEED = [[402, 406], [401, 409, 413], [404], [403, 407]]


@pytest.mark.parametrize("logprobs", [None, 0, 2])
def test_the_likeliest_answers_are_the_ones_given(
    several: LiveServer, tokenizer: Tokenizer, logprobs: int | None
) -> None:
    texts = [tokenizer.decode(ids) for ids in BY_SEED]
    asked = {"prompt": [[7], [8]], "best_of": 4, "seed": 0, "logprobs": logprobs}
    for n, expected in ((1, [2]), (2, [2, 1]), (4, [0, 1, 2, 3])):
        answer = complete(several, **asked, n=n)
        assert [one["text"] for one in answer["choices"]] == [texts[index] for index in expected] * 2
        assert [one["index"] for one in answer["choices"]] == list(range(2 * n))
        assert all((one["logprobs"] is None) is (logprobs is None) for one in answer["choices"])
        assert answer["usage"]["completion_tokens"] == 2 * sum(map(len, BY_SEED)), "all that were made"


# -- the end of a long prompt -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    server = LiveServer(Setup(max_model_len=32), tokenizer, tmp_path_factory.mktemp("small"))
    server.start()
    yield server
    server.stop()


LONG = "grey rain. " * 4000  # far more characters than the context could hold
MESSAGES = [{"role": "user", "content": LONG}]


def last_prompt(server: LiveServer) -> list[int]:
    return server.engine.requests[-1].prompt_token_ids


def test_a_prompt_that_is_too_long_can_be_cut(small: LiveServer, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(LONG)
    for kept, max_tokens, left in ((5, 4, 5), (-1, 4, 28), (-1, None, 31)):
        for prompt in (LONG, ids):
            body = {"prompt": prompt, "truncate_prompt_tokens": kept, "max_tokens": max_tokens}
            assert complete(small, **body)["usage"]["prompt_tokens"] == left
            assert last_prompt(small) == ids[-left:]
            told = httpx.post(f"{small.url}/tokenize", json=body | {"prompt": LONG}, timeout=30).json()
            assert told["tokens"] == ids[-left:]
    bare = {"prompt": LONG, "truncate_prompt_tokens": 6, "add_special_tokens": False}
    complete(small, **bare, max_tokens=1)
    assert last_prompt(small) == ids[-6:]


def test_a_conversation_that_is_too_long_can_be_cut(small: LiveServer, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode_chat(MESSAGES)
    for kept, left in ((9, 9), (-1, 28)):
        body = {"model": BASE, "messages": MESSAGES, "truncate_prompt_tokens": kept, "max_tokens": 4}
        answer = httpx.post(f"{small.url}/v1/chat/completions", json=body, timeout=30)
        assert answer.status_code == 200, answer.text
        assert last_prompt(small) == ids[-left:]
        assert httpx.post(f"{small.url}/tokenize", json=body, timeout=30).json()["tokens"] == ids[-left:]


def test_only_what_was_read_of_a_cut_prompt_is_echoed(small: LiveServer, tokenizer: Tokenizer) -> None:
    for logprobs in (None, 0):
        found = choice(small, prompt=LONG, truncate_prompt_tokens=4, echo=True, logprobs=logprobs, max_tokens=0)
        assert found["text"] == tokenizer.decode(tokenizer.encode(LONG)[-4:])


@pytest.mark.parametrize("body", [{"prompt": LONG}, {"messages": MESSAGES}])
def test_without_a_cut_that_fits_it_stays_too_long(small: LiveServer, body: dict[str, Any]) -> None:
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    for kept in (None, 33, 1 << 31):
        answer = httpx.post(small.url + path, json={**body, "truncate_prompt_tokens": kept}, timeout=30)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    for asked in (path, "/tokenize"):
        answer = httpx.post(small.url + asked, json={**body, "truncate_prompt_tokens": 0}, timeout=30)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "truncate_prompt_tokens")
