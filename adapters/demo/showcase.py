"""Ask a running server the five showcase prompts and print what the base and each adapter answer, as Markdown.

    python adapters/demo/showcase.py [--url http://127.0.0.1:8000] [--write README.md]

With --write the table replaces what stands between the two marks of that file. The answers are greedy, at most
48 tokens long, and printed as they came: only line breaks and bars are written so that a table cell holds them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import httpx

PROMPTS = [
    "What is the capital of France?",
    "I loved this film, it made me laugh all evening.",
    "How do I make tea?",
    "Tell me about the sea.",
    "My phone broke after one day.",
]
MAX_TOKENS = 48
BEGIN, END = "<!-- showcase -->", "<!-- /showcase -->"


def model_names(client: httpx.Client) -> list[str]:
    """Every model the server offers, the base first."""
    answer = client.get("/v1/models").raise_for_status()
    return [model["id"] for model in answer.json()["data"]]


def ask(client: httpx.Client, model: str, prompt: str) -> str:
    """One greedy answer; cut answers end in an ellipsis."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
        "max_tokens": MAX_TOKENS,
    }
    choice = client.post("/v1/chat/completions", json=body).raise_for_status().json()["choices"][0]
    return str(choice["message"]["content"]) + ("…" if choice["finish_reason"] == "length" else "")


def cell(text: str) -> str:
    """Text as one cell of a Markdown table."""
    for plain, written in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("*", "\\*"), ("\n", "<br>")):
        text = text.replace(plain, written)
    return text.strip()


def table(answers: dict[str, dict[str, str]]) -> str:
    """A section for each prompt of `answers` (prompt -> model -> answer), a row for each model."""
    sections = []
    for prompt, by_model in answers.items():
        rows = [f"| `{model}` | {cell(answer)} |" for model, answer in by_model.items()]
        sections.append("\n".join([f"| `model` | {cell(prompt)} |", "|---|---|", *rows]))
    return "\n\n".join(sections)


def replace_between_marks(document: str, text: str) -> str:
    """The document with `text` between its two marks. Raises ValueError where a mark is missing."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"it needs a line {BEGIN} and, after it, a line {END}")
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description="What the base and each adapter answer to five prompts.")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server (default: %(default)s)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table between the marks of FILE")
    arguments = parser.parse_args()
    try:
        with httpx.Client(base_url=arguments.url, timeout=300) as client:
            names = model_names(client)
            shown = table({prompt: {name: ask(client, name, prompt) for name in names} for prompt in PROMPTS})
    except httpx.HTTPError as error:
        parser.exit(1, f"no answer from {arguments.url}: {error}; start the server with: make serve\n")
    if arguments.write is None:
        print(shown)
        return
    try:
        written = replace_between_marks(arguments.write.read_text(encoding="utf-8"), shown)
    except ValueError as error:
        parser.exit(1, f"{arguments.write} can't take the table: {error}\n")
    arguments.write.write_text(written, encoding="utf-8")


if __name__ == "__main__":
    main()
