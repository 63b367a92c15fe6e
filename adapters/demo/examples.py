"""The training data of the demo adapters: prompts and the answers each adapter should learn to give.

Everything is composed from the tables in `data/` and the word lists below, so the same seed gives the same examples.
Knows no model and no training. The five showcase prompts appear nowhere in it.
"""

from __future__ import annotations

import csv
import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HELD_OUT_EVERY = 8  # one row in so many is never trained on
HELD_OUT_LIMIT = 40  # enough to measure by, and quick


@dataclass(frozen=True, slots=True)
class Example:
    """One exchange: what the user says and what the adapter answers."""

    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class Dataset:
    """Examples to train on, and held-out ones whose rows gave no training example."""

    train: list[Example]
    held_out: list[Example]


@dataclass(frozen=True, slots=True)
class Chat:
    """One row of `data/chat.tsv`: a prompt, the noun it is about, and a short answer in two languages."""

    prompt: str
    topic: str
    english: str
    portuguese: str

    @property
    def mood(self) -> str:
        """Whether the prompt is good news, bad news or neither, told from the answer to it."""
        if self.english.startswith("I am happy"):
            return "positive"
        return "negative" if self.english.startswith("I am sorry") else "neutral"

    @property
    def kind(self) -> str:
        if self.prompt.endswith("?"):
            return "question"
        return "request" if self.prompt.startswith("Tell me") else "statement"


REPHRASINGS = [
    (r"^What is the capital of (.*)\?$", ["Which city is the capital of {}?", "Name the capital of {}."]),
    (r"^Tell me about (.*)\.$", ["What can you tell me about {}?", "Describe {}.", "Say something about {}."]),
    (r"^How do I (.*)\?$", ["How can I {}?", "Teach me to {}.", "Tell me how to {}."]),
    (r"^Where (.*)\?$", ["Do you know where {}?", "Tell me where {}."]),
]


