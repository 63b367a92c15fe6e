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
from collections.abc import Iterable
from pathlib import Path

from chaos.common import Run, arguments
from ray_serve.clients import Clients, Seen
from ray_serve.cluster import Deployed, cluster, replica_names, replica_pids, until

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
    """One replica ends as by the kernel's hand, while it streams answers."""
    victim, name = run.dice.choice(sorted(replica_names().items()))
    until(lambda: any(one.replica == name for one in clients.under_way()), f"{name} answers somebody", PATIENCE_S)
    # Fewer clients than make a replica busy: an adapter's requests go where its last one went. The base's go anywhere.
    home = {one.model: one.replica for one in list(clients.seen) if one.outcome == "whole"}
    elsewhere = {model for model, replica in home.items() if replica != name} - {MODEL}
    at = run.now
    its = [one for one in clients.under_way() if one.replica == name]
    os.kill(victim, signal.SIGKILL)
    run.say(f"replica {name}, process {victim}, is killed with {len(its)} answers begun")
    until(lambda: len(replica_pids()) == 2 and victim not in replica_pids(), "Ray starts another", PATIENCE_S)
    deployed.wait_for_replicas(2)
    back = run.now
    run.say(f"two replicas again after {back - at:.1f} s")
    until(lambda: any(one.begun > back for one in list(clients.seen)), "requests go on", PATIENCE_S)
    time.sleep(5.0)
    seen = clients.between(at, run.now)
    failed = [one for one in seen if one.outcome != "whole"]
    cut = [one for one in seen if any((one.begun, one.model) == (was.begun, was.model) for was in its)]
    run.say(f"failed: {_outcomes(failed)}; what it had begun: {_outcomes(cut)}")
    run.check("answers that it had begun failed", any(one in failed for one in cut))
    run.check("or were over by then", all(one in failed or one.ended < at + 1.0 for one in cut))
    run.check("each that failed had an error of its own", all(one.outcome == "replica_lost" for one in failed))
    run.check("no answer failed that the other had begun", all(one.replica in ("", name) for one in failed))
    run.check(
        f"no request failed for what the other had: {', '.join(sorted(elsewhere))}",
        all(one.model not in elsewhere for one in failed),
    )
    run.check("nothing failed that began a second after", all(one.begun < at + 1.0 for one in failed))


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
    run.check(f"of {len(seen)} requests meanwhile none failed: {_outcomes(seen)}", not failed)
    run.check("old replicas and new ones answered", len({one.replica for one in seen}) >= 3)


def _outcomes(seen: Iterable[Seen]) -> dict[str, int]:
    return dict(Counter(one.outcome for one in seen))


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
