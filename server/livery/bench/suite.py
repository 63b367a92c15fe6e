"""The whole of `livery bench engine`: engines, adapters, groups of rows in order, and what comes out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import torch
from msgspec.structs import replace

from livery.bench.bars import Measured, Row, settled
from livery.bench.decode import StepRows
from livery.bench.machine import measure_peak
from livery.bench.options import OptionRows
from livery.bench.physics import Peak
from livery.bench.profile import Profile, profiles
from livery.bench.serving import ServingRows
from livery.bench.sizes import Sizes
from livery.bench.values import value_rows
from livery.bench.workbench import Workbench, reference
from livery.engine.base import AdapterRef, EngineConfig, EngineInfo
from livery_loadtest.random_adapters import write_random_adapters

log = logging.getLogger(__name__)

MIXED = 8  # adapters whose values are checked and whose step is profiled
SLACK = 1.25  # of one adapter's bytes: room for what holding it costs beside its numbers


class Group(StrEnum):
    """Rows that are measured together."""

    VALUES = "values"
    DECODE = "decode"
    PREFILL = "prefill"
    SERVING = "serving"
    OPTIONS = "options"


@dataclass(slots=True)
class Findings:
    """Everything a run measured."""

    info: EngineInfo | None = None
    peaks: list[Peak] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    profiles: list[Profile] = field(default_factory=list)
    complete: bool = False  # every part was measured to its end
    failures: dict[str, str] = field(default_factory=dict)  # part -> what it failed with
    seconds: float = 0.0
    part_seconds: dict[str, float] = field(default_factory=dict)  # an engine's has all that was measured on it


class Suite:
    """Runs groups of rows on engines of one model; `tell` hears what is going on, `show` each row when it is there."""

    def __init__(
        self,
        config: EngineConfig,
        folder: Path,
        sizes: Sizes,
        tell: Callable[[str], None],
        show: Callable[[Row], None],
    ) -> None:
        """`folder` keeps the random adapters, which are written once. Raises ValueError for a base they don't fit."""
        self._config = config
        self._folder = folder
        self._sizes = sizes
        self._tell = tell
        self._show = show
        self.findings = Findings()
        self._measured: list[Measured] = []

    def run(self, groups: frozenset[Group], with_profile: bool) -> Findings:
        """Measure. A part that fails is among `failures`, and the others go on.

        Interrupted, `findings` has what was measured until then.
        """
        begun = time.perf_counter()
        steps = groups & {Group.VALUES, Group.DECODE, Group.PREFILL}
        try:
            if steps or with_profile:
                self._in_part("an engine that holds all adapters", lambda: self._on_large(steps, with_profile))
            if Group.OPTIONS in groups:
                self._in_part("engines with options", self._with_options)
            if Group.SERVING in groups:
                self._in_part("an engine that holds few adapters", self._on_small)
            self.findings.complete = not self.findings.failures
        finally:
            self.findings.rows = [measured(self._peak()) for measured in self._measured]
            self.findings.seconds = time.perf_counter() - begun
        return self.findings

    def _in_part(self, name: str, work: Callable[[], None]) -> None:
        """Do a part of the run, timed."""
        self._tell(name)
        begun = time.perf_counter()
        try:
            work()
        except Exception as failure:  # boundary: what fails in one part is no reason to lose the others
            log.exception("%s failed", name)
            self.findings.failures[name] = f"{type(failure).__name__}: {failure}"
        finally:
            self.findings.part_seconds[name] = time.perf_counter() - begun

    # -- engines ---------------------------------------------------------------------------------------

    def _on_large(self, groups: frozenset[Group], with_profile: bool) -> None:
        """The rows on an engine that holds all adapters at once."""
        sizes = self._sizes
        equal = self._adapters(max(sizes.mixed_rows), sizes.rank)
        ranks = [sizes.ranks[index % len(sizes.ranks)] for index in range(sizes.ranked_rows)]
        ranked = self._ranked(ranks)
        needed = sum(_bytes(adapter) for adapter in {*equal, *ranked}) + int(SLACK * _bytes(equal[0]))
        with self._engine(adapter_memory_bytes=2 * needed) as bench:
            self.findings.info = bench.info
            self._look(bench)
            if Group.VALUES in groups:
                self._note(map(settled, value_rows(bench, equal[:MIXED], sizes)), "greedy tokens")
            bench.ready([*equal, *ranked])
            rows = StepRows(bench, equal, lambda: self._look(bench), sizes)
            if Group.DECODE in groups:
                self._note(rows.decode(), "decode steps")
                self._note(rows.ranks(ranked, ranks), "mixed ranks")
            if Group.PREFILL in groups:
                self._note(rows.prefill(), "prefill")
            if Group.DECODE in groups:
                self._note(rows.base_only(), "base-only traffic")
            if with_profile:
                self._profile(bench, equal[:MIXED], "default")
            self._look(bench)
        if with_profile:
            with self._engine(adapter_memory_bytes=2 * needed, decoder="transformers") as bench:
                bench.ready(equal[:MIXED])
                self._profile(bench, equal[:MIXED], "one by one")

    def _on_small(self) -> None:
        """The rows on an engine whose device memory holds few adapters."""
        sizes = self._sizes
        adapters = self._adapters(MIXED, sizes.rank)
        small = self._adapters(1, sizes.known_rank)
        budget = int((sizes.fitting + 0.5) * _bytes(adapters[0]))
        with self._engine(adapter_memory_bytes=budget) as bench:
            self.findings.info = self.findings.info or bench.info
            rows = ServingRows(bench, adapters, sizes)
            self._look(bench)
            self._note(map(settled, rows.cold()), "cold adapters")
            self._note(map(settled, rows.loads_beside()), "loads beside streams")
            self._note(map(settled, rows.oversubscribed()), "more adapters than fit")
            self._note(map(settled, rows.known(small)), f"{sizes.known} adapters known")

    def _with_options(self) -> None:
        """The rows on engines with some knobs turned, each beside the one without."""
        with self._engine() as plain:
            self.findings.info = self.findings.info or plain.info
            self._look(plain)
            rows = OptionRows(plain, self._engine, self._sizes)
            self._note(rows.speculation(), "speculation")
            self._note(rows.prefix_cache(), "prefix cache")
            self._note(rows.constrained(), "answers held to a schema")
            self._note(rows.deterministic(), "deterministic")
            self._note(rows.weights(), "weights")

    def _engine(self, **knobs: object) -> closing[Workbench]:
        """An engine of the model. What prompts have in common is computed each time unless asked otherwise."""
        config = replace(self._config, **{"prefix_cache": False, **knobs})
        return closing(Workbench(config, self._tell))

    def _profile(self, bench: Workbench, adapters: list[AdapterRef], forward: str) -> None:
        def measure() -> None:
            self.findings.profiles.extend(profiles(bench, adapters, self._sizes.context, forward))

        self._in_part(f"profiles, {forward}", measure)

    def _look(self, bench: Workbench) -> None:
        """Measure what the machine can do at best once more."""
        self.findings.peaks.append(measure_peak(torch.device(bench.info.device), bench.runner.kernels))

    def _peak(self) -> Peak:
        return Peak.typical(self.findings.peaks)

    def _note(self, rows: Iterable[Measured], what: str) -> None:
        """Show rows by the peak known so far; in the end all are made by that of the whole run."""

        def measure() -> None:
            for measured in rows:
                self._measured.append(measured)
                self._show(measured(self._peak()))

        self._in_part(what, measure)

    # -- adapters --------------------------------------------------------------------------------------

    def _adapters(self, count: int, rank: int) -> list[AdapterRef]:
        """The first `count` random adapters of a rank."""
        self._tell(f"writing random adapters of rank {rank} (once)")
        base = Path(self._config.model_path)
        written = write_random_adapters(base, self._folder / f"{base.name}-rank-{rank}", count, rank)
        return [reference(path) for path in written.values()]

    def _ranked(self, ranks: list[int]) -> list[AdapterRef]:
        """Distinct adapters, one of each rank listed."""
        pools = {rank: self._adapters(ranks.count(rank), rank) for rank in set(ranks)}
        return [pools[rank].pop() for rank in ranks]


def _bytes(adapter: AdapterRef) -> int:
    """An adapter's size in its file, which is about what it takes in memory."""
    return (Path(adapter.parts[0].path) / "adapter_model.safetensors").stat().st_size
