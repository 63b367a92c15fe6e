"""The whole of `livery bench http`: parts in order, each on a server of its own, and what comes out."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from rich.console import Console

from livery.bench.http.clock import DETOKENISING, ENCODING, STOPS
from livery.bench.http.collector import collecting
from livery.bench.http.hostile import Delay, Hostile, hostile_requests, worst_delay
from livery.bench.http.looking import LookRow, first_of, polls, scrapes, stock
from livery.bench.http.measured import Cores, MeasuredServer, measured_server
from livery.bench.http.pairs import Loaded, Pairs
from livery.bench.http.sampler import WAITING
from livery_loadtest.bars import Bar
from livery_loadtest.measures import Percentiles, Spread, over_rounds, percentiles

TOKENS_A_SECOND = Bar(10_000, 20_000)
TEXT_SHARE = Bar(0.05, 0.01, lower=True)
TENANTS_RATIO = Bar(0.97, 0.99)  # of tokens per second, with keys, limits and metering to without
METRICS_RATIO = Bar(0.99, 0.995)  # with metrics and traces to without
DELAY_MS = Bar(50, 25, lower=True)  # of others, from one request


class Part(StrEnum):
    """What is measured together."""

    STREAMS = "streams"  # with a fake engine, one core for the server
    REQUESTS = "requests"
    TENANTS = "tenants"
    METRICS = "metrics"
    SCRAPE = "scrape"
    PROFILE = "profile"
    HOSTILE = "hostile"
    TEXT = "text"  # with a real engine


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured."""

    rounds: int = 3
    streams: Sequence[int] = (1, 16, 64, 256)
    tokens: int = 256  # of an answer
    load_tokens: int = 32768  # of a round, or more where all streams together ask for more
    requests: int = 1024
    request_streams: int = 16
    request_tokens: int = 16
    tenant_streams: int = 64
    pair_tokens: int = 16384  # of each load of a pair: short, for what else a machine does changes within seconds
    tenant_pairs: int = 32
    metrics_streams: int = 64
    metrics_pairs: int = 96
    scraped_adapters: int = 10_000
    shown_adapters: int = 1_000
    looks: int = 20  # scrapes, and polls of the console
    profile_streams: int = 16
    profile_answers: int = 16  # of each stream
    text_streams: int = 16
    text_tokens: int = 64
    text_answers: int = 2  # of each stream
    hostile: Callable[[], Sequence[Hostile]] = field(default=lambda: tuple(hostile_requests()), repr=False)


@dataclass(frozen=True, slots=True)
class LoadRow:
    """A load over all rounds. `cpu_us` of the server's are for each token, or each request where those count."""

    streams: int
    per_second: Spread
    cpu_us: Spread
    first_ms: Percentiles


@dataclass(frozen=True, slots=True)
class TurnedRow:
    """Tokens per second of one server with something and without it, measured in turn, and the ratio of each pair.

    `cpu` is the ratio of its processor time per token, `traced` the bytes of traces for each request.
    """

    streams: int
    on: Spread
    off: Spread
    ratio: Spread
    cpu: float
    traced: float = 0.0


@dataclass(frozen=True, slots=True)
class TimeRow:
    """Where a server's time goes: a part's share of it, and the microseconds of it that fall on each token."""

    part: str
    share: float
    us_per_token: float


@dataclass(frozen=True, slots=True)
class TextRow:
    """What the API process spends between text and tokens, of the wall time; calls may overlap on several threads."""

    part: str
    share: float
    us_per_call: float
    calls: int


