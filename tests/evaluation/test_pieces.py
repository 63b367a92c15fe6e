"""Windows predict every token once, and prompts are cut from their continuations where lm-eval cuts them."""

from __future__ import annotations

from typing import Any

import pytest

from bos import tokenizer_with_bos
from livery.engine.fake import FakeEngine
from livery.evaluation.by_engine import EngineScorer
from livery.evaluation.evaluate import evaluate
from livery.evaluation.pieces import Windows, as_asked, cut
from livery.evaluation.scorer import BASE_LABEL, Variant
from livery.evaluation.subjects import Choice, Question, SubjectUnusable, Task, Text
from livery.models import resolve_model
from livery.text import Tokenizer

CONTENT = "The keeper lit the lamp at dusk and wrote down the wind, the sea and every sail. " * 12
BASE = Variant(BASE_LABEL, role="base")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_directory(resolve_model("smollm2-135m-instruct").path)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tokenizer_with_bos(tmp_path_factory.mktemp("bos"))


@pytest.fixture
async def scorer(tokenizer: Tokenizer) -> Any:
    engine = FakeEngine(vocab_size=49152, max_model_len=96)
    yield EngineScorer(engine, await engine.start(), tokenizer, {})
    await engine.stop()


@pytest.mark.parametrize(
    ("size", "stride"), [(64, 0), (64, 64), (64, 16), (64, 63), (7, 3), (2, 1), (500, 0), (500, 9)]
)
async def test_every_token_is_predicted_at_most_once(
    scorer: EngineScorer, tokenizer: Tokenizer, size: int, stride: int
) -> None:
    tokens = tokenizer.encode_bare(CONTENT)
    pieces = await cut(scorer, Text("log", CONTENT), Windows(size, stride))
    size = min(size, 96)
    step = min(stride or size, size)
    predicted: list[int] = []
    for number, piece in enumerate(pieces):
        begin = number * step
        assert piece.tokens == tuple(tokens[begin : begin + size])
        assert piece.start >= min(size - step, len(piece.tokens) - 1) or begin == 0
        predicted += range(begin + piece.start, begin + len(piece.tokens))
    given = set(range(len(tokens))) - set(predicted)
    assert len(predicted) == len(set(predicted))
    assert given == ({0} if step < size else set(range(0, len(tokens), size)))


@pytest.mark.parametrize(("size", "stride"), [(64, 0), (64, 16), (2, 1), (2, 0), (500, 9)])
async def test_every_window_begins_as_the_model_expects(begun: Tokenizer, size: int, stride: int) -> None:
    """And all of the text is predicted, once: what a BOS takes of the room is no text."""
    engine = FakeEngine(vocab_size=49152, max_model_len=96)
    scorer = EngineScorer(engine, await engine.start(), begun, {})
    (first,) = begun.beginning()
    assert begun.encode(CONTENT) == [first, *begun.encode_bare(CONTENT)]
    pieces = await cut(scorer, Text("log", CONTENT), Windows(size, stride))
    await engine.stop()
    assert all(piece.tokens[0] == first and 1 <= piece.start < len(piece.tokens) <= min(size, 96) for piece in pieces)
    assert [token for piece in pieces for token in piece.tokens[piece.start :]] == begun.encode_bare(CONTENT)


async def test_a_text_that_is_too_short_is_named(scorer: EngineScorer) -> None:
    with pytest.raises(SubjectUnusable, match="log has 1 token, and at least 2 are needed"):
        await cut(scorer, Text("log", "The"), Windows())
    assert len(await cut(scorer, Text("log", CONTENT), Windows(64, tokens=64))) == 1


@pytest.mark.parametrize("prompt", ["It is", "It is ", "It is\n"])
async def test_a_plain_choice_begins_behind_the_prompts_own_tokens(
    scorer: EngineScorer, tokenizer: Tokenizer, prompt: str
) -> None:
    task = Task("t", (Choice(Question(prompt), ("grey", "blue sea"), 0),), chat=False)
    asked = await as_asked(scorer, BASE, task, task.items[0])
    for choice, text in zip(asked.choices, ("grey", "blue sea"), strict=True):
        between = "" if prompt[-1].isspace() else " "
        assert [*asked.prompt, *choice] == tokenizer.encode_bare(prompt + between + text)
    assert list(asked.prompt) == tokenizer.encode_bare(prompt.rstrip(" "))


async def test_what_does_not_fit_is_named(scorer: EngineScorer) -> None:
    task = Task("long.jsonl", (Choice(Question(CONTENT), ("a", "b"), 0),))
    with pytest.raises(SubjectUnusable, match=r"long.jsonl: an item has \d+ tokens and up to 1 more .* takes 96"):
        await evaluate(scorer, [BASE], [task], base="fake", where="here")
