"""`serve run` with a config file, in a process and on a cluster of its own, as server/docs/ray.md has it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import yaml

from livery_loadtest.servers import free_port
from ray_serve.cluster import KEY, until

START_S = 300.0
STOP_S = 90.0
PREFIX = "/llm"  # the tests' other cluster has the application at the top
ENVIRONMENT = {  # Ray as it runs by itself: the tests' other cluster runs as server/docs/ray.md recommends
    "RAY_SERVE_ENABLE_HA_PROXY": "0",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "0",
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.5",
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.5",
}


@contextmanager
def serve_run(
    file: Path,
    args: Mapping[str, object],
    variables: Mapping[str, str],
    python: str = sys.executable,
    environ: Mapping[str, str] | None = None,
) -> Iterator[Callable[[], httpx.Client]]:
    """Write the file, run it by this Python until it answers, and give a maker of clients; interrupt it at the end.

    `variables` are the application's in the file, `environ` those of the command.
    """
    port, log = free_port(), file.with_suffix(".log")
    application = {
        "name": "livery",
        "route_prefix": PREFIX,
        "import_path": "livery.scale.ray_app:app",
        "runtime_env": {"env_vars": {"LIVERY_API_KEY": KEY, **variables}},
        "args": dict(args),
    }
    config = {"http_options": {"host": "127.0.0.1", "port": port}, "applications": [application]}
    file.write_text(yaml.safe_dump(config))

    def http() -> httpx.Client:
        headers = {"authorization": f"Bearer {KEY}"}
        return httpx.Client(base_url=f"http://127.0.0.1:{port}{PREFIX}", headers=headers, timeout=120, trust_env=False)

    def answers() -> bool:
        assert process.poll() is None, log.read_text(errors="replace")
        with http() as client:
            try:
                return client.get("/v1/models").status_code == 200
            except httpx.HTTPError:
                return False

    command = [python, "-m", "ray.serve.scripts", "run", "--address", "local", str(file)]
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **ENVIRONMENT, **(environ or {})}
        ) as process,
    ):
        try:
            until(answers, f"{file.name} is served, see {log}", START_S)
            yield http
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(STOP_S)
            finally:
                process.kill()
