"""What vLLM tells of its steps, counted; and whether it still gets on. Knows its statistics by their fields only."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Any

from livery.engine.base import EngineStats
from livery.engine.figures import SIZES, STEP_SECONDS, EngineFigures, TenantStanding
from livery.engine.tally import AdapterLog, Tally

Clock = Callable[[], float]


class StepCounts:
    """Counts what vLLM's statistics say of each step. Written on the event loop alone.

    A step's time is that between its result and the one before, or, after a pause, the request that ended it.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self.heard = clock()  # when the engine gave its last sign of life
        self._running = self._waiting = self._steps = self._preemptions = 0
        self._queries = self._hits = self._prompt = self._generated = 0
        self._drafted = self._accepted = 0
        self._usage = 0.0
        self._since: float | None = None  # when the step under way began; None while there is nothing to compute
        self._times, self._sequences, self._tokens = Tally(STEP_SECONDS), Tally(SIZES), Tally(SIZES)

    def now(self) -> float:
        return self._clock()

    def begin(self) -> None:
        """vLLM gets a request: where it had none, a step begins now."""
        if self._since is None:
            self._since = self._clock()

    def record(self, scheduler: Any, iteration: Any) -> None:  # noqa: ANN401  (vLLM's)
        """One step: `scheduler` are its gauges, `iteration` what came of it; either may be None."""
        self.heard = self._clock()
        if iteration is not None and self._since is not None:
            self._times.add(self.heard - self._since)
        if scheduler is not None:
            self._running = scheduler.num_running_reqs
            self._waiting = scheduler.num_waiting_reqs + scheduler.num_skipped_waiting_reqs
            self._usage = scheduler.kv_cache_usage
            self._queries += scheduler.prefix_cache_stats.queries
            self._hits += scheduler.prefix_cache_stats.hits
            if scheduler.spec_decoding_stats is not None:
                self._drafted += scheduler.spec_decoding_stats.num_draft_tokens
                self._accepted += scheduler.spec_decoding_stats.num_accepted_tokens
        if iteration is not None:
            prompt = iteration.prompt_token_stats.computed
            self._steps += 1
            self._preemptions += iteration.num_preempted_reqs
            self._prompt += prompt
            self._generated += iteration.num_generation_tokens
            self._sequences.add(self._running)
            self._tokens.add(prompt + iteration.num_generation_tokens)
            self._since = self.heard if self._running + self._waiting else None

    def stats(self, blocks: int, slots: SlotCounts, tenants: tuple[TenantStanding, ...]) -> EngineStats:
        """The newest snapshot, without what only the workers know. `blocks`: of the KV cache."""
        adapters = slots.log
        return EngineStats(
            running=self._running,
            waiting=self._waiting,
            blocks_total=blocks,
            blocks_free=round(blocks * (1 - self._usage)),
            steps=self._steps,
            preemptions=self._preemptions,
            prefix_queries=self._queries,
            prefix_hits=self._hits,
            prompt_tokens=self._prompt,
            generated_tokens=self._generated,
            drafted_tokens=self._drafted,
            accepted_tokens=self._accepted,
            adapter_loads=slots.loads,
            adapter_loads_from_host=slots.from_host,
            adapter_evictions=slots.evictions,
            prefix_evictions=None,  # vLLM tells neither
            blocks_cached=None,
            figures=EngineFigures(
                phase_seconds=(),  # within a step vLLM tells none
                step_seconds=self._times.spread,
                step_sequences=self._sequences.spread,
                step_tokens=self._tokens.spread,
                reads=adapters.reads.spread,
                copies=adapters.copies.spread,
                load_failures=adapters.failures,
                adapters=adapters.told(),
                tenants=tenants,
            ),
        )


class SlotCounts:
    """Which adapters are in vLLM's slots, as far as somebody looked, and how many came and went; by version in `log`.

    vLLM swaps them as steps need them and tells nobody: what leaves and comes back between two looks isn't seen.
    """

    def __init__(self) -> None:
        self.log = AdapterLog()
        self.loads = self.from_host = self.evictions = 0
        self._device: set[str] = set()

    @property
    def device(self) -> frozenset[str]:
        return frozenset(self._device)

    def asked(self, digest: str) -> None:
        """A request asks for a version."""
        self.log.asked(digest, resident=digest in self._device)

    def placed(self, digest: str, seconds: float) -> None:
        """vLLM read it into its memory and a slot."""
        self.loads += 1
        self._device.add(digest)
        self.log.placed(digest, seconds)

    def forgotten(self, digest: str) -> None:
        """vLLM is to have it no more."""
        if digest in self._device:
            self._left(digest)

    def seen(self, device: Collection[str], since: frozenset[str]) -> None:
        """These were in slots at a look that began when those of `since` were known to be: what came later may lack."""
        for digest in (since & self._device).difference(device):
            self._left(digest)
        for digest in set(device) - self._device:
            self.loads += 1
            self.from_host += 1
            self._device.add(digest)
            self.log.placed(digest, None)

    def _left(self, digest: str) -> None:
        self._device.remove(digest)
        self.evictions += 1
        self.log.evicted(digest)


def logger_class(counts: StepCounts) -> type:
    """What vLLM hands its statistics to: a class of its own kind, which it makes one of.

    It stands in place of vLLM's Prometheus logger, which would else take a dozen locks a step for metrics that nobody
    reads here.
    """
    from vllm.v1.metrics.loggers import PrometheusStatLogger

    class CountingLogger(PrometheusStatLogger):  # type: ignore[misc]
        def __init__(self, vllm_config: object, engine_indexes: list[int] | None = None) -> None:
            pass

        def record(
            self, scheduler_stats: object, iteration_stats: object, mm_cache_stats: object = None, engine_idx: int = 0
        ) -> None:
            counts.record(scheduler_stats, iteration_stats)

        def log_engine_initialized(self) -> None:
            pass

        def record_sleep_state(self, sleep: int = 0, level: int = 0) -> None:
            pass

        def record_admission_rejection(self, reason: str) -> None:
            pass

        def log(self) -> None:
            pass

    return CountingLogger
