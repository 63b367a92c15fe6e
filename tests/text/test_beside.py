"""Long prompts leave the event loop, one long or many short; real tokenizer, real threads."""

from __future__ import annotations

import asyncio
import threading

import pytest

from livery.beside import LONG
from livery.jobs import ChatPrompt, Job, Options, Prompt
from livery.models import resolve_model
from livery.prompts import check_ids, encode
from livery.refusals import InvalidParameter
from livery.text import Tokenizer
from livery.tokenizer_files import TokenizerFiles, load_tokenizer_files

LONG_TEXT = "fish and chips " * (LONG // 15 + 1)
SHORT_TEXT = LONG_TEXT[: LONG // 4]
TEMPLATE = "{{ tools }}{{ documents }}{% for message in messages %}{{ message.content }}{% endfor %}"
TOOL = {"type": "function", "function": {"name": "f", "description": LONG_TEXT}}


class Watched(Tokenizer):
    """Notes the threads that encode."""

    def __init__(self) -> None:
        files = load_tokenizer_files(resolve_model("smollm2-135m-instruct").path)
        super().__init__(TokenizerFiles(files.tokenizer, TEMPLATE, files.named_tokens))
        self.threads: list[str] = []

    def encode(self, text: str, room: int | None = None) -> list[int]:
        self.threads.append(threading.current_thread().name)
        return super().encode(text, room)

    def encode_chat(self, *arguments: object, **keywords: object) -> list[int]:
        self.threads.append(threading.current_thread().name)
        return super().encode_chat(*arguments, **keywords)  # type: ignore[arg-type]


TOKENIZER = Watched()


def said(content: str) -> dict[str, object]:
    return {"role": "user", "content": content}


def threads_of(prompts: list[Prompt]) -> list[str]:
    """Where the prompts of one job are encoded."""
    TOKENIZER.threads.clear()
    job = Job("", prompts, Options(), "r")

    async def run() -> None:
        for prompt in prompts:
            assert await encode(prompt, job, TOKENIZER, 1 << 17, 49152)

    asyncio.run(run())
    return TOKENIZER.threads


@pytest.mark.parametrize(
    "prompts",
    [
        [LONG_TEXT],
        [SHORT_TEXT] * 5,
        [ChatPrompt([said(LONG_TEXT)])],
        [ChatPrompt([said(SHORT_TEXT)] * 5)],
        [ChatPrompt([said("hi")] * LONG)],
        [ChatPrompt([said("hi")], tools=[TOOL])],
        [ChatPrompt([said("hi")], documents=[{"title": "", "text": LONG_TEXT}])],
    ],
    ids=["text", "texts", "message", "messages", "many messages", "tools", "documents"],
)
def test_long_prompts_are_encoded_beside_the_loop(prompts: list[Prompt]) -> None:
    threads = threads_of(prompts)
    assert len(threads) == len(prompts)
    assert all(name.startswith("livery-encoding") for name in threads)


@pytest.mark.parametrize("prompt", [SHORT_TEXT, ChatPrompt([said("hi")] * 3)])
def test_short_ones_are_encoded_at_once(prompt: Prompt) -> None:
    assert threads_of([prompt]) == [threading.current_thread().name]


def test_ids_are_looked_at_by_their_extremes() -> None:
    check_ids([], 10, "prompt")
    check_ids([0, 9], 10, "prompt")
    for wrong, ids in ((-1, [3, -1]), (10, [3, 10, 4])):
        with pytest.raises(InvalidParameter, match=f"Token id {wrong} is outside the vocabulary of 10"):
            check_ids(ids, 10, "prompt")
