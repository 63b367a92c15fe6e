"""Texts have about the tokens asked for, and no two of them begin alike."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from livery.models import resolve_model
from livery_loadtest.prompts import MOST_WORDS, OWN_WORDS, WORDS, distinct_texts
from livery_loadtest.spec import SpecInvalid

SEED = [3, 1]


@given(words=st.lists(st.integers(1, 300), max_size=130), run=st.integers(0, 10**6), seed=st.integers(0, 2**63 - 1))
@settings(deadline=None)
def test_texts_have_their_words_and_differ(words: list[int], run: int, seed: int) -> None:
    texts = distinct_texts(np.array(words, dtype=np.int64), run, [seed, 1], "prompt")
    assert [len(text.split(" ")) for text in texts] == words
    assert all(set(text.split(" ")) <= set(WORDS) for text in texts)
    assert len(set(texts)) == len(texts)
    assert texts == distinct_texts(np.array(words, dtype=np.int64), run, [seed, 1], "prompt")


def test_no_text_begins_as_one_of_another_run_or_place() -> None:
    words = np.full(20_000, 40)
    openings = [
        " ".join(text.split(" ")[:OWN_WORDS]) for run in range(3) for text in distinct_texts(words, run, SEED, "")
    ]
    assert len(set(openings)) == 60_000


def test_a_cache_of_blocks_of_sixteen_finds_next_to_nothing() -> None:
    texts = distinct_texts(np.full(5000, 100), 0, SEED, "")
    firsts = {tuple(text.split(" ")[:3]) for text in texts}
    assert len(firsts) > 4990, "they part within the first words already"


def test_all_short_texts_there_are_can_be_had_and_more_are_a_word_longer() -> None:
    ones = distinct_texts(np.full(len(WORDS), 1), 0, SEED, "prompt")
    assert sorted(ones) == sorted(WORDS)
    more = distinct_texts(np.full(len(WORDS) ** 2 + len(WORDS) + 5, 1), 0, SEED, "prompt")
    assert len(set(more)) == len(more)
    by_length = Counter(text.count(" ") + 1 for text in more)
    assert by_length == {1: len(WORDS), 2: len(WORDS) ** 2, 3: 5}


def test_more_than_can_be_held_is_refused() -> None:
    with pytest.raises(SpecInvalid, match=r"prompt: 500,000,001 tokens in all, over 500,000,000"):
        distinct_texts(np.array([MOST_WORDS, 1]), 0, SEED, "prompt")


def test_a_word_is_about_a_token() -> None:
    """Of the demo model's tokenizer."""
    tokenizer = Tokenizer.from_file(str(resolve_model("smollm2-135m-instruct").path / "tokenizer.json"))
    words = np.array([8, 64, 512] * 20)
    texts = distinct_texts(words, 0, SEED, "prompt")
    tokens = [len(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts]
    assert tokens == pytest.approx(words.tolist(), rel=0.02, abs=1)
