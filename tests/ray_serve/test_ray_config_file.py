"""`serve run` with a config file, as operators start it: on a cluster of its own, scaled by Ray as the file says."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from ray_serve.clients import Clients
from ray_serve.cluster import MOST, OWN_PORTS, Deployed, answering, until
from ray_serve.config_file import serve_run

FIRST_PORT = OWN_PORTS + MOST // 2  # the other cluster has two replicas
QUICKLY = {"upscale_delay_s": 0, "downscale_delay_s": 1, "look_back_period_s": 2, "metrics_interval_s": 0.5}


@pytest.mark.timeout(600)
def test_a_config_file_is_served_and_scaled_without_a_failed_request(deployed: Deployed, tiny: Path) -> None:
    args = {
        "model": str(tiny),
        "blob_store": deployed.args["blob_store"],
        "data": str(deployed.folder / "scaled-{replica}"),
        "threads": 1,
        "max_running": 8,
        "num_cpus": 0.1,
        "min_replicas": 1,
        "max_replicas": 2,
        "target_ongoing_requests": 2,
        "autoscaling": QUICKLY,
        "replica_port": FIRST_PORT,
    }

    def replicas() -> int:
        return len(answering(FIRST_PORT))

    with serve_run(deployed.folder / "scaled.yaml", args, {"LIVERY_REGISTRY": deployed.postgres.url}) as http:
        assert replicas() == 1
        clients = Clients(time.monotonic, http, [tiny.name], 8, 200)
        try:
            until(lambda: replicas() == 2, "Ray has added a replica", 240)
            until(lambda: len({one.replica for one in clients.seen}) == 2, "the new one answers requests")
            clients.stop(left=1)
            until(lambda: replicas() == 1, "Ray has taken a replica away", 240)
            so_far = len(clients.seen)
            until(lambda: len(clients.seen) > so_far + 2, "requests go on")
        finally:
            clients.stop()
    assert {one.outcome for one in clients.seen} == {"whole"}
