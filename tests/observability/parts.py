"""Foreign parts that these tests run: there, or the remedy; and a real Prometheus over a live server."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from foreign_parts import lacking

DEPLOY = Path(__file__).parent.parent.parent / "server" / "deploy"


def program(name: str) -> str:
    """Where a program is. Skips without it, fails with CI=true."""
    found = shutil.which(name)
    if found is None:
        remedy = f"{name} is missing: apt-get install prometheus"
        lacking(remedy)
    return found


class Prometheus:
    """A running Prometheus."""

    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, promql: str) -> list[dict[str, Any]]:
        """The samples that answer a query now; it must be one that Prometheus takes."""
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": promql}, timeout=30).json()
        assert answer["status"] == "success", f"{promql}: {answer.get('error')}"
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def number(self, promql: str) -> float:
        """The one number that answers a query."""
        (sample,) = self.query(promql)
        return float(sample["value"][1])

    def wait_for(self, promql: str, seconds: float = 60) -> None:
        """Until a query has an answer."""
        until = time.monotonic() + seconds
        while not self.query(promql):
            assert time.monotonic() < until, f"no answer to {promql} within {seconds:.0f} s: {self._targets()}"
            time.sleep(0.1)

    def _targets(self) -> str:
        return httpx.get(f"{self.url}/api/v1/targets", timeout=30).text[:2000]


@contextmanager
def prometheus(target: str, key: str, folder: Path, labels: Mapping[str, str] | None = None) -> Iterator[Prometheus]:
    """A Prometheus that scrapes `target` (HOST:PORT) five times a second with a key, with the rules of deploy/.

    `labels` are what a discovery would give each series.
    """
    binary = program("prometheus")
    (folder / "key").write_text(key)
    (folder / "prometheus.yml").write_text(
        "global: {scrape_interval: 200ms, evaluation_interval: 200ms}\n"
        f"rule_files: ['{DEPLOY / 'prometheus' / 'rules.yml'}']\n"
        "scrape_configs:\n"
        "  - job_name: livery\n"
        "    scrape_timeout: 200ms\n".replace("    scrape_timeout: 200ms\n", "")
        + f"    authorization: {{credentials_file: '{folder / 'key'}'}}\n"
        f"    static_configs: [{{targets: ['{target}'], labels: {json.dumps(dict(labels or {}))}}}]\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(binary, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"),
                *(f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"),
            ],
            stdout=log,
            stderr=log,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_ready(url, process, folder / "log")
            yield Prometheus(url)
        finally:
            process.terminate()
            process.wait(30)


def _wait_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 60
    while True:
        assert process.poll() is None and time.monotonic() < until, log.read_text()
        try:
            if httpx.get(f"{url}/-/ready", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
