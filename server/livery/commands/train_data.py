"""`livery adapters train-data`: training data made of what a team has."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from livery.adapter_views import Json
from livery.commands import shown
from livery.commands.asking import CommandFailed
from livery.commands.reach import AsJson, tell
from livery.training.examples import Broken, Place, Unusable, json_lines, text_of
from livery.training.raft import Mix, Question, different, needed, prepare

app = typer.Typer(help="Make training data.", no_args_is_help=True)
_TEXT_SUFFIXES = (".txt", ".md")
_BROKEN_SHOWN = 5


@app.callback()
def train_data() -> None:
    """Make training data."""


@app.command("raft")
def raft(
    questions: Annotated[
        Path, typer.Argument(metavar="QUESTIONS.jsonl", help="Lines with question, answer, and document: its id.")
    ],
    documents: Annotated[
        Path,
        typer.Option(
            metavar="FILE|DIR", help="Lines with id and text; or a folder of .txt and .md files, ids their names."
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="A new file for `kind: raft` to be trained on.")],
    distractors: Annotated[int, typer.Option(min=1, help="Documents beside the one with the answer.")] = 3,
    golden_share: Annotated[
        float,
        typer.Option(min=0, max=1, metavar="SHARE", help="How many of the questions get the document with the answer."),
    ] = 0.8,
    near: Annotated[
        bool, typer.Option("--near/--any", help="Distractors that a search finds first (BM25), or any.")
    ] = True,
    seed: Annotated[int, typer.Option(help="Decides the order, and which are left out.")] = 0,
    skip_broken: Annotated[bool, typer.Option("--skip-broken", help="Go on without lines that can't be used.")] = False,
    as_json: AsJson = False,
) -> None:
    """Put documents together for each question: the one with its answer among others, and sometimes left out."""
    broken: list[Broken] = []
    texts = _documents(documents, broken)
    asked = list(_questions(questions, texts, broken))
    if broken and not skip_broken:
        shown_lines = "".join(f"\n  {one}" for one in broken[:_BROKEN_SHOWN])
        raise CommandFailed(
            f"{len(broken)} lines can't be used:{shown_lines}\nCorrect them, or go on without them with --skip-broken"
        )
    if not asked:
        raise CommandFailed(f"{questions} has no question that can be used; give lines with question, answer, document")
    mix = Mix(distractors, golden_share, near, seed)
    _check_enough(documents, texts, len(asked), mix)
    lines = prepare(asked, texts, mix)
    _write(out, lines)
    golden = sum(line["golden"] is not None for line in lines)
    answer: Json = {"file": str(out), "questions": len(lines), "with_golden": golden, "documents": len(texts)}
    answer |= {"broken": [str(one) for one in broken]}
    tell(answer, _show, as_json=as_json)


def _show(answer: Json) -> None:
    shown.say(
        f"{answer['file']}: {answer['questions']} questions over {answer['documents']} documents, "
        f"{answer['with_golden']} of them with the one that has the answer"
    )
    for line in answer["broken"]:
        shown.say(f"left out: {line}")


def _documents(source: Path, broken: list[Broken]) -> dict[str, str]:
    """Texts by id. Raises CommandFailed."""
    if source.is_dir():
        found: dict[str, str] = {}
        for path in sorted(source.iterdir()):
            if path.suffix in _TEXT_SUFFIXES:
                content = _text(path, broken)
                if content.strip():
                    found[path.name] = content
        return found
    texts: dict[str, str] = {}
    for place, line in json_lines(source, _read(source)):
        try:
            read = _line(line, broken)
            if read is None:
                continue
            id, text = text_of(read, "id"), text_of(read, "text")
            if id in texts:
                raise Unusable(f"`id` is {id!r}, as of a line before: give each document its own")
            texts[id] = text
        except Unusable as unusable:
            broken.append(Broken(place, str(unusable)))
    return texts


def _check_enough(source: Path, texts: dict[str, str], questions: int, mix: Mix) -> None:
    """Raises CommandFailed where the number of documents would tell whether the answer is among them."""
    there, least = len(different(texts)), needed(questions, mix)
    if there >= least:
        return
    remedies = [f"give {least - there} more"]
    fewer = mix.distractors - (least - there)
    if fewer >= 1:
        remedies.append(f"--distractors {fewer}")
    if there == least - 1 == mix.distractors + 1:
        remedies.append("--golden-share 1, by which every question has its document")
    raise CommandFailed(
        f"--documents {source} has {there} different documents, and --distractors {mix.distractors} needs {least}, so "
        f"that each question gets as many, with its own and without: {', or '.join(remedies)}"
    )


def _text(path: Path, broken: list[Broken]) -> str:
    """Empty, with a word in `broken`, where it isn't text. Raises CommandFailed."""
    content = _read(path)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        broken.append(Broken(Place(str(path), line), f"byte {error.start} is not UTF-8; save the file as such"))
        return ""


def _questions(file: Path, texts: dict[str, str], broken: list[Broken]) -> Iterator[Question]:
    for place, line in json_lines(file, _read(file)):
        try:
            read = _line(line, broken)
            if read is None:
                continue
            one = Question(text_of(read, "question"), text_of(read, "answer"), text_of(read, "document"))
            if one.document not in texts:
                raise Unusable(f"`document` is {one.document!r}, which is no document's id")
            yield one
        except Unusable as unusable:
            broken.append(Broken(place, str(unusable)))


def _line(line: dict[str, Any] | Broken, broken: list[Broken]) -> dict[str, Any] | None:
    if isinstance(line, Broken):
        broken.append(line)
        return None
    return line


def _read(path: Path) -> bytes:
    """Raises CommandFailed."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise CommandFailed(f"{path}: {error.strerror}") from error


def _write(out: Path, lines: list[dict[str, object]]) -> None:
    """Whole or not at all. Raises CommandFailed."""
    beside = out.with_name(f".{out.name}.new")
    try:
        if out.exists():
            raise CommandFailed(f"{out} is there already; name a new file with --out, or remove it")
        beside.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
        beside.replace(out)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise CommandFailed(f"{out} can't be written: {error.strerror}") from error