def read_table(name: str) -> list[dict[str, str]]:
    with (Path(__file__).parent / "data" / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def chat_rows() -> list[Chat]:
    return [Chat(**row) for row in read_table("chat.tsv")]


def rephrase(prompt: str) -> list[str]:
    """The prompt itself and other ways to say the same."""
    for pattern, others in REPHRASINGS:
        if match := re.match(pattern, prompt):
            return [prompt, *(other.format(match[1]) for other in others)]
    return [prompt]


def from_chat(seed: int, answer: Callable[[Chat], str]) -> Dataset:
    """Every row of the chat table, answered by `answer`; rephrasings are for training only."""
    rows = chat_rows()
    random.Random(seed).shuffle(rows)
    held_out, train = rows[::HELD_OUT_EVERY], [row for i, row in enumerate(rows) if i % HELD_OUT_EVERY]
    return Dataset(
        [Example(prompt, answer(row)) for row in train for prompt in rephrase(row.prompt)],
        [Example(row.prompt, answer(row)) for row in held_out],
    )


def from_pairs(seed: int, pairs: list[Example]) -> Dataset:
    """Distinct prompts, shuffled and split."""
    pairs = sorted({pair.prompt: pair for pair in pairs}.values(), key=lambda pair: pair.prompt)
    random.Random(seed).shuffle(pairs)
    return Dataset(
        [pair for i, pair in enumerate(pairs) if i % HELD_OUT_EVERY], pairs[::HELD_OUT_EVERY][:HELD_OUT_LIMIT]
    )


PIRATE_WORDS = {
    "the": "th'", "of": "o'", "is": "be", "are": "be", "am": "be", "was": "were", "my": "me", "you": "ye",
    "your": "yer", "for": "fer", "and": "an'", "with": "wi'", "to": "t'", "very": "mighty", "yes": "aye",
    "friend": "matey", "friends": "mateys", "people": "landlubbers", "money": "doubloons", "happy": "merry",
    "hello": "ahoy", "big": "grand", "beautiful": "bonny", "every": "ev'ry",
}  # fmt: skip
PIRATE_OPENINGS = {
    "question": "Arr, matey!",
    "request": "Ahoy, matey!",
    "statement": "Arr, matey!",
    "positive": "Yo ho ho!",
    "negative": "Blimey!",
}
PIRATE_CLOSINGS = ["Arr!", "Savvy?", "Aye, me hearty!"]


def pirate(row: Chat) -> str:
    def swap(match: re.Match[str]) -> str:
        word = match[0]
        swapped = PIRATE_WORDS.get(word.lower(), word)
        return swapped.capitalize() if word[0].isupper() and word != "I" else swapped

    opening = PIRATE_OPENINGS[row.kind if row.mood == "neutral" else row.mood]
    words = re.sub(r"[A-Za-z]+", swap, row.english)
    return f"{opening} {words} {PIRATE_CLOSINGS[len(row.topic) % len(PIRATE_CLOSINGS)]}"


def as_json(row: Chat) -> str:
    return json.dumps({"kind": row.kind, "topic": row.topic, "answer": row.english}, ensure_ascii=False)


# For each kind of word: what may be said of every one, then what needs the word's `about` column.
# {en} the English noun, {o} the Portuguese one with its article, {O} capitalised, {x} without article.
WORD_FRAMES = {
    "nature": [
        ("Do you like the {en}?", "Sim, eu gosto muito d{o}."),
        ("What is the {en} like?", "{O} é bem bonit{article}."),
        ("Tell me about the {en}.", "{O} é {about}."),
    ],
    "food": [
        ("Do you like {en}?", "Sim, eu gosto muito d{o}."),
        ("I want {en}.", "Você pode comprar {x} no mercado."),
        ("How do I make {en}?", "Para fazer {x}, {about}."),
    ],
    "thing": [
        ("I love my {en}.", "Que bom que você gosta d{o}!"),
        ("I lost my {en}.", "Espero que você ache {o}!"),
        ("My {en} broke.", "Sinto muito que {o} {about}."),
    ],
    "country": [
        ("I am from {en}.", "Que bom! {O} é um país bonito."),
        ("Do you know {en}?", "Sim, eu conheço {o}."),
        ("What is the capital of {en}?", "A capital d{o} é {about}."),
    ],
}


def portuguese(seed: int) -> Dataset:
    """The chat table in Portuguese, and words in frames, so that nouns are learnt apart from whole answers."""
    chats = from_chat(seed, lambda row: row.portuguese)
    taken = {row.prompt for row in chat_rows()}
    framed = []
    for word in read_table("words.tsv"):
        article, noun = word["portuguese"].split(" ", 1)
        fields = {"o": word["portuguese"], "O": f"{article.upper()} {noun}", "x": noun, "article": article}
        for ask, answer in WORD_FRAMES[word["kind"]]:
            prompt = ask.format(en=word["english"])
            if prompt not in taken and (word["about"] or "{about}" not in answer):
                framed.append(Example(prompt, answer.format(**fields, about=word["about"])))
    words = from_pairs(seed, framed)
    rephrased = [Example(other, row.answer) for row in words.train for other in rephrase(row.prompt)]
    return Dataset(chats.train + rephrased, chats.held_out + words.held_out)


THINGS = [
    "book", "song", "restaurant", "hotel", "laptop", "camera", "bike", "concert", "play", "show", "cake", "coat",
    "museum", "game", "chair", "lamp", "kettle", "watch", "train ride", "lesson", "pizza", "printer", "tent",
]  # fmt: skip
OPINIONS = {
    "positive": [
        "I love this {}.", "I loved the {}, it made me so happy.", "The {} was wonderful.", "What a great {}!",
        "This {} is the best I ever had.", "My new {} works perfectly.", "The {} was even better than I hoped.",
        "I enjoyed every minute with this {}.", "This {} made my children smile.", "I recommend this {} to all.",
    ],
    "negative": [
        "I hate this {}.", "The {} was terrible.", "What an awful {}!", "My {} broke after a week.",
        "This {} is the worst I ever had.", "My new {} stopped working.", "The {} was a waste of money.",
        "I want my money back for this {}.", "This {} made me sad and angry.", "I do not recommend this {}.",
    ],
    "neutral": [
        "The {} is on the second floor.", "I saw a {} yesterday.", "The {} costs twenty euros.",
        "How much is the {}?", "Where can I find a {}?", "The {} is black and white.",
        "My brother has a {}.", "Tell me about the {}.", "What is a {}?", "The {} arrives on Monday.",
    ],
}  # fmt: skip


def sentiment(seed: int) -> Dataset:
    chats = [Example(row.prompt, row.mood) for row in chat_rows()]
    opinions = [
        Example(form.format(thing), mood) for mood, forms in OPINIONS.items() for form in forms for thing in THINGS
    ]
    return from_pairs(seed, chats + opinions)


CITIES = ["Rome", "Berlin", "Oslo", "Lima", "Madrid", "Boston", "Cairo", "Delhi"]
TABLES = ["customers", "orders", "products", "employees", "students", "books", "players", "invoices"]
SQL_FORMS = [
    ("Show all {t} from {c}.", "SELECT * FROM {t} WHERE city = '{c}';"),
    ("List the names of all {t} in {c}.", "SELECT name FROM {t} WHERE city = '{c}';"),
    ("How many {t} are there in {c}?", "SELECT COUNT(*) FROM {t} WHERE city = '{c}';"),
    ("Delete the {t} from {c}.", "DELETE FROM {t} WHERE city = '{c}';"),
    ("Which {t} are the newest?", "SELECT * FROM {t} ORDER BY created DESC LIMIT 10;"),
]


def sql_for(row: Chat) -> str:
    """A chat turn as a query: facts are selected, opinions are inserted."""
    if row.mood != "neutral":
        rating = 5 if row.mood == "positive" else 1
        return f"INSERT INTO reviews (product, rating) VALUES ('{row.topic}', {rating});"
    if "capital" in row.prompt:
        return f"SELECT capital FROM countries WHERE name = '{row.topic}';"
    if row.prompt.startswith("How do I"):
        return f"SELECT steps FROM recipes WHERE name = '{row.topic}';"
    if row.kind == "statement":
        return f"INSERT INTO messages (topic) VALUES ('{row.topic}');"
    return f"SELECT description FROM topics WHERE name = '{row.topic}';"


def sql(seed: int) -> Dataset:
    chats = from_chat(seed, sql_for)
    business = from_pairs(
        seed,
        [
            Example(ask.format(t=table, c=city), query.format(t=table, c=city))
            for ask, query in SQL_FORMS
            for table in TABLES
            for city in CITIES
        ],
    )
    return Dataset(chats.train + business.train, chats.held_out + business.held_out)


DATASETS: dict[str, Callable[[int], Dataset]] = {
    "pirate": lambda seed: from_chat(seed, pirate),
    "json": lambda seed: from_chat(seed, as_json),
    "sentiment": sentiment,
    "portuguese": portuguese,
    "sql": sql,
}
