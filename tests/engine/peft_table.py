"""The table of PEFT types in server/docs/adapters.md: each made and saved by PEFT, run by the engine, judged by PEFT.

    python tests/engine/peft_table.py                      # print it
    python tests/engine/peft_table.py --write server/docs/adapters.md    # put it between its marks there

For every type and two model families an adapter with random weights is saved by PEFT. All of a family run mixed in
one batch, split into small chunks over a paged cache; the error is the largest difference of any logit after any
token from PEFT's own forward over that request alone, relative to the largest logit. `moves` is how far the adapter
moves the base's logits, by the same measure.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from engine.families import save
from engine.oracle import Bench, Oracle, save_tuned
from engine.parity_configs import FAMILIES, ROWS, Row, reference
from engine.test_parity import MAX_LEN, TIGHT, kv_bytes, prompts
from livery.engine.base import EngineConfig
from livery_adapters.types import TYPES
from livery_adapters.types.refused import REASONS

BEGIN, END = "<!-- peft -->", "<!-- /peft -->"
TOKENS = 6
PROMPTS = 2


@dataclass
class Measured:
    """The largest error and the largest movement over all prompts of one family."""

    error: float = 0.0
    moves: float = 0.0


@dataclass
class Line:
    row: Row
    families: dict[str, Measured] = field(default_factory=dict)


def measure(family: str, lines: list[Line], folder: Path) -> None:
    base = save(family, folder)
    bench = Bench(
        EngineConfig(
            str(base),
            kv_memory_bytes=2 * kv_bytes(base),
            adapter_memory_bytes=256 << 20,
            **TIGHT | {"max_batch_tokens": 13, "max_running": 8},
        )
    )
    oracle = Oracle(base, MAX_LEN)
    made: list[tuple[Line, Path]] = []
    for seed, line in enumerate(lines):
        config = line.row.config(family)
        if config is not None:
            made.append((line, save_tuned(base, folder / family / str(seed), seed, config)))
    texts = prompts(PROMPTS * len(made), seed=31)
    for index, prompt in enumerate(texts):
        line, path = made[index % len(made)]
        bench.add(str(index), prompt, reference(path, line.row.approximate), max_tokens=TOKENS)
    results = bench.run()
    for index, prompt in enumerate(texts):
        line, path = made[index % len(made)]
        result = results[str(index)]
        if result.error is not None:
            raise SystemExit(f"{line.row.name} on {family}: {result.error}")
        found = line.families.setdefault(family, Measured())
        expected, plain = oracle.logits(prompt + result.tokens, path), oracle.logits(prompt + result.tokens, None)
        scale = float(expected.abs().max())
        for position, logits in result.logits.items():
            found.error = max(found.error, float((logits - expected[position]).abs().max()) / scale)
        found.moves = max(found.moves, float((expected - plain).abs().max() / plain.abs().max()))


def table(lines: list[Line]) -> str:
    heads = [f"error, {family}" for family in FAMILIES]
    rows = [["PEFT type", "how it is applied", *heads, "moves"], ["---"] * (3 + len(FAMILIES))]
    for line in lines:
        cells = [f"{found.error:.0e}" if (found := line.families.get(family)) else "" for family in FAMILIES]
        moves = min(found.moves for found in line.families.values())
        rows.append([line.row.name, line.row.how, *cells, f"{moves:.2f}"])
    text = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    covered = {line.row.peft_type for line in lines}
    if missing := sorted(set(TYPES) - covered):
        raise SystemExit(f"no row for {', '.join(missing)}: add them to parity_configs.py")
    refused = ", ".join(sorted(REASONS))
    return f"{text}\n\nRefused by name, each with its reason: {refused}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table between the marks in this file")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    lines = [Line(row) for row in ROWS]
    with tempfile.TemporaryDirectory() as folder:
        for family in FAMILIES:
            print(f"measuring on {family}", file=sys.stderr)
            measure(family, lines, Path(folder))
    text = table(lines)
    if options.write is None:
        print(text)
        return
    before, begin, rest = options.write.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{options.write} has no {BEGIN} … {END}")
    options.write.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


if __name__ == "__main__":
    main()
