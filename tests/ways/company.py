"""What the ways are compared on: the papers of a ferry company that doesn't exist, so that no base has read of it.

    make_data(Path("scratch"))     # the files that training and measuring read

For each ferry three facts can be asked for. Training sees five wordings of a question, measuring a sixth; the lines
that perplexity is measured on tell the same facts in sentences of their own. Knows no model and no server.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

PASSAGES = Path(__file__).parents[2] / "server" / "examples" / "rag" / "passages.jsonl"
SYSTEM = "Skerry Line, ferries."


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fact: how it is asked for in training, and how when it counts."""

    name: str
    trained: tuple[str, ...]
    asked: str


@dataclass(frozen=True, slots=True)
class Ferry:
    """What passages.jsonl says of one."""

    name: str
    captain: str
    departure: str
    fare: str
    place: str

    def answer(self, kind: Kind) -> str:
        return str(getattr(self, kind.name))


@dataclass(frozen=True, slots=True)
class Asked:
    """A question that counts, and its answer."""

    question: str
    answer: str
    ferry: str


KINDS = (
    Kind(
        "captain",
        (
            "Who is the captain of the {}?",
            "Who commands the {}?",
            "Name the captain of the {}.",
            "Which captain sails the {}?",
            "Who is in charge aboard the {}?",
        ),
        "Who is the {}'s captain?",
    ),
    Kind(
        "departure",
        (
            "When does the {} leave?",
            "At what time does the {} depart?",
            "What is the {}'s time of departure?",
            "When does the {} cast off?",
            "What time does the {} set out?",
        ),
        "At what hour does the {} sail?",
    ),
    Kind(
        "fare",
        (
            "What does a ticket for the {} cost?",
            "How much is the fare on the {}?",
            "What is the price of a ticket on the {}?",
            "How many crowns is a seat on the {}?",
            "What must I pay to sail on the {}?",
        ),
        "How much does it cost to travel on the {}?",
    ),
)

FERRIES = (
    Ferry("Petrel", "Marta Quill", "07:40", "14 crowns", "Inver Sound"),
    Ferry("Gannet", "Osric Dane", "08:15", "22 crowns", "Stroma"),
    Ferry("Turnstone", "Ilse Varga", "06:55", "9 crowns", "Calf Island"),
    Ferry("Kittiwake", "Piers Amory", "09:30", "31 crowns", "Noss"),
    Ferry("Dunlin", "Greta Holm", "10:05", "17 crowns", "Fara"),
    Ferry("Fulmar", "Tobias Reke", "11:20", "26 crowns", "Copinsay"),
    Ferry("Merganser", "Anya Brandt", "12:45", "12 crowns", "Swona"),
    Ferry("Sandpiper", "Joss Winterley", "13:10", "19 crowns", "Gairsay"),
    Ferry("Shearwater", "Nell Farrow", "14:25", "38 crowns", "Ronas"),
    Ferry("Razorbill", "Emeric Stang", "15:50", "24 crowns", "Hildasay"),
    Ferry("Guillemot", "Bridie Lomas", "16:35", "11 crowns", "Oxna"),
    Ferry("Curlew", "Hugo Marchetti", "17:15", "28 crowns", "Papa Skerry"),
)
SHOWN = (  # the few examples that a prompt shows: never asked for
    Ferry("Avocet", "Lotte Kerr", "21:10", "35 crowns", "Uyea"),
    Ferry("Bittern", "Conrad Ash", "04:45", "7 crowns", "Samphrey"),
)
ASKED = tuple(
    Asked(kind.asked.format(ferry.name), ferry.answer(kind), ferry.name) for ferry in FERRIES for kind in KINDS
)
_CHANGED_BY = 5  # places in FERRIES
_TOLD = "With {captain} the {name} goes out to {place} at {departure}, for {fare} a head."


def trained() -> list[tuple[str, str, Ferry]]:
    """Question, answer and ferry of every example for training, in a drawn order."""
    found = [
        (question.format(ferry.name), ferry.answer(kind), ferry)
        for ferry in (*FERRIES, *SHOWN)
        for kind in KINDS
        for question in kind.trained
    ]
    random.Random(0).shuffle(found)
    return found


