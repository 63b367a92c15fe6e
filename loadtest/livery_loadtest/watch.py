"""The server's own metrics, sampled beside a run: Prometheus's text format, from /metrics."""

from __future__ import annotations

import asyncio
import time

import httpx
from prometheus_client.parser import text_string_to_metric_families

from livery_loadtest.record import Sample
from livery_loadtest.target import METRICS_KEY_ENV, Target, key_header

MOST_BYTES = 8 << 20  # of one answer
MOST_SAMPLES = 1024  # then every second one goes, and the interval doubles: hours need no more points than minutes
MOST_SERIES = 4096
ANSWER_S = 10.0
LEFT_OUT = ("_bucket", "_created")  # histograms are many series; their sums and counts say enough beside a run


class Watch:
    """Samples `target` every `interval_s` seconds, beginning at `begin` on time.perf_counter; 0: never.

    A server that has no such metrics, or tells them wrongly, leaves samples out and disturbs nothing; `trouble` is why
    the last one is missing. Where they take a key of their own, it is in METRICS_KEY_ENV.
    """

    def __init__(self, target: Target, interval_s: float, begin: float) -> None:
        self._url = target.url + "/metrics"
        self._headers = key_header(METRICS_KEY_ENV, target.key_env)
        self._interval_s = interval_s
        self._begin = begin
        self._ended = asyncio.Event()
        self.samples: list[Sample] = []
        self.trouble = ""

    async def run(self) -> None:
        """Sample until `end` is called, and once more then."""
        if not self._interval_s:
            return
        due = self._begin
        async with httpx.AsyncClient(timeout=ANSWER_S, headers=self._headers, trust_env=False) as client:
            while not await self._ended_before(due):
                await self._sample(client)
                while due <= time.perf_counter():
                    due += self._interval_s
            await self._sample(client)

    def end(self) -> None:
        self._ended.set()

    async def _ended_before(self, moment: float) -> bool:
        try:
            async with asyncio.timeout(max(0.0, moment - time.perf_counter())):
                return await self._ended.wait()
        except TimeoutError:
            return self._ended.is_set()

    async def _sample(self, client: httpx.AsyncClient) -> None:
        at = time.perf_counter() - self._begin
        try:
            values = parse_metrics(await self._fetch(client))
        except httpx.HTTPStatusError as failure:
            status = failure.response.status_code
            key = f"; a key that opens it goes into {METRICS_KEY_ENV}" if status in (401, 403) else ""
            self.trouble = f"/metrics answers {status}{key}"
            return
        except (httpx.HTTPError, ValueError) as failure:
            self.trouble = f"/metrics can't be read: {type(failure).__name__}"
            return
        self.samples.append(Sample(at, values))
        if len(self.samples) > MOST_SAMPLES:
            del self.samples[1::2]
            self._interval_s *= 2

    async def _fetch(self, client: httpx.AsyncClient) -> str:
        """The text of one answer. Raises httpx.HTTPError, and ValueError for one that is too long."""
        read = bytearray()
        async with client.stream("GET", self._url) as response:
            response.raise_for_status()
            async for data in response.aiter_bytes():
                read += data
                if len(read) > MOST_BYTES:
                    raise ValueError(f"{self._url} answers more than {MOST_BYTES} bytes")
        return read.decode(errors="replace")


def parse_metrics(text: str) -> dict[str, float]:
    """Series -> value, the series as in the text, its labels by name. Raises ValueError for another format."""
    values: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if not sample.name.endswith(LEFT_OUT) and len(values) < MOST_SERIES:
                values[_series(sample.name, sample.labels)] = float(sample.value)
    return values


def _series(name: str, labels: dict[str, str]) -> str:
    told = ",".join(f'{label}="{_escaped(value)}"' for label, value in sorted(labels.items()))
    return f"{name}{{{told}}}" if told else name


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
