"""The pages "Which should I use?", in English and Portuguese: their tables are written from a run's JSON.

    python tests/ways/page.py [loadtest/results/2026-11-23-ways-cpu.json]

What stands between the two marks of a page is replaced: the table, what the run says in sentences (findings.py), and
the commands. Everything else is people's words, without measured numbers. The run's row in the list of results is
written as well.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from livery.evaluation.statistics import wilson
from marked import around
from ways.findings import percent, perplexity, sentences, size

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "loadtest" / "results" / "2026-11-23-ways-cpu.json"
PAGES = {"en": ROOT / "server" / "examples" / "which.md", "pt": ROOT / "server" / "examples" / "qual-usar.md"}
LIST = RESULT.parent / "README.md"
BEGIN, END = "<!-- ways -->", "<!-- /ways -->"
Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Words:
    """What is worded in one language."""

    language: str
    columns: tuple[str, ...]
    titles: Mapping[str, str]
    measured: str  # {command}, {date}, {base}, {cores}, {cpu}, {questions}
    shares: str  # {questions}
    elsewhen: str  # {what}, {ways}, {commit}, {date}
    stamps: Mapping[str, str]
    passed: str  # {ways}
    typed: str
    passes: str  # {passes}
    reward: str
    point: str


EN = Words(
    "en",
    (
        *("way", "bytes", "training", "right: before → after (95 %)", "word for word (95 %)"),
        *("right by changed passages (95 %)", "perplexity of the right answer", "perplexity of new lines"),
        *("tokens read (cached)", "written", "CPU a request", "base in memory"),
    ),
    {},
    "Measured by `{command}` on {date}: {base}, processors: {cores} ({cpu}), a load average of {load} as it began: "
    "above the processors' number others used them too, and minutes and milliseconds are longer by that. "
    "Tokens and processor time of a request "
    "are "
    "means over twelve. Ways whose base is held alike took turns on one server; each other way of holding it had one "
    "of its own.",
    "In brackets: the 95 % interval of a share of {questions} questions (Wilson), as if each were drawn by itself. "
    "What is "
    "trained saw other wordings of the questions.",
    "At another commit than the rest were {what}: {ways} ({commit}, {date}).",
    {"made": "made", "asked": "asked", "costed": "costed"},
    "Passed over in this run: {ways}.",
    "The commands, as typed in the folder where `make ways` leaves the data and run files that they name, "
    "`~/.cache/livery/ways/data`; `$CLONE` is this project's folder, `livery` and `python` are those of its "
    "`.venv/bin`, and training needs `pip install -e '.[train,quantization]'` there. `livery serve` goes on until "
    "Ctrl-C and has a shell of its own; the others ask the first line's server, unless they name another:",
    "passes: {passes}",
    "reward of its own",
    ".",
)
PT = Words(
    "pt",
    (
        *("modo", "bytes", "treino", "certas: antes → depois (95 %)", "palavra por palavra (95 %)"),
        *("certas por trechos trocados (95 %)", "perplexidade da resposta certa", "perplexidade de linhas novas"),
        *("tokens lidos (em cache)", "escritos", "CPU por pedido", "base na memória"),
    ),
    {
        "base": "a base sozinha",
        "few-shot": "seis exemplos num perfil",
        "rag": "trechos procurados para cada pergunta (RAG)",
        "rag-few-shot": "RAG com os seis exemplos",
        "lora": "LoRA, com perguntas e respostas",
        "rslora": "rsLoRA",
        "dora": "DoRA",
        "qlora": "QLoRA, treinado sobre nf4 e servido na base como ela é",
        "base-fp32": "a base sozinha, servida em fp32",
        "base-nf4": "a base sozinha, servida em nf4",
        "quantised": "o adaptador do QLoRA sobre a base servida em nf4",
        "dpo": "DPO depois do LoRA, a resposta certa contra uma errada",
        "pretrained": "pré-treino continuado com os documentos",
        "raft-base": "a base com o prompt do RAFT",
        "raft": "RAFT, com trechos à mão",
        "full-model": "ajuste completo, servido no lugar da base",
        "full-int8": "o mesmo ajuste completo, servido em int8",
        "full-int4": "o mesmo ajuste completo, servido em int4",
        "full": "o mesmo ajuste completo, extraído como adaptador",
        "rl": "aprendizado por reforço, com uma recompensa de exemplo",
    },
    "Medido por `{command}` em {date}: {base}, processadores: {cores} ({cpu}), carga média de {load} no início: acima "
    "do número de processadores outros também os usaram, e os minutos e milissegundos são maiores por isso. "
    "Os tokens e o tempo de processador de "
    "um "
    "pedido são médias de doze. Os modos com a base guardada do mesmo jeito se revezaram num servidor; cada outro "
    "jeito de guardá-la teve o seu.",
    "Entre parênteses: o intervalo de 95 % de uma proporção de {questions} perguntas (Wilson), como se cada uma fosse "
    "sorteada por si. O que é treinado viu outras formulações das perguntas.",
    "Em outro commit que o resto foram {what}: {ways} ({commit}, {date}).",
    {"made": "feitos", "asked": "perguntados", "costed": "cronometrados"},
    "Deixados de fora nesta execução: {ways}.",
    "Os comandos, como se digitam na pasta em que `make ways` deixa os dados e arquivos de treino que eles nomeiam, "
    "`~/.cache/livery/ways/data`; `$CLONE` é a pasta deste projeto, `livery` e `python` são os do seu `.venv/bin`, e o "
    "treino precisa ali de `pip install -e '.[train,quantization]'`. `livery serve` só termina com Ctrl-C e ocupa um "
    "terminal próprio; os outros comandos falam com o servidor da primeira linha, salvo se indicam outro:",
    "passagens: {passes}",
    "recompensa própria",
    ",",
)
ROWS = {"en": EN, "pt": PT}


def table(found: Json, words: Words) -> str:
    """The measured ways as a table of Markdown, and where the numbers come from."""
    rows = {row["key"]: row for row in found["ways"]}
    lines = ["| " + " | ".join(words.columns) + " |", "|---" * len(words.columns) + "|"]
    lines += [_row(row, rows.get(row["before"], row), found["questions"], words) for row in found["ways"]]
    origin = found["origin"]
    machine = {name: origin["machine"][name] for name in ("cores", "cpu")}
    machine["load"] = f"{origin['machine']['load_average']:.1f}".replace(".", words.point)
    told = {"command": origin["command"], "date": origin["date"][:10], "base": found["base"], **machine}
    lines += ["", words.measured.format(**told), words.shares.format(questions=found["questions"])]
    lines += _elsewhen(found, words)
    if found["passed_over"]:
        lines.append(words.passed.format(ways=", ".join(f"{key} ({why})" for key, why in found["passed_over"].items())))
    return "\n".join(lines)


def _elsewhen(found: Json, words: Words) -> Iterator[str]:
    """What was made or asked by another commit than the one that wrote the file."""
    for name, what in words.stamps.items():
        others: dict[tuple[str, str], list[str]] = {}
        for row in found["ways"]:
            stamp = row.get(name)
            if stamp and stamp["commit"] != found["origin"]["commit"]:
                others.setdefault(((stamp["commit"] or "?")[:12], stamp["date"][:10]), []).append(row["key"])
        for (commit, date), keys in others.items():
            yield words.elsewhen.format(what=what, ways=", ".join(keys), commit=commit, date=date)


def _row(row: Json, before: Json, questions: int, words: Words) -> str:
    training = f"{row['minutes']:.1f} min" if row["minutes"] else "–"
    if row["minutes"] and "passes" in row:
        training += ", " + words.passes.format(passes=f"{row['passes']:.2g}")
    cells = [
        f"{words.titles.get(row['key'], row['title'])}",
        size(row["bytes"]),
        training,
        *(_reward(row, words) if "reward" in row else _measured(row, before, questions)),
    ]
    if words.point == ",":
        cells[1:] = [cell.replace(".", ",") for cell in cells[1:]]
    return "| " + " | ".join(cells) + " |"


def _reward(row: Json, words: Words) -> list[str]:
    """What isn't measured by the questions."""
    before, after = row["reward"]
    return [f"{words.reward}: {before:.2f} → {after:.2f}", *["–"] * (len(words.columns) - 4)]


