"""Reasoning through the official client: apart from content, and where a prompt opens it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from api.live_server import BASE
from api.scripted import ASK, SAID, THOUGHT, TOOLS, Scripted, calls_of
from livery.reading import ParserNames
from text.template_styles import HERMES


@pytest.fixture(scope="module")
def hermes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scripted]:
    scripted = Scripted(HERMES, tmp_path_factory.mktemp("hermes"), ParserNames())
    yield scripted
    scripted.server.stop()


@pytest.mark.parametrize("streamed", [True, False])
def test_reasoning_comes_apart_from_content(hermes: Scripted, streamed: bool) -> None:
    def read(**fields: Any) -> tuple[str, str]:
        if not streamed:
            message = hermes.whole(THOUGHT, **fields).message
            extra = message.model_extra or {}
            assert extra.get("reasoning") == extra.get("reasoning_content")
            return extra.get("reasoning") or "", message.content
        deltas = [choice.delta for choice in hermes.streamed(THOUGHT, **fields)]
        extras = [delta.model_extra or {} for delta in deltas]
        assert all(extra.get("reasoning") == extra.get("reasoning_content") for extra in extras)
        return "".join(extra.get("reasoning", "") for extra in extras), "".join(one.content or "" for one in deltas)

    assert read() == ("It rains\noften.", "Grey.")
    assert read(extra_body={"include_reasoning": False}) == ("", "Grey.")
    both = THOUGHT.removesuffix("Grey.") + SAID["hermes"]
    choice = hermes.whole(both, tools=TOOLS)
    assert choice.message.model_extra["reasoning"] == "It rains\noften."
    assert calls_of(choice.message) == [("weather", {"city": "Zürich"})]


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_the_reasoning_of_earlier_turns_is_read(hermes: Scripted, name: str) -> None:
    turns: list[Any] = [
        {"role": "assistant", "content": "Grey.", name: "It rains."},
        {"role": "user", "content": "Now?"},
    ]
    hermes.says = "Blue."
    client = hermes.server.client().chat.completions
    client.create(model=BASE, messages=[*ASK, *turns])
    prompt = hermes.tokenizer.decode_all(hermes.last.prompt_token_ids)
    assert "<think>\nIt rains.\n</think>\nGrey." in prompt
    with pytest.raises(openai.BadRequestError) as caught:
        client.create(model=BASE, messages=[*ASK, {**turns[0], name: 5}])
    assert caught.value.param == f"messages.1.{name}"


def test_reasoning_that_the_prompt_opens(tmp_path: Path) -> None:
    template = HERMES.replace("{{- '<|im_start|>assistant\\n' }}", "{{- '<|im_start|>assistant\\n<think>\\n' }}")
    assert template != HERMES
    scripted = Scripted(template, tmp_path, ParserNames())
    try:
        message = scripted.whole("It rains.\n</think>\nGrey.").message
        assert (message.model_extra["reasoning"], message.content) == ("It rains.", "Grey.")
        message = scripted.whole("It rains, and so").message
        assert (message.model_extra["reasoning"], message.content) == ("It rains, and so", None)
        # Where the template closes it again, all is content.
        off = {"chat_template_kwargs": {"enable_thinking": False}}
        message = scripted.whole("Grey.", extra_body=off).message
        assert message.content == "Grey."
    finally:
        scripted.server.stop()


def test_effort_reaches_templates_that_read_it(tmp_path: Path) -> None:
    template = HERMES + "{{ reasoning_effort }}"
    scripted = Scripted(template, tmp_path, ParserNames())
    try:
        scripted.whole("x", reasoning_effort="high")
        assert scripted.tokenizer.decode_all(scripted.last.prompt_token_ids).endswith("high")
    finally:
        scripted.server.stop()
