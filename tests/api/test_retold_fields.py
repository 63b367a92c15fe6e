"""Fields of a chat completion do the same on /v1/responses and /v1/messages, or are refused there: none is dropped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from api.field_table import HONOURED, REFUSED, fields
from api.live_server import BASE, LiveServer, Setup
from api.peft_files import make_adapter
from livery.api.anthropic_body import MessagesBody
from livery.api.responses_body import ResponsesBody
from livery.api.retold_body import RetoldBody
from livery.api.schemas import ChatCompletionBody
from livery.refusals import UnsupportedParameter
from livery.text import Tokenizer

ASKED: dict[type[RetoldBody], dict[str, Any]] = {
    ResponsesBody: {"input": "Hi", "max_output_tokens": 2},
    MessagesBody: {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2},
}
ROUTES: dict[type[RetoldBody], str] = {ResponsesBody: "/v1/responses", MessagesBody: "/v1/messages"}
BODIES = pytest.mark.parametrize("body", ASKED, ids=lambda body: body.__name__)
# One value each for what a chat completion honours and these routes have no field of their own for.
VALUES: dict[str, Any] = {
    "adapter_id": "pirate", "cache_salt": "s", "timeout": 3, "seed": 5, "stop": ["x"], "stop_token_ids": [7],
    "min_tokens": 1, "ignore_eos": True, "top_k": 9, "min_p": 0.5, "presence_penalty": 0.5, "frequency_penalty": 0.5,
    "repetition_penalty": 1.5, "logit_bias": {"7": 1}, "allowed_token_ids": [7], "bad_words": ["x"],
    "truncate_prompt_tokens": 9, "include_stop_str_in_output": True, "skip_special_tokens": False,
    "return_tokens_as_token_ids": True, "guided_json": {"type": "object"}, "guided_regex": "a",
    "guided_choice": ["a"], "guided_grammar": "root", "documents": [{"text": "d"}], "chat_template_kwargs": {"a": 1},
    "include_reasoning": False, "add_generation_prompt": False, "continue_final_message": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def live(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("retold")
    make_adapter(folder / "adapters" / "pirate", seed=1)
    server = LiveServer(Setup(eos_token_ids=(2,)), tokenizer, folder)
    server.start()
    yield server
    server.stop()


def post(server: LiveServer, body: type[RetoldBody], **more: object) -> httpx.Response:
    return httpx.post(server.url + ROUTES[body], json={"model": BASE, **ASKED[body], **more}, timeout=30)


def made(body: type[RetoldBody], **more: object) -> ChatCompletionBody:
    """The chat completion that is asked for."""
    asked = body.model_validate({**ASKED[body], **more})
    asked.check()
    return asked.to_chat()


@BODIES
def test_what_a_chat_honours_is_handed_on_or_refused(body: type[RetoldBody]) -> None:
    known, chat = fields(body), fields(ChatCompletionBody)
    honoured = {name for name, entry in chat.items() if entry.status == HONOURED and "." not in name}
    here = {name for name in honoured if known[name].status == HONOURED} - set(body.model_fields)
    assert here <= {*VALUES, "structured_outputs"}
    for name in here & set(VALUES):
        assert getattr(made(body, **{name: VALUES[name]}), name) == VALUES[name], name
    held = made(body, structured_outputs={"regex": "a"}).to_options().grammar
    assert held and held.source == "a"


@BODIES
def test_what_is_refused_is_refused_first_and_by_its_name(body: type[RetoldBody]) -> None:
    known = fields(body)
    refused = {name for name, entry in known.items() if entry.status.startswith(REFUSED) and "." not in name}
    elsewhere = {name for name, entry in fields(ChatCompletionBody).items() if entry.status.startswith(REFUSED)}
    assert elsewhere <= refused
    for name in refused:
        with pytest.raises(UnsupportedParameter) as caught:
            body.model_construct(**{name: {"some": "thing"}}).check()
        assert caught.value.param == name
        assert known[name].note in str(caught.value)
    with pytest.raises(UnsupportedParameter, match=r"stream_options\.continuous_usage_stats"):
        made(body, stream=True, stream_options={"continuous_usage_stats": True})
    assert made(body, stream=True, stream_options={"include_usage": True, "include_obfuscation": False}).stream


@BODIES
def test_adapter_salt_format_and_time_reach_the_engine(live: LiveServer, body: type[RetoldBody]) -> None:
    answer = post(live, body, adapter_id="pirate", cache_salt="mine", guided_regex="a+")
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-livery-adapter"].startswith("pirate@")
    request = live.engine.requests[-1]
    assert request.adapter is not None
    assert request.sampling.grammar is not None
    post(live, body, adapter_id="pirate", cache_salt="another")
    assert live.engine.requests[-1].cache_salt != request.cache_salt != ""
    assert post(live, body, adapter_id="nobody").status_code == 404
    for name, wrong in (("timeout", -1), ("guided_json", 5)):
        refused = post(live, body, **{name: wrong})
        assert refused.status_code == 400
        assert refused.json()["error"]["message"].startswith(f"{name}: "), refused.text


def test_fields_that_only_chats_have_are_refused_over_http(live: LiveServer) -> None:
    for body in ASKED:
        for name, value in (("lora_path", "/x"), ("use_beam_search", True), ("n", 2)):
            refused = post(live, body, **{name: value})
            assert refused.status_code == 400
            assert f"{name} is not supported." in refused.json()["error"]["message"]
    counted = httpx.post(f"{live.url}/v1/messages/count_tokens", json={**ASKED[MessagesBody], "chat_template": "x"})
    assert (counted.status_code, counted.json()["error"]["type"]) == (400, "invalid_request_error")


@BODIES
def test_unknown_fields_are_counted_once(live: LiveServer, body: type[RetoldBody]) -> None:
    def count() -> float:
        lines = httpx.get(f"{live.url}/metrics").text.splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith("livery_unknown_fields_total "))

    before = count()
    assert post(live, body, temprature=0, seed=None, store=None).status_code == 200
    assert count() == before + 1


def test_a_chats_word_on_what_the_assistant_began_holds() -> None:
    begun = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Once"}]
    assert made(MessagesBody, messages=begun).continue_final_message is True
    assert made(MessagesBody, messages=begun, continue_final_message=False).continue_final_message is False
