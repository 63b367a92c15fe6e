"""Livery's server over vLLM beside vLLM's own, on one machine with equal options: output tokens a second, in turn.

    python tests/benchmarks/vllm_engine.py --out vllm-engine.json

Both serve the demo base with the same random adapters, in fp32, with the same slots, rank, streams and KV cache; they
are measured in turn, repeat after repeat, and the ratio is taken within each. The bar is 0.97 for the base and for
adapters mixed. Beside it stands what a token cost each server's processes in processor time: of the one that serves
HTTP, and of vLLM's engine. The environments are those of `make test-vllm`, built once.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent.parent))

from engine_vllm.run import ServerEnvironment
from livery import __version__
from livery_loadtest.drive import Observer
from livery_loadtest.kinds import Closed, Distinct, Fixed
from livery_loadtest.live import LiveBar
from livery_loadtest.measures import Spread, paired_ratio
from livery_loadtest.origin import Origin, document, write_json
from livery_loadtest.peers import EnvironmentFailed
from livery_loadtest.peers.launching import model_directory
from livery_loadtest.peers.vllm import VllmEnvironment, default_environment, vllm_command, vllm_variables
from livery_loadtest.random_adapters import write_random_adapters
from livery_loadtest.record import Run
from livery_loadtest.servers import (
    LaunchedServer,
    LaunchSpec,
    Sleep,
    SleepingStage,
    free_port,
    group_members,
    process_seconds,
)
from livery_loadtest.session import Begin, Manner, find_served, run_session
from livery_loadtest.spec import Workload
from livery_loadtest.target import Target

MODEL = "smollm2-135m-instruct"
OURS, THEIRS = "livery-vllm", "vllm"
BAR = 0.97
RANK, KV_GIB, MAX_LEN = 16, 2, 2048


def specs(environment: ServerEnvironment, folder: Path, given: argparse.Namespace) -> list[LaunchSpec]:
    """Both servers, with the same adapters and options."""
    model = model_directory(given.model)
    adapters = write_random_adapters(model, folder / "adapters", given.adapters, RANK)
    shared = vllm_variables(environment.vllm.folder, given.bind, KV_GIB)
    names = frozenset(adapters)
    ports = free_port(), free_port()
    theirs = vllm_command(environment.vllm.python, model, model.name, ports[0], adapters, RANK, given.streams)
    ours = [str(environment.python), "-m", "livery", "serve", "--engine", "vllm", "--model", str(model)]
    ours += ["--served-model-name", model.name, "--adapters", str(folder / "adapters"), "--data", str(folder / "data")]
    ours += ["--port", str(ports[1]), "--dtype", "float32", "--max-running", str(given.streams)]
    ours += ["--max-model-len", str(MAX_LEN), "--max-loras", str(given.adapters), "--max-lora-rank", str(RANK)]
    ours += ["--max-cpu-loras", str(2 * given.adapters)]
    own = shared | environment.variables()
    return [
        LaunchSpec(THEIRS, theirs, _url(ports[0]), folder / "vllm.log", shared, expects=names),
        LaunchSpec(OURS, ours, _url(ports[1]), folder / "livery.log", own, ready="/ready", expects=names),
    ]


def workloads(given: argparse.Namespace) -> list[Workload]:
    """To the base alone, and to all adapters in turn."""
    mixed = Workload(
        name="mixed",
        arrivals=Closed(streams=given.streams),
        requests=given.requests,
        warm_up=given.streams,
        popularity=Distinct(),
        prompt=Fixed(tokens=64),
        output=Fixed(tokens=given.tokens),
    )
    return [msgspec.structs.replace(mixed, name="base", base_share=1.0), mixed]


class Processors:
    """Processor time of each server's processes, by workload, while it is measured and not while it warms up."""

    def __init__(self, servers: Sequence[LaunchedServer], begin: Begin) -> None:
        self._servers = {server.spec.name: server for server in servers}
        self._begin = begin
        self._open: tuple[str, str] | None = None
        self._before: Mapping[str, float] = {}
        self.seconds: dict[tuple[str, str], dict[str, float]] = {}  # by server and workload, then by kind of process

    def begin(self, name: str, count: int) -> Observer:
        """In place of a session's `begin`; `name` is the server's, the workload's, and what is done."""
        self.end()
        server, workload, what = name.split(", ")
        if what != "warm-up":
            self._open, self._before = (server, workload), self._used(server)
        return self._begin(name, count)

    def end(self) -> None:
        """What was measured last is over."""
        if self._open is not None:
            spent = self.seconds.setdefault(self._open, {"front": 0.0, "engine": 0.0})
            for kind, seconds in self._used(self._open[0]).items():
                spent[kind] += seconds - self._before[kind]
            self._open = None

    def _used(self, server: str) -> dict[str, float]:
        leader = self._servers[server].process.pid
        used = {"front": 0.0, "engine": 0.0}
        for pid in group_members(leader):
            used["front" if pid == leader else "engine"] += process_seconds(pid)
        return used


