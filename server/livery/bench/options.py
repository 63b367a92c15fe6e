"""Rows on what the engine may be told: each option against the engine without it, in turn within one run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial

from livery.bench.alternate import Timed, alternate
from livery.bench.bars import Measured, Row, settled
from livery.bench.decode import median, ratio
from livery.bench.physics import Base, Peak, Work
from livery.bench.sizes import Sizes
from livery.bench.workbench import Workbench

DRAFTS = 8  # tokens guessed at a time
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
