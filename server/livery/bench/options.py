"""Rows on what the engine may be told: each option against the engine without it, in turn within one run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial

from livery.bench.alternate import Timed, alternate
from livery.bench.bars import CONSTRAINED, Measured, Row, settled
from livery.bench.decode import median, ratio
from livery.bench.physics import Base, Peak, Work
from livery.bench.sizes import Sizes
from livery.bench.workbench import BenchFailed, Workbench
from livery.engine.base import Grammar

DRAFTS = 8  # tokens guessed at a time
# Of a medium size, and never complete within an answer: enums, numbers in bounds, a pattern, a union, lists, nesting.
TEXT = {"type": "string", "minLength": 3, "maxLength": 40}
PLACE = {
    "street": TEXT,
    "code": {"type": "string", "pattern": "^[A-Z]{2}[0-9]{4}$"},
    "country": {"enum": ["DE", "FR", "PT"]},
}
RECORD = {
    "id": {"type": "integer", "minimum": 1, "maximum": 999999},
    "name": TEXT,
    "state": {"enum": ["new", "paid", "sent", "lost", "returned"]},
    "price": {"type": "number", "minimum": 0, "maximum": 10000},
    "tags": {"type": "array", "items": TEXT, "minItems": 1, "maxItems": 4},
    "note": {"anyOf": [TEXT, {"type": "null"}]},
    "place": {"type": "object", "properties": PLACE, "required": list(PLACE), "additionalProperties": False},
    "paid": {"type": "boolean"},
}
RECORDS = Grammar(
    "json_schema",
    json.dumps(
        {
            "type": "array",
            "minItems": 100,
            "items": {"type": "object", "properties": RECORD, "required": list(RECORD), "additionalProperties": False},
        }
    ),
)
LAYOUTS = ("fp32", "bf16", "int8", "int4")

Opened = Callable[..., AbstractContextManager[Workbench]]


class OptionRows:
    """Measures options; `opened` gives an engine of the same model with some knobs turned."""

    def __init__(self, plain: Workbench, opened: Opened, sizes: Sizes) -> None:
        self._plain = plain
        self._opened = opened
        self._sizes = sizes

    def speculation(self) -> Iterator[Measured]:
        """Answers that repeat their prompt, with drafts looked up in it and without; the tokens are compared."""
        sizes = self._sizes
        with self._opened(speculate=DRAFTS) as drafting:
            for rows in sizes.option_rows:
                passages = [self._plain.tokens(sizes.passage) for _ in range(rows)]
                asked = [(passage * sizes.repeats, sizes.copied, None) for passage in passages]
                answers: dict[str, list[list[int]]] = {}

                def run(name: str, bench: Workbench, asked: list[tuple[list[int], int, None]] = asked) -> None:
                    answers[name] = [answer.tokens for answer in bench.run(asked)]  # noqa: B023 - run at once

                before = drafting.core.stats()
                times = alternate(
                    {"off": lambda: run("off", self._plain), "on": lambda: run("on", drafting)}, sizes.option_rounds
                )
                after = drafting.core.stats()
                drafted = after.drafted_tokens - before.drafted_tokens
                accepted = after.accepted_tokens - before.accepted_tokens
                same = sum(on == off for on, off in zip(answers["on"], answers["off"], strict=True))
                copied = sum(
                    answer == (passage * sizes.copied)[: sizes.copied]
                    for answer, passage in zip(answers["off"], passages, strict=True)
                )
                yield settled(
                    Row(
                        f"speculation on / off, copying, {rows} rows: speed",
                        ratio(times["off"], times["on"]),
                        note=f"{same} of {rows} answers equal, {copied} are the passage again; "
                        f"{accepted} of {drafted} drafted tokens right",
                        facts={name: median(values) for name, values in times.items()}
                        | {"equal": same, "drafted": drafted, "accepted": accepted},
                    )
                )

    def prefix_cache(self) -> Iterator[Measured]:
        """First token of a prompt that was asked before, over that of a new one."""
        tokens = self._sizes.cold_prompt
        with self._opened(prefix_cache=True) as caching:
            seen = caching.tokens(tokens)
            times = alternate(
                {
                    "new": lambda: caching.run([(caching.tokens(tokens), 1, None)]),
                    "seen": lambda: caching.run([(seen, 1, None)]),
                },
                self._sizes.option_rounds,
            )
        yield settled(
            Row(
                f"TTFT, {tokens} tokens, asked before / new",
                ratio(times["seen"], times["new"]),
                note="blocks of the prompt are found by what they depend on",
                facts={name: median(values) for name, values in times.items()},
            )
        )

    def constrained(self) -> Iterator[Measured]:
        """Answers held to a schema that is longer than they are, beside as many tokens of answers that are free.

        Nothing where the model has no tokenizer to hold answers with. Raises BenchFailed where one ended early.
        """
        if not self._plain.core.takes_grammars:
            return
        sizes, tokens = self._sizes, self._sizes.held_tokens

        def run(grammar: Grammar | None) -> None:
            asked = [(self._plain.tokens(sizes.passage), tokens, None) for _ in range(sizes.held_rows)]
            lengths = {len(answer.tokens) for answer in self._plain.run(asked, grammar)}
            if lengths != {tokens}:
                raise BenchFailed(f"answers of {sorted(lengths)} tokens in place of {tokens}")

        times = alternate({"free": lambda: run(None), "held": lambda: run(RECORDS)}, sizes.option_rounds)
        yield settled(
            Row(
                f"held to a JSON schema / free, {sizes.held_rows} rows: speed",
                ratio(times["free"], times["held"]),
                CONSTRAINED,
                f"{tokens} tokens an answer, prompts of {sizes.passage}; a schema of {len(RECORDS.source)} bytes",
                {name: median(values) for name, values in times.items()},
            )
        )

    def weights(self) -> Iterator[Measured]:
        """Decode steps with the base's weights held in another number of bits, each against its own floor."""
        sizes = self._sizes
        for layout in LAYOUTS:
            with self._opened(weights=layout) as held:
                base = held.base()
                for rows in sizes.option_rows:
                    times = alternate(
                        {
                            "plain": self._plain.decoder(rows, sizes.context, [None]),
                            "held": held.decoder(rows, sizes.context, [None]),
                        },
                        sizes.option_rounds,
                        sizes.turns,
                    )
                    yield partial(held_row, layout, rows, times, base, base.decode(rows, sizes.context))

    def deterministic(self) -> Iterator[Measured]:
        """What bits that depend on no company cost."""
        sizes = self._sizes
        with self._opened(deterministic=True) as exact:
            for rows in sizes.option_rows:
                times = alternate(
                    {
                        "plain": self._plain.decoder(rows, sizes.context, [None]),
                        "exact": exact.decoder(rows, sizes.context, [None]),
                    },
                    sizes.option_rounds,
                    sizes.turns,
                )
                yield settled(
                    Row(
                        f"--deterministic / default, decode, {rows} rows: speed",
                        ratio(times["plain"], times["exact"]),
                        facts={name: median(values) for name, values in times.items()},
                    )
                )


def held_row(layout: str, rows: int, times: Timed, base: Base, work: Work, peak: Peak) -> Row:
    """A layout of the weights against the default one, and against its own floor."""
    floor, seconds = work.seconds(peak), median(times["held"])
    return Row(
        f"--weights {layout} / default, decode, {rows} rows: speed",
        ratio(times["plain"], times["held"]),
        note=f"{1e3 * seconds:.1f} ms, floor {1e3 * floor:.1f} ms; {base.weight_bytes / 1e6:.0f} MB",
        facts={"plain": median(times["plain"]), "held": seconds, "floor": floor},
    )
