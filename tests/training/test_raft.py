"""The preparer of questions with documents, from the command line, and what a model is asked with them."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from cli.conftest import Livery
from livery.training.raft import Mix, Question, prepare, raft_messages
from livery.training.run_file import RAFT_PROMPT

DOCUMENTS = {name: f"The {name} is {name} metres tall." for name in ("oak", "elm", "ash", "fir", "yew")}
QUESTIONS = [Question(f"How tall is the {name}?", f"{name} metres.", name) for name in DOCUMENTS for _ in range(4)]


def test_each_question_has_its_document_among_others() -> None:
    lines = prepare(QUESTIONS, DOCUMENTS, Mix(distractors=2, golden_share=0.75, near=False, seed=1))
    assert len(lines) == len(QUESTIONS)
    golden = [line["golden"] for line in lines]
    assert len([place for place in golden if place is not None]) == 15, "three quarters"
    assert {0, 1, 2} <= set(golden), "its place tells nothing"
    for line, one in zip(lines, QUESTIONS, strict=True):
        documents: Any = line["documents"]
        assert len(set(documents)) == len(documents) == 3, "left out or not, there are as many"
        assert (DOCUMENTS[one.document] in documents) == (line["golden"] is not None)
        if line["golden"] is not None:
            assert documents[line["golden"]] == DOCUMENTS[one.document]
    again = prepare(QUESTIONS, DOCUMENTS, Mix(distractors=2, golden_share=0.75, near=False, seed=1))
    assert again == lines != prepare(QUESTIONS, DOCUMENTS, Mix(2, 0.75, False, 2))


def test_near_distractors_are_those_that_a_search_finds() -> None:
    documents = {
        "answer": "The red lamp was lit in June.",
        "near": "The red lamp was sold in May.",
        "far": "Fishing boats came home late.",
        "farther": "Bread and herring for the cat.",
    }
    (line,) = prepare([Question("When was the red lamp lit?", "June.", "answer")], documents, Mix(1, 1.0, True, 0))
    assert sorted(line["documents"]) == sorted([documents["answer"], documents["near"]])  # type: ignore[call-overload]


def test_what_a_model_is_asked() -> None:
    (asked,) = raft_messages("Why {documents}?", ["One.", "Two {question}."], RAFT_PROMPT)
    assert asked["content"] == "Document 1:\nOne.\n\nDocument 2:\nTwo {question}.\n\nQuestion: Why {documents}?"
    first, _ = raft_messages("Why?", ["One."], RAFT_PROMPT, "Be brief.")
    assert first == {"role": "system", "content": "Be brief."}


def written(folder: Path, questions: str = "", documents: str = "") -> tuple[Path, Path]:
    one, other = folder / "questions.jsonl", folder / "documents.jsonl"
    one.write_text(
        "".join(
            json.dumps({"question": q.question, "answer": q.answer, "document": q.document}) + "\n" for q in QUESTIONS
        )
        + questions
    )
    other.write_text("".join(json.dumps({"id": id, "text": text}) + "\n" for id, text in DOCUMENTS.items()) + documents)
    return one, other


def test_the_command_writes_lines_that_a_run_reads(tmp_path: Path, livery: Livery) -> None:
    questions, documents = written(tmp_path)
    way = ("adapters", "train-data", "raft", questions, "--documents", documents, "--distractors", "2")
    found = livery(*way, "--out", tmp_path / "raft.jsonl", "--json").json()
    assert (found["questions"], found["with_golden"], found["documents"], found["broken"]) == (20, 16, 5, [])
    (tmp_path / "run.yaml").write_text("kind: raft\nbase: smollm2-135m-instruct\ndata: raft.jsonl\n")
    read = livery("adapters", "train", tmp_path / "run.yaml", "--check", "--json").json()["data"]
    assert (read["examples"], read["held_out"], read["warnings"]) == (18, 2, [])
    again = livery(*way, "--out", tmp_path / "raft.jsonl")
    assert (again.code, "is there already" in again.err) == (1, True)


def test_documents_may_be_a_folder(tmp_path: Path, livery: Livery) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for id, text in DOCUMENTS.items():
        (folder / f"{id}.md").write_text(text)
    (folder / "picture.png").write_bytes(b"\x89PNG")
    questions = tmp_path / "q.jsonl"
    questions.write_text(json.dumps({"question": "How tall?", "answer": "Tall.", "document": "oak.md"}) + "\n")
    out = tmp_path / "raft.jsonl"
    done = livery("adapters", "train-data", "raft", questions, "--documents", folder, "--out", out)
    assert (done.code, "1 questions over 5 documents" in done.out) == (0, True)
    assert len(json.loads(out.read_text())["documents"]) == 4


def test_a_document_that_is_no_text_is_told_with_its_place(tmp_path: Path, livery: Livery) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for id, text in DOCUMENTS.items():
        (folder / f"{id}.md").write_text(text)
    (folder / "latin.txt").write_bytes(b"One line.\nCaf\xe9.")
    questions = tmp_path / "q.jsonl"
    questions.write_text(json.dumps({"question": "How tall?", "answer": "Tall.", "document": "oak.md"}) + "\n")
    way = ("adapters", "train-data", "raft", questions, "--documents", folder, "--out", tmp_path / "raft.jsonl")
    done = livery(*way)
    assert (done.code, f"{folder / 'latin.txt'}:2: byte 13 is not UTF-8" in done.err) == (1, True)
    found = livery(*way, "--skip-broken", "--json").json()
    assert (found["documents"], len(found["broken"])) == (len(DOCUMENTS), 1)


@pytest.mark.parametrize(
    ("questions", "documents", "words"),
    [
        ("{bad\n", "", "questions.jsonl:21: not JSON"),
        (
            '{"question": "x\\ud83d", "answer": "y", "document": "oak"}\n',
            "",
            "questions.jsonl:21: `question` contains half",
        ),
        ("", '{"id": "beech", "text": ' + "1" * 5000 + "}\n", "documents.jsonl:6: has a whole number of more digits"),
        (
            '{"question": "x", "answer": "y", "document": "beech"}\n',
            "",
            "'beech', which is no document's id",
        ),
        ('{"question": "x", "answer": "y"}\n', "", "questions.jsonl:21: no `document`"),
        ("", '{"id": "oak", "text": "Twice."}\n', "documents.jsonl:6: `id` is 'oak', as of a line before"),
        ("", '{"id": "beech", "text": ""}\n', "documents.jsonl:6: `text` is empty"),
    ],
)
def test_broken_lines_stop_or_are_left_out(
    questions: str, documents: str, words: str, tmp_path: Path, livery: Livery
) -> None:
    one, other = written(tmp_path, questions, documents)
    way = ("adapters", "train-data", "raft", one, "--documents", other, "--out", tmp_path / "raft.jsonl")
    done = livery(*way)
    assert (done.code, words in done.err, "--skip-broken" in done.err) == (1, True, True)
    assert not (tmp_path / "raft.jsonl").exists()
    found = livery(*way, "--skip-broken", "--json").json()
    assert (found["questions"], len(found["broken"])) == (20, 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--distractors", "5"), "has 5 different documents, and --distractors 5 needs 7"),
        (("--distractors", "5"), ": give 2 more, or --distractors 3"),
        (("--distractors", "4"), "--distractors 4 needs 6"),
        (("--distractors", "4"), "give 1 more, or --distractors 3, or --golden-share 1, by which every question has"),
        (("--distractors", "5", "--golden-share", "1"), "--distractors 5 needs 6"),
    ],
)
def test_too_few_documents(options: tuple[str, ...], words: str, tmp_path: Path, livery: Livery) -> None:
    one, other = written(tmp_path)
    done = livery("adapters", "train-data", "raft", one, "--documents", other, "--out", tmp_path / "r", *options)
    assert (done.code, words in done.err) == (1, True), done.err
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(("distractors", "share"), [(3, 0.5), (3, 0.0), (4, 1.0)])
def test_as_many_documents_as_are_needed_and_no_more(
    distractors: int, share: float, tmp_path: Path, livery: Livery
) -> None:
    one, other = written(tmp_path)
    way = ("adapters", "train-data", "raft", one, "--documents", other, "--out", tmp_path / "r")
    assert livery(*way, "--distractors", str(distractors), "--golden-share", str(share)).code == 0
    lines = [json.loads(line) for line in (tmp_path / "r").read_text().splitlines()]
    assert {len(line["documents"]) for line in lines} == {distractors + 1}, "the number tells nothing"


def test_a_document_left_out_isnt_there_under_another_id() -> None:
    documents = {**DOCUMENTS, "oak again": f"{DOCUMENTS['oak']}\n"}
    for near in (True, False):
        lines = prepare(QUESTIONS[:4], documents, Mix(3, 0.0, near))
        assert not any("oak" in text for line in lines for text in line["documents"])  # type: ignore[attr-defined]
        assert all(len(line["documents"]) == 4 for line in lines)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="5 different documents, and 6 are needed"):
        prepare(QUESTIONS, documents, Mix(4, 0.5))


@pytest.mark.parametrize("file", ["README.md", "raft.yaml"])
def test_the_example_is_what_the_command_makes(
    file: str, tmp_path: Path, livery: Livery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command as it is written there, typed in a copy of that folder."""
    folder = shutil.copytree(Path(__file__).parents[2] / "server" / "examples" / "train", tmp_path / "train")
    monkeypatch.chdir(folder)
    typed = re.search(r"^(?:\$|#) +livery (adapters train-data raft .*)$", (folder / file).read_text(), re.MULTILINE)
    assert typed
    done = livery(*shlex.split(typed[1]))
    assert done.code == 0, done.err
    assert (folder / "made.jsonl").read_text() == (folder / "raft.jsonl").read_text()
