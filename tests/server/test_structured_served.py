"""Structured output through a whole server: pydantic models by the official client, nasty grammars beside a stream."""

from __future__ import annotations

import json
from collections.abc import Iterator
from enum import Enum
from typing import Literal

import openai
import pytest
from pydantic import BaseModel, Field

from server.running import SMALL, RunningServer, livery_serve, tiny_model

QUESTION = [{"role": "user", "content": "Which?"}]


class Colour(Enum):
    RED = "red"
    GREEN = "grün"


class Part(BaseModel):
    code: str = Field(pattern="^[A-Z]{2}[0-9]{2}$")
    colour: Colour


class Order(BaseModel):
    kind: Literal["a", "b"]
    n: int = Field(ge=1, le=99)
    part: Part
    paid: bool | None


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("structured")
    (folder / "adapters").mkdir()
    with livery_serve(tiny_model(folder / "tiny"), folder / "adapters", folder, "--threads", "1", *SMALL) as server:
        yield server


@pytest.fixture(scope="module")
def client(running: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


def test_pydantic_models_come_back(client: openai.OpenAI) -> None:
    for seed in range(3):
        parsed = client.chat.completions.parse(
            model="tiny", messages=QUESTION, response_format=Order, seed=seed, max_tokens=220
        )
        order = parsed.choices[0].message.parsed
        assert isinstance(order, Order) and 1 <= order.n <= 99


def test_a_stream_is_parsed_too(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="tiny", messages=QUESTION, response_format=Order, seed=7, max_tokens=220
    ) as stream:
        for _ in stream:
            pass
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Order)


def test_several_answers_and_completions_are_held(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="tiny", prompt=["a", "b"], n=2, seed=1, max_tokens=40, extra_body={"guided_choice": ["yes!", "no!"]}
    )
    assert [choice.finish_reason for choice in answer.choices] == ["stop"] * 4
    assert {choice.text for choice in answer.choices} <= {"yes!", "no!"}


def test_an_answer_that_is_cut_short_says_so(client: openai.OpenAI) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model="tiny", messages=QUESTION, response_format=Order, max_tokens=3)


def test_a_grammar_that_goes_wrong_hurts_only_its_request(client: openai.OpenAI) -> None:
    """A stream beside it has the tokens that it has alone, and the next request is answered."""

    def tokens() -> Iterator[str]:
        stream = client.completions.create(
            model="tiny", prompt="Once", max_tokens=60, temperature=0, stream=True, extra_body={"ignore_eos": True}
        )
        yield from (chunk.choices[0].text for chunk in stream if chunk.choices)

    alone = "".join(tokens())
    beside = tokens()
    text = next(beside)
    rules = "\n".join(f"r{index}: r{index + 1} r{index + 1}" for index in range(40))
    for grammar in (f'start: r0\n{rules}\nr40: "a"?', "start: start", 'start: "a"'):
        try:
            client.completions.create(
                model="tiny", prompt="x", max_tokens=100, extra_body={"structured_outputs": {"grammar": grammar}}
            )
        except openai.BadRequestError as error:
            assert error.param == "structured_outputs.grammar"
        except openai.InternalServerError as error:
            assert error.code == "generation_failed" and "grammar" in str(error)
    assert text + "".join(beside) == alone
    held = client.chat.completions.create(
        model="tiny", messages=QUESTION, response_format={"type": "json_object"}, max_tokens=200, temperature=0
    )
    if held.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(held.choices[0].message.content or ""), dict)
    assert (held.choices[0].message.content or "").startswith("{")
