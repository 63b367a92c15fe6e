"""Rows on single steps: decoding and reading prompts, with adapters against without, each against its floor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from livery.bench.alternate import Timed, alternate
from livery.bench.bars import (
    BASE_ONLY,
    MIXED_RANKS,
    OF_PHYSICAL,
    ONE_ADAPTER,
    PREFILL,
    ROOFLINE,
    SMALL_SHARE,
    Measured,
    Row,
    settled,
)
from livery.bench.physics import Peak, Work, bytes_ratio, physical_ratio
from livery.bench.sizes import Sizes
from livery.bench.workbench import Workbench
from livery.engine.base import AdapterRef
from livery_loadtest.bars import Bar
from livery_loadtest.measures import Spread, over_rounds, paired_ratio

FINER = 3  # times as many rounds where a difference of a percent is looked for


def ratio(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Round by round; there is always a round, and no time is zero."""
    found = paired_ratio(above, below)
    assert found is not None
    return found


def median(values: Sequence[float]) -> float:
    found = over_rounds(values)
    assert found is not None
    return found.median


def scaled(value: Spread, factor: float) -> Spread:
    return Spread(value.median * factor, value.low * factor, value.high * factor)


class StepRows:
    """Measures the steps of one engine; `adapters` are resident and of rank `sizes.rank`."""

    def __init__(
        self, bench: Workbench, adapters: Sequence[AdapterRef], look: Callable[[], object], sizes: Sizes
    ) -> None:
        """`look` measures the machine's peak once more."""
        self._bench = bench
        self._adapters = adapters
        self._look = look
        self._sizes = sizes
        self._base = bench.base()

    def decode(self) -> Iterator[Measured]:
        """Base, one adapter and as many distinct ones as rows, for each number of rows."""
        sizes, context = self._sizes, self._sizes.context
        for rows in sizes.all_decode_rows:
            mixed = rows in sizes.mixed_rows
            variants = {
                "base": self._bench.decoder(rows, context, [None]),
                "one": self._bench.decoder(rows, context, self._adapters[:1]),
            }
            if mixed:
                variants["mixed"] = self._bench.decoder(rows, context, self._adapters[:rows])
            self._look()
            times = alternate(variants, sizes.rounds, sizes.turns)
            work = {
                "base": self._base.decode(rows, context),
                "one": self._base.decode(rows, context, [sizes.rank], [sizes.rank] * rows),
                "mixed": self._base.decode(rows, context, [sizes.rank] * rows, [sizes.rank] * rows),
            }
            name = f"base, decode, {rows} rows: floor / time"
            yield partial(self._against_floor, name, times["base"], work["base"])
            yield partial(self._one, rows, times, work)
            if mixed:
                yield partial(self._distinct, rows, times, work)

    def _one(self, rows: int, times: Timed, work: Mapping[str, Work], peak: Peak) -> Row:
        """Held against the base where the adapter is small, and else against what is physical."""
        speed = ratio(times["base"], times["one"])
        name = f"one adapter / base, decode, {rows} rows"
        facts = self._facts(times, work, ("base", "one"), speed, peak)
        share = self._base.share(self._sizes.rank)
        if share <= SMALL_SHARE:
            return Row(name, speed, ONE_ADAPTER, f"the adapter is {share:.2%} of the base's bytes", facts)
        note = f"the adapter is {share:.1%} of the base's bytes"
        return _of_physical(name, speed, work["base"], work["one"], peak, note, facts)

    def _distinct(self, rows: int, times: Timed, work: Mapping[str, Work], peak: Peak) -> Row:
        speed = ratio(times["base"], times["mixed"])
        facts = self._facts(times, work, ("base", "mixed"), speed, peak)
        name = f"{rows} distinct adapters, decode, {rows} rows"
        note = f"{self._base.share(self._sizes.rank):.1%} of the base's bytes each"
        return _of_physical(name, speed, work["base"], work["mixed"], peak, note, facts)

    def ranks(self, ranked: Sequence[AdapterRef], ranks: Sequence[int]) -> Iterator[Measured]:
        """Distinct adapters of several ranks against what their bytes make of the time of equal ones."""
        rows, context, sizes = len(ranked), self._sizes.context, self._sizes
        times = alternate(
            {
                "base": self._bench.decoder(rows, context, [None]),
                "equal": self._bench.decoder(rows, context, self._adapters[:rows]),
                "ranks": self._bench.decoder(rows, context, ranked),
            },
            sizes.rounds,
            sizes.turns,
        )
        more = sum(ranks) / (sizes.rank * rows)
        predicted = [base + more * (equal - base) for base, equal in zip(times["base"], times["equal"], strict=True)]
        listed = ", ".join(map(str, sorted(set(ranks))))
        row = Row(
            f"ranks {{{listed}}} mixed, {rows} rows: time / by bytes",
            ratio(times["ranks"], predicted),
            MIXED_RANKS,
            f"predicted from {rows} adapters of rank {sizes.rank}, whose bytes times {more:.2f} these have",
            {name: median(values) for name, values in times.items()} | {"predicted": median(predicted)},
        )
        yield settled(row)

    def prefill(self) -> Iterator[Measured]:
        """Reading prompts under an adapter and under none."""
        sizes, chunk = self._sizes, self._bench.info.max_batch_tokens
        for tokens in sizes.prompts:
            self._look()
            times = alternate(
                {
                    "base": self._bench.reader(tokens, None),
                    "one": self._bench.reader(tokens, self._adapters[0]),
                },
                sizes.prefill_rounds,
                max(1, sizes.turns * min(sizes.prompts) // (2 * tokens)),
            )
            work = {
                "base": self._base.prefill(tokens, chunk),
                "one": self._base.prefill(tokens, chunk, sizes.rank),
            }
            yield partial(self._prompt, tokens, times, work)

    def _prompt(self, tokens: int, times: Timed, work: Mapping[str, Work], peak: Peak) -> Row:
        speed = ratio(times["base"], times["one"])
        facts = self._facts(times, work, ("base", "one"), speed, peak)
        facts["tokens_per_second"] = tokens / median(times["base"])
        note = f"physical {facts['physical']:.3f}; base {facts['tokens_per_second']:.0f} tokens/s"
        return Row(f"prefill with adapter / base, {tokens} tokens", speed, PREFILL, note, facts)

    def base_only(self) -> Iterator[Measured]:
        """Base-only steps while adapters are in the engine's memory, and with none there.

        The engine has one path for both, so what could differ is what adapters leave behind: tables, memory, caches.
        """
        sizes, rows = self._sizes, min(self._sizes.mixed_rows)
        held = self._adapters[:rows]
        step = self._bench.decoder(rows, sizes.context, [None])
        found: dict[str, list[float]] = {"with": [], "without": []}
        for turn in range(FINER * sizes.rounds):
            for kind in ("with", "without") if turn % 2 == 0 else ("without", "with"):
                self._bench.ready(held)  # either way: what loading leaves in caches is no part of the difference
                if kind == "without":
                    self._bench.drop(held)
                found[kind] += alternate({"step": step}, 1, sizes.turns)["step"]
        self._bench.ready(held)
        row = Row(
            f"base-only traffic, {len(held)} adapters in memory / none, {rows} rows",
            ratio(found["without"], found["with"]),
            BASE_ONLY,
            "one engine; adapters loaded and used just before, then kept or unloaded",
            {name: median(values) for name, values in found.items()},
        )
        yield settled(row)

    def _against_floor(self, name: str, seconds: Sequence[float], work: Work, peak: Peak) -> Row:
        floor = work.seconds(peak)
        bar: Bar | None = None if self._bench.info.device == "cpu" else ROOFLINE
        note = f"{1e3 * median(seconds):.1f} ms, floor {1e3 * floor:.1f} ms by {_bound(work, peak)}"
        return Row(name, ratio([floor] * len(seconds), seconds), bar, note, {"time": median(seconds), "floor": floor})

    def _facts(
        self, times: Timed, work: Mapping[str, Work], names: Sequence[str], speed: Spread, peak: Peak
    ) -> dict[str, Any]:
        facts: dict[str, Any] = {"speed": speed}
        for name in names:
            floor, seconds = work[name].seconds(peak), median(times[name])
            facts[name] = {
                "time": seconds,
                "floor": floor,
                "efficiency": floor / seconds,
                "bytes": work[name].nbytes,
                "operations": work[name].flops,
                "bound": _bound(work[name], peak),
            }
        facts["physical"] = bytes_ratio(work[names[0]], work[names[1]])
        facts["physical_with_operations"] = physical_ratio(work[names[0]], work[names[1]], peak)
        return facts


def _of_physical(
    name: str, speed: Spread, base: Work, adapted: Work, peak: Peak, note: str, facts: dict[str, Any]
) -> Row:
    """A speed against what bytes alone allow, (W + K) / (W + K + N·a), and beside it against the larger floor."""
    by_bytes, floored = bytes_ratio(base, adapted), physical_ratio(base, adapted, peak)
    note = f"{speed.median:.3f} of the base, physical {by_bytes:.3f} (with operations {floored:.3f}); {note}"
    reached, beside = scaled(speed, 1 / by_bytes), scaled(speed, 1 / floored)
    return Row(f"{name}: reached / physical", reached, OF_PHYSICAL, note, facts, beside)


def _bound(work: Work, peak: Peak) -> str:
    return "bytes" if work.nbytes / peak.bandwidth >= work.flops / peak.flops else "operations"
