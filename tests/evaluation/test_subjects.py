"""Texts and tasks as files: what is taken, and by which words the rest is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from livery.evaluation.pieces import conversation, plain
from livery.evaluation.subjects import Answer, Choice, SubjectUnusable, read_task, read_text

GOOD = {"prompt": "2 + 2 =", "choices": ["3", "4"], "answer": 1}


def written(folder: Path, *items: object) -> Path:
    file = folder / "task.jsonl"
    file.write_text("\n".join(item if isinstance(item, str) else json.dumps(item) for item in items))
    return file


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ("{", "line 3 of .*task.jsonl: not JSON"),
        ("[" * 100_000, "line 3 of .*: not JSON that can be read: nested too deeply"),
        ('{"max_tokens": ' + "1" * 5000 + "}", "line 3 of .*: has a whole number of more digits than can be read"),
        ({**GOOD, "choices": ["3", "4\ud83d"]}, r"line 3 of .*: `choices\[1\]` contains half of a surrogate pair at"),
        ({"messages": [{"role": "user", "content": "\ude00"}]}, r"`messages\[0\].content` contains half"),
        ([1], "an item is a JSON object"),
        ({"answer": "x"}, "either prompt, a text, or messages"),
        ({"prompt": "a", "messages": [], "answer": "x"}, "either prompt, a text, or messages"),
        ({"prompt": "", "answer": "x"}, "prompt must be a text with something in it"),
        ({"messages": [{"role": "robot", "content": "a"}], "answer": "x"}, "a message has a role, one of system, user"),
        ({"messages": [{"role": "assistant", "content": "a"}], "answer": "x"}, "the last message is the assistant's"),
        ({**GOOD, "choices": ["3"]}, "choices must be a list of two texts or more"),
        ({**GOOD, "answer": 2}, "answer is 2; it is one of the choices, or its number from 0 to 1"),
        ({**GOOD, "answer": True}, "answer is True"),
        ({**GOOD, "answer": "five"}, "answer is 'five'"),
        ({"prompt": "a", "answer": []}, "answer must be a text, or a list of texts"),
        ({"prompt": "a", "answer": "b", "max_tokens": 0}, "max_tokens is 0; it is a whole number from 1 to 4096"),
        ({**GOOD, "coices": []}, "'coices' means nothing here"),
        ({"prompt": "a", "answer": "b"}, "put them into two files"),
    ],
)
def test_a_line_that_is_no_item_is_named(tmp_path: Path, item: object, words: str) -> None:
    with pytest.raises(SubjectUnusable, match=words):
        read_task(written(tmp_path, GOOD, "", item))


def test_items_are_read(tmp_path: Path) -> None:
    task = read_task(written(tmp_path, GOOD, {**GOOD, "answer": "3", "id": "two"}))
    assert [item.right for item in task.items] == [1, 0]
    answers = read_task(written(tmp_path, {"prompt": "a", "answer": [" yes", "Yes"], "max_tokens": 3}))
    (item,) = answers.items
    assert isinstance(item, Answer)
    assert (item.right, item.max_tokens, answers.kind) == (("yes", "Yes"), 3, "answer")


def test_shots_are_shown_and_not_asked(tmp_path: Path) -> None:
    more = {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "3 + 3 ="}]}
    task = read_task(written(tmp_path, GOOD, {**GOOD, **more} | {"prompt": None}), shots=1)
    (item,) = task.items
    assert isinstance(item, Choice)
    assert conversation(task, item) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2 + 2 ="},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "3 + 3 ="},
    ]
    assert plain(task, item) == "2 + 2 = 4\n\nBe brief.\n3 + 3 ="
    with pytest.raises(SubjectUnusable, match="has 2 items, and 2 of them are shown as examples; at least one"):
        read_task(written(tmp_path, GOOD, GOOD), shots=2)
    assert len(read_task(written(tmp_path, GOOD, GOOD, GOOD), limit=2).items) == 2


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "marked").write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode())
    assert read_text(tmp_path / "marked").content == json.dumps(GOOD)
    assert len(read_task(tmp_path / "marked").items) == 1


def test_what_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"ab\xff")
    with pytest.raises(SubjectUnusable, match=r"is not UTF-8 text \(byte 2\)"):
        read_text(tmp_path / "bytes")
    with pytest.raises(SubjectUnusable, match="is not UTF-8 text"):
        read_task(tmp_path / "bytes")