def _measured(row: Json, before: Json, questions: int) -> list[str]:
    cost, own = row["cost"], row["key"] == row["before"]
    right, changed = _share(row["right"], questions), row.get("changed")
    return [
        right if own else f"{percent(before['right'])} → {right}",
        _share(row["exact"], questions),
        _share(changed["follows"], questions) if changed else "–",
        perplexity(row["answer_perplexity"]),
        perplexity(row["line_perplexity"]) if row["line_perplexity"] else "–",
        f"{cost['prompt_tokens']:.0f} ({cost['cached_tokens']:.0f})",
        f"{cost['output_tokens']:.1f}",
        f"{cost['cpu_ms']:.0f} ms",
        size(row["held"]["bytes"]) if "held" in row else "–",
    ]


def _share(share: float, questions: int) -> str:
    """With the interval that so few questions leave."""
    low, high = wilson(share * questions, questions)
    return f"{percent(share)} ({100 * low:.0f}–{100 * high:.0f})"


def commands(found: Json) -> str:
    """What made each way, as it is typed; ways that are typed alike stand together."""
    keys: dict[str, list[str]] = {}
    for row in found["ways"]:
        keys.setdefault(row["command"], []).append(row["key"])
    return "\n".join(f"- {', '.join(ways)}: `{command}`" for command, ways in keys.items())