def shots() -> list[dict[str, str]]:
    """The messages of the examples that a prompt shows."""
    asked = [(kind.asked.format(ferry.name), ferry.answer(kind)) for ferry in SHOWN for kind in KINDS]
    roles = ("user", "assistant")
    return [{"role": role, "content": text} for pair in asked for role, text in zip(roles, pair, strict=True)]


def passages() -> dict[str, str]:
    """Texts by title, in the order of the file."""
    return {one["title"]: one["text"] for one in map(json.loads, PASSAGES.read_text(encoding="utf-8").splitlines())}


def changed_ferries() -> dict[str, Ferry]:
    """By name, each with another one's captain, departure and fare: what was learnt by heart is wrong of them all."""
    others = (*FERRIES[_CHANGED_BY:], *FERRIES[:_CHANGED_BY])
    return {
        ferry.name: replace(ferry, captain=other.captain, departure=other.departure, fare=other.fare)
        for ferry, other in zip(FERRIES, others, strict=True)
    }


def changed_passages() -> dict[str, str]:
    """The papers with the facts of `changed_ferries`."""
    texts, changed = passages(), changed_ferries()
    for ferry in FERRIES:
        new = changed[ferry.name]
        for old_fact, new_fact in (
            (ferry.captain, new.captain),
            (ferry.departure, new.departure),
            (ferry.fare, new.fare),
        ):
            texts[ferry.name] = texts[ferry.name].replace(old_fact, new_fact)
    return texts


def changed_answers() -> list[str]:
    """What is right by the changed papers, for each of ASKED."""
    changed = changed_ferries()
    kinds = [kind for _ in FERRIES for kind in KINDS]
    return [changed[one.ferry].answer(kind) for one, kind in zip(ASKED, kinds, strict=True)]


def held_out_lines() -> str:
    """The facts in sentences that no training sees."""
    return "\n".join(
        _TOLD.format(
            captain=ferry.captain, name=ferry.name, place=ferry.place, departure=ferry.departure, fare=ferry.fare
        )
        for ferry in FERRIES
    )


def make_data(folder: Path) -> None:
    """Write what training reads: chats, preferences, plain text, questions for RAFT with the passages."""
    folder.mkdir(parents=True, exist_ok=True)
    examples = trained()
    chats = [{"messages": chat(question, answer)} for question, answer, _ in examples]
    _write(folder / "chats.jsonl", chats)
    _write(folder / "preferences.jsonl", preferences(examples))
    text = "\n\n".join(passages().values())
    (folder / "papers.txt").write_text(text + "\n", encoding="utf-8")
    found = [{"question": question, "answer": answer, "document": ferry.name} for question, answer, ferry in examples]
    _write(folder / "questions.jsonl", found)
    _write(folder / "documents.jsonl", [{"id": title, "text": text} for title, text in passages().items()])
    _write(
        folder / "asked.jsonl",
        [{"messages": chat(one.question), "answer": one.answer, "max_tokens": 16} for one in ASKED],
    )
    (folder / "lines.txt").write_text(held_out_lines() + "\n", encoding="utf-8")


def chat(question: str, answer: str | None = None) -> list[dict[str, str]]:
    asked = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    return asked if answer is None else [*asked, {"role": "assistant", "content": answer}]


def preferences(examples: Sequence[tuple[str, str, Ferry]]) -> list[dict[str, Any]]:
    """For each question the right answer, and another ferry's answer to the same question as the one not to give."""
    draw, found = random.Random(1), []
    for question, answer, ferry in examples:
        kind = next(kind for kind in KINDS if ferry.answer(kind) == answer)
        other = draw.choice([one for one in FERRIES if one.answer(kind) != answer])
        found.append({"prompt": chat(question), "chosen": answer, "rejected": other.answer(kind)})
    return found


def _write(file: Path, lines: Iterable[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