@dataclass(slots=True)
class Findings:
    """Everything a run measured."""

    cores: Cores
    streams: list[LoadRow] = field(default_factory=list)
    requests: list[LoadRow] = field(default_factory=list)
    tenants: list[TurnedRow] = field(default_factory=list)
    metrics: list[TurnedRow] = field(default_factory=list)
    looking: list[LookRow] = field(default_factory=list)
    profile: list[TimeRow] = field(default_factory=list)
    busy: float = 0.0  # share of samples that found the profiled server doing something
    hostile: list[Delay] = field(default_factory=list)
    text: list[TextRow] = field(default_factory=list)
    text_tokens_per_second: float = 0.0
    complete: bool = False  # every part was measured to its end

    @property
    def text_share(self) -> float:
        return sum(row.share for row in self.text)


class Suite:
    """Runs parts against servers of `model`; this process is the client."""

    def __init__(self, model: str, sizes: Sizes, console: Console) -> None:
        self._model = model
        self._sizes = sizes
        self._console = console
        self.findings = Findings(Cores.chosen())

    def run(self, parts: frozenset[Part]) -> Findings:
        """Measure. Raises ServerFailed or LoadFailed."""
        if parts - {Part.TEXT, Part.TENANTS, Part.METRICS, Part.SCRAPE}:
            self._on_fake(parts)
        if Part.TENANTS in parts:
            self._with_tenants_and_without()
        if Part.METRICS in parts:
            self._with_metrics_and_without()
        if Part.SCRAPE in parts:
            self._looked_at()
        if Part.TEXT in parts:
            with measured_server(self._model, None, self._console, fake=False) as server:
                self._text(server)
        self.findings.complete = True
        return self.findings

    def _on_fake(self, parts: frozenset[Part]) -> None:
        cores, everywhere = self.findings.cores, _affinity()
        with measured_server(self._model, cores.server, self._console, fake=True) as server:
            _pin({cores.client} if cores.client is not None else everywhere)
            try:
                server.load(8, 2, 64)  # imports and caches
                if Part.STREAMS in parts:
                    self.findings.streams += [self._streamed(server, streams) for streams in self._sizes.streams]
                if Part.REQUESTS in parts:
                    self.findings.requests.append(self._requests(server))
                if Part.PROFILE in parts:
                    self._profile(server)
                if Part.HOSTILE in parts:
                    self.findings.hostile += [worst_delay(server.url, one) for one in self._sizes.hostile()]
            finally:
                _pin(everywhere)

    def _with_tenants_and_without(self) -> None:
        """One server, asked with a key that is limited in every way, which minds that or doesn't."""
        cores, sizes = self.findings.cores, self._sizes
        with measured_server(self._model, cores.server, self._console, fake=True, variant="limited") as server:
            pairs = self._in_turn(server, sizes.tenant_streams, sizes.tenant_pairs)
        self.findings.tenants.append(_turned(sizes.tenant_streams, pairs))

    def _with_metrics_and_without(self) -> None:
        """One server, which counts and traces or doesn't."""
        cores, sizes, fake = self.findings.cores, self._sizes, True
        with (
            collecting() as collector,
            measured_server(
                self._model, cores.server, self._console, fake=fake, variant="traced", collector=collector.url
            ) as server,
        ):
            pairs = self._in_turn(server, sizes.metrics_streams, sizes.metrics_pairs)
        traced = collector.taken / sum(one.answers for one, _ in pairs.rounds)
        self.findings.metrics.append(_turned(sizes.metrics_streams, pairs, traced))

    def _in_turn(self, server: MeasuredServer, streams: int, rounds: int) -> Pairs:
        """One server with something and without it, pair by pair; each goes first as often."""
        cores, everywhere, sizes = self.findings.cores, _affinity(), self._sizes
        each = max(1, sizes.pair_tokens // (sizes.tokens * streams))
        _pin({cores.client} if cores.client is not None else everywhere)
        try:
            found: list[list[Loaded]] = [[], []]
            for on in (True, False):
                server.turned(on).load(8, 2, 64)  # imports and caches
            for pair in range(rounds):
                for place in (0, 1) if pair % 2 else (1, 0):
                    server.turned(place == 0)
                    before = server.cpu_s
                    load = server.load(streams, each, sizes.tokens)
                    found[place].append(Loaded(load.tokens, load.seconds, server.cpu_s - before, len(load.answers)))
        finally:
            _pin(everywhere)
        return Pairs(list(zip(*found, strict=True)))

    def _looked_at(self) -> None:
        """What scrapes and the console cost, where there are many adapters in use."""
        cores, sizes = self.findings.cores, self._sizes
        with measured_server(self._model, cores.server, self._console, fake=True) as server:
            facts = first_of(server)
            stock(server, facts, range(1, sizes.shown_adapters))
            self.findings.looking += polls(server, sizes.shown_adapters, sizes.looks)
            stock(server, facts, range(sizes.shown_adapters, sizes.scraped_adapters))
            self.findings.looking += scrapes(server, sizes.scraped_adapters, sizes.looks)

    def _streamed(self, server: MeasuredServer, streams: int) -> LoadRow:
        sizes = self._sizes
        each = max(1, sizes.load_tokens // (sizes.tokens * streams))
        rates, costs, first = [], [], []
        for _ in range(sizes.rounds):
            before = server.cpu_s
            load = server.load(streams, each, sizes.tokens)
            costs.append(1e6 * (server.cpu_s - before) / load.tokens)
            rates.append(load.tokens / load.seconds)
            first += [answer.first_s for answer in load.answers]
        return _row(streams, rates, costs, first)

    def _requests(self, server: MeasuredServer) -> LoadRow:
        """Answers that aren't streamed: what a request costs beside its tokens."""
        sizes = self._sizes
        each = max(1, sizes.requests // sizes.request_streams)
        rates, costs, first = [], [], []
        for _ in range(sizes.rounds):
            before = server.cpu_s
            load = server.load(sizes.request_streams, each, sizes.request_tokens, stream=False)
            costs.append(1e6 * (server.cpu_s - before) / len(load.answers))
            rates.append(len(load.answers) / load.seconds)
            first += [answer.seconds for answer in load.answers]
        return _row(sizes.request_streams, rates, costs, first)

    def _profile(self, server: MeasuredServer) -> None:
        sizes = self._sizes
        with server.watched() as found:
            load = server.load(sizes.profile_streams, sizes.profile_answers, sizes.tokens)
        samples = sum(found.samples.values())
        self.findings.busy = 1 - found.samples.get(WAITING, 0) / max(1, samples)
        for part, count in sorted(found.samples.items(), key=lambda item: -item[1]):
            share = count / samples
            self.findings.profile.append(TimeRow(part, share, 1e6 * share * load.seconds / load.tokens))

    def _text(self, server: MeasuredServer) -> None:
        """Chats on a real engine; the share is of the time that the load took."""
        sizes = self._sizes
        server.load(sizes.text_streams, 1, 8)
        with server.watched() as found:
            load = server.load(sizes.text_streams, sizes.text_answers, sizes.text_tokens)
        self.findings.text_tokens_per_second = load.tokens / load.seconds
        for part in (ENCODING, DETOKENISING, STOPS):
            seconds, calls = found.seconds.get(part, 0.0), found.calls.get(part, 0)
            self.findings.text.append(TextRow(part, seconds / load.seconds, 1e6 * seconds / max(1, calls), calls))


def _turned(streams: int, pairs: Pairs, traced: float = 0.0) -> TurnedRow:
    return TurnedRow(streams, pairs.rates(0), pairs.rates(1), pairs.ratio(), pairs.cpu_ratio(), traced)


def _row(streams: int, rates: list[float], costs: list[float], first: list[float]) -> LoadRow:
    rate, cost, latencies = over_rounds(rates), over_rounds(costs), percentiles(first)
    assert rate is not None and cost is not None and latencies is not None
    return LoadRow(streams, rate, cost, latencies)


def _affinity() -> set[int]:
    return set(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else set()


def _pin(cores: set[int]) -> None:
    if cores:
        os.sched_setaffinity(0, cores)