def speed(run: Run) -> float:
    """Output tokens per second of whole answers. Raises SystemExit where some failed: no comparison then."""
    failed = [record.error_message or record.error for record in run.records if record.error]
    if failed:
        raise SystemExit(f"{run.target}: {len(failed)} of {len(run.records)} requests failed, the first: {failed[0]}")
    return answered(run) / run.seconds


def answered(run: Run) -> int:
    """Output tokens."""
    return sum(record.output_tokens or 0 for record in run.records)


def compared(runs: Sequence[Run]) -> tuple[Mapping[str, list[float]], Spread]:
    """Tokens a second of each server by repeat, and the ratio of ours to theirs."""
    found = {name: [speed(run) for run in runs if run.target == name] for name in (OURS, THEIRS)}
    ratio = paired_ratio(found[OURS], found[THEIRS])
    if ratio is None:
        raise SystemExit("nothing was measured; start again")
    return found, ratio


async def measured(
    given: argparse.Namespace, launched: Sequence[LaunchedServer], console: Console
) -> dict[str, object]:
    targets = [Target(server.spec.name, server.spec.url) for server in launched]
    subjects = [await find_served(target) for target in targets]
    stage = SleepingStage(launched, Sleep.AUTO)
    with LiveBar(console) as bar:
        processors = Processors(launched, bar.begin)
        results = await run_session(workloads(given), subjects, Manner(repeats=given.repeats), processors.begin, stage)
        processors.end()
    report: dict[str, dict[str, Any]] = {}
    for one in results:
        name = one.workload.name
        speeds, ratio = compared(one.runs)
        spent = {server: processors.seconds[server, name] for server in (OURS, THEIRS)}
        tokens = {server: sum(answered(run) for run in one.runs if run.target == server) for server in spent}
        cost = {
            server: {kind: 1e6 * seconds / tokens[server] for kind, seconds in kinds.items()}
            for server, kinds in spent.items()
        }
        report[name] = {"tokens_per_second": speeds, "ratio": asdict(ratio), "bar": BAR, "cpu_us_per_token": cost}
        verdict = "reached" if ratio.median >= BAR else "MISSED"
        Console().print(
            f"{one.workload.name}: {ratio.median:.3f} of vLLM's own server ({ratio.low:.3f} to {ratio.high:.3f}, "
            f"{given.repeats} repeats), bar {BAR} {verdict}"
        )
        for server, kinds in cost.items():
            told = ", ".join(f"{kind} {microseconds:,.0f}" for kind, microseconds in kinds.items())
            Console().print(f"  µs of processor time a token, {server}: {told}")
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL, help="a tiny one shows what the processes around the engine cost")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--bind", default="auto", help="VLLM_CPU_OMP_THREADS_BIND of both")
    parser.add_argument("--out", type=Path, help="write what was measured to this JSON file")
    given = parser.parse_args()
    console = Console(stderr=True)
    environment = ServerEnvironment(VllmEnvironment(default_environment()))
    try:
        environment.ensure(console)
    except EnvironmentFailed as failed:
        raise SystemExit(str(failed)) from failed
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        launched = []
        for spec in specs(environment, Path(folder), given):
            server = stack.enter_context(LaunchedServer(spec))
            server.wait_ready(900, console)
            server.watch_idle()
            server.sleep()  # the next one starts undisturbed
            launched.append(server)
        for server in launched:
            server.wake()
        report = asyncio.run(measured(given, launched, console))
    if given.out:
        write_json(document("livery-vllm-engine/1", Origin.here(__version__), ("numpy",), report), given.out)
    missed = any(one["ratio"]["median"] < BAR for one in report.values())
    return 1 if missed else 0


def _url(port: int) -> str:
    return f"http://127.0.0.1:{port}"


if __name__ == "__main__":
    os.environ.pop("LD_PRELOAD", None)
    sys.exit(main())
