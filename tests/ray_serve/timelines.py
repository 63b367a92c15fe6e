"""A replica killed under load, and all replicas replaced under load: timelines of what clients saw.

    make test-ray ONLY=timelines.py             # ONLY="timelines.py --what replaced": the second alone

The demo base and its adapters on two replicas; clients that stream one answer after the other all the while.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from chaos.common import Run, arguments
from ray_serve.clients import Clients
from ray_serve.cluster import Deployed, cluster, replica_pids, until

ADAPTERS = Path(__file__).parent.parent.parent / "adapters" / "demo"
NAMES = ("pirate", "sql", "json", "portuguese", "sentiment")
MODEL = "smollm2-135m-instruct"
PATIENCE_S = 300.0


def main() -> int:
    options = arguments(__doc__ or "", clients=6, max_tokens=48, before_s=12.0, what="killed,replaced")
    run = Run("replicas of Ray Serve are killed, and replaced, under load", options.seed)
    with tempfile.TemporaryDirectory() as folder:
        args = {"max_model_len": 512, "max_running": 8, "threads": 1, "kv_memory": "96MiB"}
        with cluster(Path(folder), MODEL, **args) as deployed:
            deployed.wait_for_replicas(2)
            run.say(f"two replicas serve {MODEL}")
            for name in NAMES:
                _upload(deployed, name)
            run.say(f"{', '.join(NAMES)} are taken in")
            for what in [todo for todo in (killed, replaced) if todo.__name__ in options.what]:
                clients = Clients(lambda: run.now, deployed.http, (MODEL, *NAMES), options.clients, options.max_tokens)
                try:
                    until(lambda: len(clients.seen) >= 2 * options.clients, "the load runs", PATIENCE_S)  # noqa: B023
                    time.sleep(options.before_s)
                    what(run, deployed, clients)
                finally:
                    clients.stop()
                clients.print()
    return run.finish()


def killed(run: Run, deployed: Deployed, clients: Clients) -> None:
    """One replica ends as by the kernel's hand."""
    victim = run.dice.choice(replica_pids())
    at = run.now
    os.kill(victim, signal.SIGKILL)
    run.say(f"replica process {victim} is killed")
    until(lambda: len(replica_pids()) == 2 and victim not in replica_pids(), "Ray starts another", PATIENCE_S)
    deployed.wait_for_replicas(2)
    back = run.now
    run.say(f"two replicas again after {back - at:.1f} s")
    until(lambda: any(one.begun > back for one in list(clients.seen)), "requests go on", PATIENCE_S)
    time.sleep(5.0)
    failed = [one for one in clients.between(at, run.now) if one.outcome != "whole"]
    lost = [one for one in failed if one.begun <= at]
    told = {one.replica for one in failed if one.replica}
    its = [one for one in clients.between(at - 1.0, at + 1.0) if one.replica in told or not one.replica]
    run.say(f"failed: {dict(Counter(one.outcome for one in failed))}, {len(lost)} of them under way when it was killed")
    run.check("what was under way on the replica failed", bool(lost))
    run.check("each that failed had an error of its own", all(one.outcome == "replica_lost" for one in failed))
    run.check("only what was under way on one replica failed", len(told) <= 1)
    run.check("nothing failed that began a second after", all(one.begun < at + 1.0 for one in failed))
    run.check(f"no request failed that wasn't its: {len(failed)} of {len(its)}", len(failed) <= len(its))


def replaced(run: Run, deployed: Deployed, clients: Clients) -> None:
    """New replicas with other arguments come in, one by one, and the old ones end what they have."""
    old, at = set(replica_pids()), run.now
    deployed.deploy(max_queued_tokens=int(run.now) + 4096)
    run.say("another version of the application is deployed")
    until(lambda: not old & set(replica_pids()) and len(replica_pids()) == 2, "all replicas are new", PATIENCE_S)
    deployed.wait_for_replicas(2)
    run.say(f"all replicas are new after {run.now - at:.1f} s")
    time.sleep(5.0)
    seen = clients.between(at, run.now)
    failed = [one for one in seen if one.outcome != "whole"]
    run.check(f"of {len(seen)} requests meanwhile none failed: {dict(Counter(o.outcome for o in failed))}", not failed)
    run.check("old replicas and new ones answered", len({one.replica for one in seen}) >= 3)


def _upload(deployed: Deployed, name: str) -> None:
    folder = ADAPTERS / name
    files = {
        file: (file, (folder / file).read_bytes()) for file in ("adapter_config.json", "adapter_model.safetensors")
    }
    with deployed.http() as http:
        answer = http.post(f"/v1/adapters/{name}/versions", files=files)
        assert answer.status_code in (200, 201), answer.text


if __name__ == "__main__":
    sys.exit(main())
