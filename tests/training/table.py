"""What the examples' runs on the demo base come to, kept as JSON, and from there the table of server/docs/training.md.

    python tests/training/run.py table.py --out FILE [--only sft] [--write]

With --only the rows of the other runs stay as FILE has them. --write also writes the table into the page, from FILE;
without --out that is all it does, and the file is the kept one.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from openai import OpenAI

from livery import __version__
from livery.models import DEMO_MODEL
from livery_loadtest.origin import Origin, document, own_commit, write_json
from marked import around
from server.running import SMALL, livery_serve

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "server" / "examples" / "train"
PAGE = ROOT / "server" / "docs" / "training.md"
RESULT = ROOT / "loadtest" / "results" / "2026-11-22-training-examples-cpu.json"
COMMAND = 'make test-train ONLY="table.py --out FILE"'  # which may be given in parts, by --only
SCHEMA = "livery-training-examples/1"
RUNS = ("sft", "qlora", "dpo", "cpt", "raft")
ASKED = "sft"  # whose adapter is asked the question
QUESTION = "Is the stove warm?"
BEGIN, END = "<!-- training -->", "<!-- /training -->"
PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes")
Json = Mapping[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    parser.add_argument("--only", nargs="+", choices=RUNS, default=RUNS, help="train these anew")
    parser.add_argument("--write", action="store_true", help=f"write the table into {PAGE.relative_to(ROOT)}")
    given = parser.parse_args()
    if given.out:
        measure(given.out, given.only)
    if given.write:
        found = json.loads((given.out or RESULT).read_text(encoding="utf-8"))
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")


def measure(out: Path, names: Sequence[str]) -> None:
    """Train, and write the file after each run."""
    before: Json = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
    rows = {row["run"]: row for row in before.get("runs", ())}
    answers = before.get("answers", {})
    command = shlex.join(["python", "tests/training/run.py", "table.py", *sys.argv[1:]])
    origin = replace(Origin.here(f"livery {__version__}"), command=command)
    with tempfile.TemporaryDirectory(prefix="livery-examples-") as scratch:
        for name in names:
            here = Origin.here(f"livery {__version__}")
            rows[name] = trained(name, Path(scratch) / name)
            rows[name]["made"] = {
                "date": here.date,
                "commit": own_commit(),
                "cores": here.machine.cores,
                "load_average": here.machine.load_average,
            }
            if name == ASKED:
                answers = asked(Path(scratch) / name, Path(scratch))
            runs = [rows[run] for run in RUNS if run in rows]
            found = {"base": DEMO_MODEL, "runs": runs, "question": QUESTION, "answers": answers}
            write_json(document(SCHEMA, origin, PACKAGES, found), out)
            print(row_of(rows[name]), flush=True)


def trained(name: str, out: Path) -> dict[str, Any]:
    """By the command, as a user types it."""
    command = [sys.executable, "-m", "livery", "adapters", "train", f"{EXAMPLES / name}.yaml", "--out", str(out)]
    done = subprocess.run([*command, "--json"], stdout=subprocess.PIPE, text=True, check=True)
    told = json.loads(done.stdout)
    run = told["settings"]["run"]
    facts = {"run": name, "kind": run["kind"], "adapter": run["adapter"], "quantization": run["quantization"]}
    kept = ("steps", "seconds", "device", "evaluation", "warnings")
    return {**facts, **{field: told[field] for field in kept}, "examples": told["data"]["examples"]}


def asked(adapter: Path, scratch: Path) -> dict[str, str]:
    """What the base and the adapter say to a question that is in no data, greedily, on a server."""
    folder = scratch / "served"
    (folder / "adapters").mkdir(parents=True)
    shutil.copytree(adapter, folder / "adapters" / ASKED)
    with livery_serve(DEMO_MODEL, folder / "adapters", folder, *SMALL) as server:
        client = OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=120)
        answers = {
            model: client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": QUESTION}], max_tokens=24, temperature=0
            )
            for model in (DEMO_MODEL, ASKED)
        }
    return {model: str(answer.choices[0].message.content) for model, answer in answers.items()}


# -- the page ------------------------------------------------------------------------------------------------


def table(found: Json) -> str:
    """The runs as a table of Markdown, where their numbers come from, and what the adapter says."""
    origin, (base, own) = found["origin"], found["answers"].values()
    loads = [row["made"]["load_average"] for row in found["runs"]]
    cores = max(row["made"]["cores"] for row in found["runs"])
    parts = (
        "| run | trained | held out | before, after |\n|---|---|---|---|",
        *map(row_of, found["runs"]),
        "",
        f"By `{COMMAND}` on {origin['date'][:10]}: {found['base']}, processors: {cores}",
        f"({origin['machine']['cpu']}), beside other work: as the runs began the load average was {min(loads):.1f} to",
        f"{max(loads):.1f}, so the seconds say little of speed. The engine's losses and PEFT's are at most "
        f"{apart(found):.1g} apart.",
        "",
        f'To "{found["question"]}", which is in no data, the base says "{base}"; the adapter of `{ASKED}.yaml` says',
        f'"{own}"',
    )
    return "\n".join(parts)


def row_of(row: Json) -> str:
    after, before = row["evaluation"]["after"], row["evaluation"]["before"]
    numbers = f"loss {before['loss']:.2f}, {after['loss']:.2f}"
    if "preferred" in after:
        numbers += f"; {before['preferred']:.0%}, {after['preferred']:.0%} of pairs; margin {after['margin']:.2f}"
    trained = f"{row['steps']} steps in {row['seconds']:.0f} s"
    held_out = f"{row['evaluation']['examples']} of {row['evaluation']['examples'] + row['examples']}"
    return f"| `{row['run']}.yaml`, {adapter_of(row)} | {trained} | {held_out} | {numbers} |"


def adapter_of(row: Json) -> str:
    fields = row["adapter"]
    name = "DoRA" if fields.get("use_dora") else "rsLoRA" if fields.get("use_rslora") else "LoRA"
    return f"{name} over {row['quantization'].removeprefix('bnb-')}" if row["quantization"] != "auto" else name


def apart(found: Json) -> float:
    """How far the engine's losses are from PEFT's, at most."""
    measured = [row["evaluation"] for row in found["runs"]]
    return max(abs(one[when]["loss"] - one["peft"][when]["loss"]) for one in measured for when in ("before", "after"))


def written(page: str, found: Json) -> str:
    """The page with its table anew. Raises ValueError where it has no marks."""
    head, tail = around(page, BEGIN, END)
    return head + table(found) + tail


if __name__ == "__main__":
    main()
