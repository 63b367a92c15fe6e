"""One replica in its steady state: how many rows run at a rate of requests, how long they wait, what gives out first.

Prompts are read one after the other and decode steps take turns with them. At a rate of requests l with prompts of
t_p seconds, a share r = l·t_p of the time reads prompts, and what is left makes steps: each of B rows gets one token a
step, so

    l·O = B·(1 - r) / t_d(B),    the most at B rows: l = 1 / (t_p + O·t_d(B) / B)

with answers of O tokens. (B is Little's law: rate times the time in which a request decodes.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

from livery.scale.plan.memory import Memory
from livery.scale.plan.popularity import Floats, expected_distinct, grouped, lru_hit_rate
from livery.scale.plan.question import Question
from livery.scale.plan.roofline import StepCosts
from livery_loadtest.traces import azure_2023

TAIL = 0.05  # of requests, how many may wait longer than is told
NOTICED = 0.05  # a share that counts: of requests that miss, of capacity that more memory would bring


@dataclass(frozen=True, slots=True)
class Service:
    """A replica at `rate` requests a second. Seconds; `reading` is the share of time that goes to prompts."""

    rate: float
    rows: float
    distinct: float
    step: float
    prompt: float
    reading: float
    tpot: float
    wait: float  # the 95th percentile of waiting for other prompts
    load: float  # of an adapter that more than one request in twenty finds missing
    ttft: float  # the 95th percentile, of a prompt of mean length


class Replica:
    """One replica's speed, limits and adapters; `shares` are the popularity of the adapters it is asked for.

    Its steps are as long as those of an engine that is told its `most_rows`, whatever those of `costs` are.
    """

    def __init__(self, question: Question, memory: Memory, costs: StepCosts, shares: Floats) -> None:
        self.question, self.memory, self.shares = question, memory, shares
        self._shares, self._counts = grouped(shares)
        self.costs = replace(costs, chunk=question.chunk(self.most_rows))
        self.prompt_seconds = self.costs.prefill(question.prompt_tokens)

    @cached_property
    def rows_by_kv(self) -> int:
        """Sequences of full length whose keys and values fit."""
        tokens = self.question.prompt_tokens + self.question.output_tokens
        return int(self.memory.kv_tokens // tokens)

    @cached_property
    def rows_by_adapters(self) -> int:
        """The most rows whose distinct adapters are expected to fit the device together."""
        low, high = 1, self.question.max_running
        while low < high:
            middle = (low + high + 1) // 2
            fits = self.distinct(middle) <= self.memory.slots
            low, high = (middle, high) if fits else (low, middle - 1)
        return low

    @cached_property
    def most_rows(self) -> int:
        return max(1, min(self.rows_by_kv, self.rows_by_adapters, self.question.max_running))

    @cached_property
    def hit_device(self) -> float:
        """Of requests, how many find their adapter on the device."""
        return lru_hit_rate(self._shares, self.memory.slots, self._counts)

    @cached_property
    def hit_host(self) -> float:
        """Of requests, how many find it there or in host memory."""
        return lru_hit_rate(self._shares, self.memory.host_slots, self._counts)

    def keys(self, rows: float) -> float:
        """Tokens of context of that many rows, half-way through their answers."""
        return rows * (self.question.prompt_tokens + self.question.output_tokens / 2)

    def distinct(self, rows: float) -> float:
        return expected_distinct(self._shares, rows, self._counts)

    def step_seconds(self, rows: float) -> float:
        return self.costs.decode(rows, self.keys(rows), self.distinct(rows))

    def rate_at(self, rows: float) -> float:
        """The requests a second that keep `rows` rows running."""
        return 1 / (self.prompt_seconds + self.question.output_tokens * self.step_seconds(rows) / rows)

    @cached_property
    def capacity(self) -> float:
        """The most requests a second, before any headroom."""
        return self.rate_at(self.most_rows)

    def at(self, rate: float) -> Service:
        """The steady state at a rate below the capacity."""
        rows = self._rows_at(rate)
        busy = rate * self.prompt_seconds
        step = self.step_seconds(max(rows, 1.0))
        wait, load = self._wait(rate), self._load_seconds()
        return Service(
            rate=rate,
            rows=rows,
            distinct=self.distinct(rows),
            step=step,
            prompt=self.prompt_seconds,
            reading=busy,
            tpot=step / (1 - busy),
            wait=wait,
            load=load,
            ttft=wait + load + step + self.prompt_seconds,
        )

    def _rows_at(self, rate: float) -> float:
        low, high = 0.0, float(self.most_rows)
        for _ in range(60):
            middle = (low + high) / 2
            # One row's step reads as much as a whole one, however seldom there is one.
            served = middle / (self.question.output_tokens * self.step_seconds(max(middle, 1.0)))
            enough = served >= rate / (1 - rate * self.prompt_seconds)
            low, high = (low, middle) if enough else (middle, high)
        return high

    def _wait(self, rate: float) -> float:
        """The 95th percentile of the wait for other prompts, as of a queue with one server (M/G/1).

        Its mean by Pollaczek and Khinchine, l·t²(1 + cv²) / 2(1 - r); whoever waits does so for an exponential time
        (exact for M/M/1, Kingman's approximation for heavy traffic else), and a share r of requests waits.
        """
        busy = rate * self.prompt_seconds
        if busy <= TAIL:
            return 0.0
        cv = azure_2023().conv.prompt.cv
        mean = rate * self.prompt_seconds**2 * (1 + cv**2) / (2 * (1 - busy))
        return mean / busy * math.log(busy / TAIL)

    def _load_seconds(self) -> float:
        missing_host, missing = 1 - self.hit_host, 1 - self.hit_device
        of_store = self.memory.adapter / self.question.store_rate if missing_host > NOTICED else 0.0
        of_host = self.memory.adapter / self.host_rate if missing > NOTICED else 0.0
        return of_store + of_host

    @property
    def host_rate(self) -> float:
        """Bytes a second from host memory to all devices of the replica."""
        if self.question.gpu.kind == "cpu":
            return math.inf  # the kernels read an adapter where it lies
        return self.memory.gpus * self.question.gpu.host_gb_s * 1e9

    def fails(self, rate: float) -> str:
        """What gives out first at that rate, or nothing."""
        if rate > self.question.headroom * self.capacity * (1 + 1e-9):
            return self.bound()
        copied = rate * (1 - self.hit_device) * self.memory.adapter / self.host_rate
        fetched = rate * (1 - self.hit_host) * self.memory.adapter / self.question.store_rate
        if max(copied, fetched) > self.question.headroom:
            return "adapter loads"
        service = self.at(rate)
        if self.question.slo_tpot and service.tpot > self.question.slo_tpot:
            return "--slo-tpot-ms"
        if self.question.slo_ttft and service.ttft > self.question.slo_ttft:
            return "--slo-ttft-ms"
        return ""

    def bound(self) -> str:
        """What sets the capacity: memory, bandwidth or compute."""
        rows = self.most_rows
        if rows < self.question.max_running and self.rate_at(self.question.max_running) > (1 + NOTICED) * self.capacity:
            return "adapter memory" if self.rows_by_adapters < self.rows_by_kv else "KV memory"
        decoding = self.question.output_tokens * self.step_seconds(rows) / rows
        if decoding >= self.prompt_seconds:
            return self.costs.decode_bound(rows, self.keys(rows), self.distinct(rows))
        return self.costs.prefill_bound(self.question.prompt_tokens)
