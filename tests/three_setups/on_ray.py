"""Two replicas on Ray Serve with adapters of a folder, until standard input ends. Run in Ray's environment.

    python tests/three_setups/on_ray.py MODEL ADAPTERS_FOLDER NAME...

Prints `URL KEY` once both replicas serve every adapter.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import httpx

from ray_serve.cluster import KEY, cluster, until

FILES = ("adapter_config.json", "adapter_model.safetensors")


def main(model: str, folder: str, *names: str) -> int:
    with tempfile.TemporaryDirectory() as own, cluster(Path(own), model, max_running=8) as deployed:
        deployed.wait_for_replicas(2)
        with deployed.http() as http:
            for name in names:
                files = {file: (Path(folder) / name / file).read_bytes() for file in FILES}
                http.post(f"/v1/adapters/{name}/versions", files=files).raise_for_status()
        for url in deployed.own_urls:
            with deployed.http(url) as http:
                until(lambda http=http: served(http, names), f"{url} serves {', '.join(names)}")
        print(deployed.url, KEY, flush=True)
        sys.stdin.read()
    return 0


def served(http: httpx.Client, names: tuple[str, ...]) -> bool:
    """Whether a replica lists all of them."""
    listed = {model["id"] for model in http.get("/v1/models").json()["data"]}
    return listed.issuperset(names)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
