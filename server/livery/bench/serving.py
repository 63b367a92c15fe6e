"""Rows on requests: adapters that aren't in device memory, and what their coming costs those that are.

The engine of these rows has device memory for `sizes.fitting` adapters. A version is asked for under any number of
digests, which to the engine are as many versions: each is read, packed and held by itself.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from livery.bench.bars import COLD_TTFT, LOADS_BESIDE, MANY_KNOWN, OVERSUBSCRIBED, Row
from livery.bench.decode import median, ratio
from livery.bench.sizes import Sizes
from livery.bench.workbench import Answer, BenchFailed, Loads, Workbench
from livery.engine.base import AdapterRef

SHORT = 8  # tokens of the prompts that only bring adapters in


def versions(adapters: Sequence[AdapterRef], count: int, name: str) -> list[AdapterRef]:
    """`count` references that are different versions to the engine, over the files of `adapters` in turn."""
    return [
        AdapterRef(hashlib.sha256(f"{name}-{index}".encode()).hexdigest(), adapters[index % len(adapters)].parts)
        for index in range(count)
    ]


class ServingRows:
    """Measures requests on one engine with little device memory for adapters."""

    def __init__(self, bench: Workbench, adapters: Sequence[AdapterRef], sizes: Sizes) -> None:
        self._bench = bench
        self._adapters = adapters
        self._sizes = sizes
        self._arrivals = random.Random(1)

    def cold(self) -> Iterator[Row]:
        """First token under a version that isn't in device memory, over that of the next request under it.

        Raises BenchFailed unless the engine counts each load as from the tier that the row names.
        """
        sizes = self._sizes
        asked = versions(self._adapters, sizes.cold_requests, "cold")
        for origin, hosted, bar in (("the store", False, None), ("host memory", True, COLD_TTFT)):
            times: dict[str, list[float]] = {"cold": [], "warm": []}
            for adapter in asked:
                if hosted:
                    self._bench.evict([adapter])
                else:
                    self._bench.drop([adapter])
                for kind, loads in (("cold", Loads(not hosted, hosted)), ("warm", Loads())):
                    before = self._bench.loads
                    prompt = self._bench.tokens(sizes.cold_prompt)
                    times[kind].append(self._bench.run([(prompt, 1, adapter)])[0].ttft)
                    if self._bench.loads - before != loads:
                        raise BenchFailed(f"a {kind} request took {self._bench.loads - before}, expected {loads}")
            yield Row(
                f"cold / warm TTFT, {sizes.cold_prompt} tokens, from {origin}",
                ratio(times["cold"], times["warm"]),
                bar,
                f"{len(asked)} versions, each {'evicted to the host' if hosted else 'unloaded'} before; loads counted",
                {name: median(values) for name, values in times.items()},
            )

    def loads_beside(self) -> Iterator[Row]:
        """Gaps between tokens of running streams while short requests arrive, for cold versions or for a hot one."""
        sizes, found = self._sizes, {"cold": list[float](), "hot": list[float]()}
        cold = itertools.cycle(versions(self._adapters, 5 * sizes.fitting, "beside"))
        hot = itertools.repeat(self._adapters[0])
        self._bench.ready(self._adapters[:1])
        loaded = Loads()
        for _ in range(sizes.serving_rounds):
            for kind, arriving in (("hot", hot), ("cold", cold)):
                before = self._bench.loads
                gaps = self._gaps(arriving)
                found[kind].append(_p99(gaps))
                if kind == "cold":
                    loaded += self._bench.loads - before
        yield Row(
            f"p99 between tokens with {sizes.loads_per_second:.0f} cold loads/s / without",
            ratio(found["cold"], found["hot"]),
            LOADS_BESIDE,
            f"{sizes.streams} streams; as many short requests a second arrive either way; {loaded}",
            {name: median(values) for name, values in found.items()},
        )

    def oversubscribed(self) -> Iterator[Row]:
        """Median time to first token when ten times as many adapters are asked for as fit, over as many as fit.

        Raises BenchFailed where those that should fit aren't there all the time.
        """
        sizes = self._sizes
        many = versions(self._adapters, sizes.hot_factor * sizes.fitting, "hot")
        few = many[: sizes.fitting]
        sides = {"fitting": few, "over": many}
        found: dict[str, list[float]] = {name: [] for name in sides}
        loaded = dict.fromkeys(sides, Loads())
        for _ in range(sizes.serving_rounds):
            for name, hot in sides.items():
                if name == "fitting":
                    self._bench.ready(hot)
                before = self._bench.loads
                answers = self._closed_loop(hot)
                loaded[name] += self._bench.loads - before
                found[name].append(statistics.median(answer.ttft for answer in answers))
        if loaded["fitting"] != Loads():
            raise BenchFailed(f"{len(few)} adapters should fit the device together, yet took {loaded['fitting']}")
        yield Row(
            f"TTFT with {sizes.hot_factor}x more hot adapters than fit / all fit",
            ratio(found["over"], found["fitting"]),
            OVERSUBSCRIBED,
            f"{len(many)} against {len(few)} adapters; {sizes.hot_streams} streams; {loaded['over']}",
            {name: median(values) for name, values in found.items()},
        )

    def known(self, small: Sequence[AdapterRef]) -> Iterator[Row]:
        """Tokens a second with a thousand versions known and asked for in turn, over one."""
        sizes = self._sizes
        many = versions(small, sizes.known, "known")
        self._bench.make_known(many)
        turn = itertools.cycle(many)
        found: dict[str, list[float]] = {"one": [], "many": []}
        for _ in range(sizes.serving_rounds):
            found["one"].append(self._waves(lambda: small[0]))
            found["many"].append(self._waves(lambda: next(turn)))
        yield Row(
            f"throughput with {sizes.known} adapters known / 1",
            ratio(found["one"], found["many"]),
            MANY_KNOWN,
            f"waves of {sizes.wave_rows} requests under one adapter; of the {sizes.known}, another each wave",
            {name: median(values) for name, values in found.items()},
        )

    # -- loads -----------------------------------------------------------------------------------------

    def _gaps(self, arriving: Iterator[AdapterRef]) -> list[float]:
        """Run the streams to their end while a short request arrives every now and then; their gaps."""
        bench, sizes = self._bench, self._sizes
        names = [bench.submit(bench.tokens(SHORT), sizes.stream_tokens) for _ in range(sizes.streams)]
        streams = [bench.answers[name] for name in names]
        while not all(len(stream.tokens) for stream in streams):
            bench.step()
        due = time.perf_counter()
        while not all(stream.done for stream in streams):
            while time.perf_counter() >= due:
                bench.submit(bench.tokens(SHORT), 1, next(arriving))
                due += 1 / sizes.loads_per_second
            bench.step()
        bench.settle()
        bench.answers.clear()
        return [later - earlier for stream in streams for earlier, later in pairwise(stream.times)]

    def _closed_loop(self, hot: Sequence[AdapterRef]) -> list[Answer]:
        """`hot_streams` requests under way at a time, each under the next of the hot adapters in shuffled order."""
        bench, sizes = self._bench, self._sizes
        order: list[AdapterRef] = []
        while len(order) < sizes.hot_requests:
            order += self._arrivals.sample(list(hot), len(hot))
        answers: list[Answer] = []
        open_names: list[str] = []
        for adapter in order[: sizes.hot_requests]:
            while len(open_names) == sizes.hot_streams:
                bench.step()
                answers += [bench.answers.pop(name) for name in open_names if bench.answers[name].done]
                open_names = [name for name in open_names if name in bench.answers]
            open_names.append(bench.submit(bench.tokens(8 * SHORT), SHORT, adapter))
        bench.settle()
        return answers + [bench.answers.pop(name) for name in open_names]

    def _waves(self, adapter: Callable[[], AdapterRef]) -> float:
        """Seconds of waves of requests that are all there from the start, each wave under one adapter."""
        bench, sizes = self._bench, self._sizes
        start = time.perf_counter()
        requests = []
        for _ in range(sizes.waves):
            chosen = adapter()
            requests += [(bench.tokens(2 * SHORT), sizes.wave_tokens, chosen) for _ in range(sizes.wave_rows)]
        bench.run(requests)
        return time.perf_counter() - start


def _p99(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[98]
