"""The pages "Which should I use?", in English and Portuguese: their tables are written from a run's JSON.

    python tests/ways/page.py [loadtest/results/2026-11-22-ways-cpu.json]

What stands between the two marks of a page is replaced; everything else is people's words.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "loadtest" / "results" / "2026-11-22-ways-cpu.json"
PAGES = {"en": ROOT / "server" / "examples" / "which.md", "pt": ROOT / "server" / "examples" / "qual-usar.md"}
BEGIN, END = "<!-- ways -->", "<!-- /ways -->"
Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Words:
    """What a table is worded with in one language."""

    columns: tuple[str, ...]
    titles: Mapping[str, str]
    measured: str  # {command}, {date}, {cores}, {base}, {machine}
    passed: str  # {ways}
    reward: str
    point: str


EN = Words(
    (
        *("way", "bytes", "training", "right: before → after", "word for word", "perplexity of the right answer"),
        *("perplexity of new lines", "tokens read (cached)", "written", "CPU a request"),
    ),
    {},
    "Measured by `{command}` on {date}: {base}, processors: {cores} ({machine}). {questions} questions, of which "
    "training saw other wordings; tokens and processor time of a request are means over twelve, ways in turn on one "
    "server.",
    "Passed over in this run: {ways}.",
    "reward of its own",
    ".",
)
PT = Words(
    (
        *("modo", "bytes", "treino", "certas: antes → depois", "palavra por palavra", "perplexidade da resposta certa"),
        *("perplexidade de linhas novas", "tokens lidos (em cache)", "escritos", "CPU por pedido"),
    ),
    {
        "base": "a base sozinha",
        "few-shot": "seis exemplos num perfil",
        "rag": "trechos procurados para cada pergunta (RAG)",
        "rag-few-shot": "RAG com os seis exemplos",
        "lora": "LoRA, com perguntas e respostas",
        "rslora": "rsLoRA",
        "dora": "DoRA",
        "qlora": "QLoRA, treinado sobre nf4",
        "quantised": "o mesmo sobre uma base nf4",
        "dpo": "DPO, a resposta certa contra uma errada",
        "pretrained": "pré-treino continuado com os papéis",
        "raft": "RAFT, com trechos à mão",
        "full": "ajuste completo, extraído",
        "rl": "aprendizagem por reforço",
    },
    "Medido por `{command}` em {date}: {base}, processadores: {cores} ({machine}). {questions} perguntas, das quais o "
    "treino viu outras formulações; os tokens e o tempo de processador de um pedido são médias de doze delas, um modo "
    "após o outro no mesmo servidor.",
    "Deixados de fora nesta execução: {ways}.",
    "recompensa própria",
    ",",
)
ROWS = {"en": EN, "pt": PT}


def table(found: Json, words: Words) -> str:
    """The measured ways as a table of Markdown, and where the numbers come from."""
    rows = {row["key"]: row for row in found["ways"]}
    lines = ["| " + " | ".join(words.columns) + " |", "|---" * len(words.columns) + "|"]
    lines += [_row(row, rows.get(row["before"], row), words) for row in found["ways"]]
    origin = found["origin"]
    lines += ["", words.measured.format(**{**origin, "questions": found["questions"], "date": origin["date"][:10]})]
    if found["passed_over"]:
        lines.append(words.passed.format(ways=", ".join(f"{key} ({why})" for key, why in found["passed_over"].items())))
    return "\n".join(lines)


def _row(row: Json, before: Json, words: Words) -> str:
    cells = [
        f"{words.titles.get(row['key'], row['title'])}",
        _size(row["bytes"]),
        f"{row['minutes']:.1f} min" if row["minutes"] else "–",
        *(_reward(row, words) if "reward" in row else _measured(row, before)),
    ]
    if words.point == ",":
        cells[1:] = [cell.replace(".", ",") for cell in cells[1:]]
    return "| " + " | ".join(cells) + " |"


def _reward(row: Json, words: Words) -> list[str]:
    """What isn't measured by the questions."""
    before, after = row["reward"]
    return [f"{words.reward}: {before:.2f} → {after:.2f}", *["–"] * (len(words.columns) - 4)]


def _measured(row: Json, before: Json) -> list[str]:
    cost, own = row["cost"], row["key"] == row["before"]
    return [
        f"{row['right']:.0%}" if own else f"{before['right']:.0%} → {row['right']:.0%}",
        f"{row['exact']:.0%}",
        _perplexity(row["answer_perplexity"]),
        _perplexity(row["line_perplexity"]) if row["line_perplexity"] else "–",
        f"{cost['prompt_tokens']:.0f} ({cost['cached_tokens']:.0f})",
        f"{cost['output_tokens']:.1f}",
        f"{cost['cpu_ms']:.0f} ms",
    ]


def _size(count: float) -> str:
    for unit in ("", "kB", "MB"):
        if count < 1000 or unit == "MB":
            return f"{count:.1f} {unit}" if unit else f"{count:.0f}" if count else "–"
        count /= 1000
    raise AssertionError


def _perplexity(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def commands(found: Json) -> str:
    """What made each way, as it is typed."""
    return "\n".join(f"- {row['key']}: `{row['command']}`" for row in found["ways"])


def written(page: str, found: Json, words: Words) -> str:
    """The page with its table anew. Raises ValueError where it has no marks."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no {BEGIN} … {END}, between which its table stands")
    return f"{before}{BEGIN}\n{table(found, words)}\n\n{commands(found)}\n{END}{after}"


def main() -> None:
    found = json.loads((Path(sys.argv[1]) if len(sys.argv) > 1 else RESULT).read_text(encoding="utf-8"))
    for language, page in PAGES.items():
        page.write_text(written(page.read_text(encoding="utf-8"), found, ROWS[language]), encoding="utf-8")
        print(f"{page.relative_to(ROOT)} is written")


if __name__ == "__main__":
    main()
