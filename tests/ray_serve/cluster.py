"""A small Ray cluster of this machine with Livery on it, its database and its object store, each of them killable."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import httpx
import openai
import ray
from ray import serve
from ray.serve.context import _get_global_client  # what Ray's dashboard asks, without a dashboard

from livery.scale.ray_app import app
from livery_loadtest.servers import free_port
from postgres.server import hung, programs, running

KEY = "lv-test-operator"
PATIENCE_S = 120.0
APPLICATION = "livery"
MOST = 16  # replicas
OWN_PORTS = 18_000 + os.getpid() % 500 * MOST  # apart from those of another run on this machine
BUCKET = "adapters"
MINE = str(os.getpid())  # whose child is the raylet, whose children are the workers
CREDENTIALS = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}


@dataclass
class Deployed:
    """An application on the cluster: where it answers, and the replicas behind it."""

    url: str
    args: dict[str, object]
    postgres: Postgres
    objects: Objects
    folder: Path

    def client(self, retries: int = 0) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=retries, timeout=120)

    def http(self, url: str | None = None) -> httpx.Client:
        headers = {"authorization": f"Bearer {KEY}"}
        return httpx.Client(base_url=url or self.url, headers=headers, timeout=120, trust_env=False)

    @property
    def own_urls(self) -> list[str]:
        """Where each replica answers itself."""
        return answering(OWN_PORTS)

    def deploy(self, **changed: object) -> None:
        """Start the application, or replace its replicas one after the other by such with these arguments."""
        self.args |= changed
        serve.run(app(dict(self.args)), name=APPLICATION, route_prefix="/", blocking=False)

    def replace(self, **changed: object) -> None:
        """Deploy with these arguments, and wait until nothing is left of what was there."""
        old = set(replica_pids())
        self.deploy(**changed)
        until(lambda: not old & set(replica_pids()), "the old replicas are gone")
        self.wait_for_replicas(int(str(self.args["replicas"])))

    def wait_for_replicas(self, count: int) -> None:
        until(lambda: len(self.own_urls) == count, f"{count} replicas answer", PATIENCE_S)


class Postgres:
    """A database server of its own that can be away for a while."""

    def __init__(self, url: str, binaries: Path) -> None:
        self.url = url
        self._binaries = binaries
        self._home = Path(url.partition("host=")[2])

    @contextmanager
    def hung(self) -> Iterator[None]:
        """It takes connections and says nothing."""
        with hung(self.url):
            yield

    @contextmanager
    def away(self) -> Iterator[None]:
        """It refuses connections."""
        self._ctl("-m", "immediate", "stop")
        try:
            yield
        finally:
            self._ctl("-w", "-l", str(self._home / "log"), "-o", f"-k {self._home} -h ''", "start")

    def _ctl(self, *arguments: str) -> None:
        user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
        command = [*user, str(self._binaries / "pg_ctl"), "-D", str(self._home / "data"), *arguments]
        subprocess.run(command, cwd=self._home, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


class Objects:
    """moto's S3 server in a process of its own, which can be held up, or be gone for a while with all that it had."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = (folder / "moto.log").open("w")
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        process = subprocess.Popen(command, stdout=self._log, stderr=subprocess.STDOUT)
        until(self._answers, "moto answers")
        client = boto3.client("s3", endpoint_url=self.url, region_name="us-east-1", **CREDENTIALS)
        client.create_bucket(Bucket=BUCKET)
        return process

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    @contextmanager
    def away(self) -> Iterator[None]:
        """It refuses connections, and is empty afterwards: moto keeps everything in memory."""
        self._process.kill()
        self._process.wait()
        try:
            yield
        finally:
            self._process = self._start()

    @contextmanager
    def hung(self) -> Iterator[None]:
        """It takes connections and says nothing."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()


@contextmanager
def cluster(folder: Path, model: str | Path, **args: object) -> Iterator[Deployed]:
    """Two replicas of a model, unless told otherwise, deployed and answering."""
    binaries = programs()
    assert binaries is not None, "PostgreSQL's server programs are not installed: apt-get install postgresql"
    with ExitStack() as stack:
        postgres = Postgres(stack.enter_context(running(binaries)), binaries)
        objects = Objects(folder)
        stack.callback(objects.stop)
        variables = {
            **{name.upper(): value for name, value in CREDENTIALS.items()},
            "AWS_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
            "AWS_ENDPOINT_URL": objects.url,
            "LIVERY_REGISTRY": postgres.url,
            "LIVERY_API_KEY": KEY,
            "NO_PROXY": "*",
        }
        os.environ |= variables
        ray.init(num_cpus=16, include_dashboard=False, log_to_driver=False, object_store_memory=256 << 20)
        stack.callback(ray.shutdown)
        port = free_port()
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        stack.callback(serve.shutdown)
        usual: dict[str, object] = {
            "model": str(model),
            "blob_store": f"s3://{BUCKET}/livery",
            "data": str(folder / "data-{replica}"),
            "replicas": 2,
            "threads": 1,
            "replica_port": OWN_PORTS,
            "ingress_replicas": 2,
        }
        deployed = Deployed(f"http://127.0.0.1:{port}", {**usual, **args}, postgres, objects, folder)
        deployed.deploy()
        yield deployed


def answering(first_port: int) -> list[str]:
    """Where replicas answer themselves whose first port this is."""
    found = []
    for port in range(first_port, first_port + MOST):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                found.append(f"http://127.0.0.1:{port}")
    return found


def until(condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> None:
    """Ask again and again."""
    end = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < end, f"still not: {what}"
        time.sleep(0.1)


def replica_pids() -> list[int]:
    """The processes of Livery's replicas on this process's cluster."""
    return worker_pids(f"ServeReplica:{APPLICATION}:Replica")


def worker_pids(title: str) -> list[int]:
    """The workers of this process's cluster by how the titles begin that Ray gives them."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                named = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if named.startswith(f"ray::{title}".encode()) and _parent(_parent(entry.name)) == MINE:
                found.append(int(entry.name))
    return sorted(found)


def replica_names() -> dict[int, str]:
    """What each of them is called in `x-livery-replica`, by its process, as Ray's controller has them."""
    client = _get_global_client()
    details = client.get_serve_details() if client else {}
    replicas = details["applications"][APPLICATION]["deployments"]["Replica"]["replicas"]
    return {int(one["pid"]): str(one["replica_id"]) for one in replicas if one["state"] == "RUNNING"}


def _parent(pid: str) -> str:
    """Whose child a process is; nobody's once it is gone."""
    try:
        return (Path("/proc") / pid / "stat").read_text().rpartition(")")[2].split()[1]
    except OSError:
        return ""