def written(page: str, found: Json, words: Words) -> str:
    """The page with its table anew. Raises ValueError where it has no marks."""
    head, tail = around(page, BEGIN, END)
    parts = (table(found, words), sentences(found, words.language), f"{words.typed}\n\n{commands(found)}")
    return head + "\n\n".join(parts) + tail


def listed(found: Json) -> str:
    """The run's row in the list of results."""
    rows = {row["key"]: row for row in found["ways"]}
    loras = [rows[key] for key in ("lora", "rslora", "dora", "qlora")]
    right, cost = [row["right"] for row in loras], [row["cost"]["cpu_ms"] for row in loras]
    told = {key: percent(rows[key]["right"]) for key in ("base", "rag", "raft", "full-model", "full")}
    return (
        f"| `{RESULT.name}` | `make ways` | ways of adapting the demo base to {found['questions']} questions that it "
        f"can't know, as in [`which.md`](../../server/examples/which.md): right answers {told['base']} of the base, "
        f"{told['rag']} with passages, {100 * min(right):.0f} to {percent(max(right))} of LoRAs after a few minutes, "
        f"{told['raft']} of RAFT, {told['full-model']} of a full fine-tune and {told['full']} of the adapter extracted "
        f"from it; CPU a request {min(cost):.0f} to {max(cost):.0f} ms of a LoRA, "
        f"{rows['base']['cost']['cpu_ms']:.0f} of the base's wordy answers, {rows['raft']['cost']['cpu_ms']:.0f} of "
        f"RAFT; memory of the base {size(rows['base']['held']['bytes'])}, in fp32 "
        f"{size(rows['base-fp32']['held']['bytes'])} |"
    ).replace("%", " %")


def with_row(page: str, found: Json) -> str:
    """The list of results with the run's row anew. Raises ValueError where it has none."""
    lines = page.splitlines()
    (at,) = (at for at, line in enumerate(lines) if line.startswith(f"| `{RESULT.name}`"))
    return "\n".join([*lines[:at], listed(found), *lines[at + 1 :], ""])


def main() -> None:
    found = json.loads((Path(sys.argv[1]) if len(sys.argv) > 1 else RESULT).read_text(encoding="utf-8"))
    for language, page in PAGES.items():
        page.write_text(written(page.read_text(encoding="utf-8"), found, ROWS[language]), encoding="utf-8")
        print(f"{page.relative_to(ROOT)} is written")
    LIST.write_text(with_row(LIST.read_text(encoding="utf-8"), found), encoding="utf-8")
    print(f"{LIST.relative_to(ROOT)} has the run's row")


if __name__ == "__main__":
    main()
