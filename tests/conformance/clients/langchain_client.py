"""LangChain's own standard tests of chat models, and its way with completions."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.exceptions import ContextOverflowError
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI, OpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests
from served import BASE, V1


class TestChatOpenAI(ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[ChatOpenAI]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "model": "json",  # the adapter that knows how to bring JSON to an end
            "base_url": V1,
            "api_key": "none",
            "temperature": 0,
            "max_tokens": 320,
            "max_retries": 0,
            "timeout": 300,
            "stream_usage": True,
        }

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "pirate"

    @pytest.mark.xfail(
        reason="JSON it is, but the demo model has keys of its own where they are only asked for in words"
    )
    def test_json_mode(self, model: BaseChatModel) -> None:
        super().test_json_mode(model)

    @pytest.mark.xfail(reason="left to choose between words and a tool, the demo model calls none")
    def test_agent_loop(self, model: BaseChatModel) -> None:
        super().test_agent_loop(model)

    @pytest.mark.xfail(reason="told to call a function the demo model calls it twice, as it may: nothing forbids it")
    def test_tool_calling_with_no_arguments(self, model: BaseChatModel) -> None:
        super().test_tool_calling_with_no_arguments(model)

    @pytest.mark.xfail(reason="in a text without a bound the demo model repeats itself until its tokens are used up")
    def test_unicode_tool_call_integration(self, model: BaseChatModel) -> None:
        super().test_unicode_tool_call_integration(model)


def test_completions() -> None:
    """The client of completions sends many fields as null."""
    model = OpenAI(model=BASE, base_url=V1, api_key="none", max_tokens=8, temperature=0, max_retries=0)
    assert "".join(model.stream("The sky is")) == model.invoke("The sky is") != ""


def test_a_prompt_over_the_context_is_known_as_such() -> None:
    model = ChatOpenAI(model=BASE, base_url=V1, api_key="none", max_retries=0)
    with pytest.raises(ContextOverflowError):
        model.invoke("word " * 20000)
