"""What adapters cost a server, as ratios measured within one run:

    python tests/benchmarks/adapters.py --out adapters.json

- taking in: `check` and `add` of a 78 MB adapter against reading and hashing its files, alternating, and what each
  stage of it takes by itself. OPENSSL_ia32cap=:~0x20000000 in the environment takes SHA instructions from it;
- many: 10,000 registered adapters: time to open, list and resolve, queries per page, memory each;
- adding while serving: time between tokens of running streams with and without adapters being added, alternating;
- coming and going: memory of the server and its engine before and after 1,000 rounds of load and unload.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from sqlalchemy import Engine, event

sys.path.insert(0, str(Path(__file__).parent.parent))

from api.peft_files import make_adapter
from cli.processes import SERVE_FAKE
from livery import __version__
from livery.engine.base import NOBODY, EngineConfig
from livery.engine.client import EngineClient
from livery.engine.kernels import load_sums
from livery.engine.plan import SampleSpec, SequenceSlice, StepPlan
from livery.engine.runner import ModelRunner
from livery.models import resolve_model
from livery.proving import EngineProver
from livery_adapters.base_model import BaseModel
from livery_adapters.examine import check_headers, check_numbers
from livery_adapters.fetching import copy_directory
from livery_adapters.formats import convert
from livery_adapters.library import AdapterLibrary, Intake, from_directory
from livery_adapters.measure import BaseNorms, measure
from livery_adapters.refusal import DEFAULT_LIMITS
from livery_adapters.registry import Registry, VersionFacts
from livery_adapters.store import BlobStore
from livery_adapters.tensor_file import CHUNK, FILE_NAMES
from livery_loadtest.origin import Origin, as_json, document, write_json
from livery_loadtest.random_adapters import write_random_adapters
from server.running import livery_serve

MODEL = "smollm2-135m-instruct"
LARGE_RANK = 128  # of all linear modules of that model: 78 MB
say = Console(stderr=True).print


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def read_and_hash(folder: Path) -> None:
    for name in FILE_NAMES:
        digest = hashlib.sha256()
        with (folder / name).open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
        digest.hexdigest()


async def taking_in(folder: Path, rounds: int) -> dict[str, Any]:
    """A different adapter each round; reading and hashing before and after each `check` and `add`."""
    base = resolve_model(MODEL).path
    made = write_random_adapters(base, folder / "large", 2 * rounds + 1, rank=LARGE_RANK)
    engine = EngineClient(EngineConfig(str(base)), lambda _: None)
    info = await engine.start()
    left: list[str] = []
    prover = EngineProver(engine, info, lambda _: None, left.append, lambda _: NOBODY)
    registry = Registry.open(folder / "large.db")
    store = BlobStore(folder / "blobs")
    library = AdapterLibrary(registry, store, BaseModel(MODEL, info.base_digest, info.shapes), DEFAULT_LIMITS, prover)
    ratios: dict[str, list[float]] = {"check": [], "add": []}
    *paths, first = made.values()
    await library.check(from_directory(first, [folder]))  # the base's norms are measured once
    try:
        for number in range(rounds):
            for verb, path in (("check", paths[2 * number]), ("add", paths[2 * number + 1])):
                before = seconds(lambda path=path: read_and_hash(path))  # type: ignore[misc]
                start = time.perf_counter()
                if verb == "check":
                    await library.check(from_directory(path, [folder]))
                else:
                    await library.add(f"large-{number}", from_directory(path, [folder]), Intake("api"))
                spent = time.perf_counter() - start
                while left:  # as a server does once nobody uses it, whose memory the next one then takes
                    await engine.unload_adapter(left.pop())
                after = seconds(lambda path=path: read_and_hash(path))  # type: ignore[misc]
                ratios[verb].append(2 * spent / (before + after))
                say(f"{verb}: {spent:.2f} s, reading and hashing {before:.2f} and {after:.2f} s")
    finally:
        await engine.stop()
        registry.close()
    size = sum((paths[0] / name).stat().st_size for name in FILE_NAMES)
    return {
        "bytes": size,
        "hash_bytes_per_s": size / statistics.median(seconds(lambda: read_and_hash(paths[0])) for _ in range(5)),
        **{f"{verb}_over_hash": spread(found) for verb, found in ratios.items()},
        "stages_ms": stages(folder, base, paths),
    }


def stages(folder: Path, base: Path, paths: list[Path]) -> dict[str, float]:
    """Medians of what each stage takes when nothing runs beside it; in a server several of them overlap."""
    runner = ModelRunner(EngineConfig(str(base), base_digest="0" * 64), lambda _: None)
    norms = BaseNorms(runner.weights)
    store = BlobStore(folder / "stages")
    found: dict[str, list[float]] = {}
    for path in (paths[0], *paths):  # in the first round the base's norms are computed
        staged(path, store, runner, norms, found)
    return {stage: round(statistics.median(times[1:]), 1) for stage, times in found.items()}


def staged(path: Path, store: BlobStore, runner: ModelRunner, norms: BaseNorms, found: dict[str, list[float]]) -> None:
    shapes, sums = BaseModel(MODEL, "0" * 64, runner.info.shapes), load_sums()
    greedy = SampleSpec(temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, draw=0.0)

    def timed(stage: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        found.setdefault(stage, []).append(1e3 * (time.perf_counter() - start))
        return result

    with store.incoming() as incoming:
        timed("read and hash", lambda: read_and_hash(path))
        timed("copy and hash", lambda: (copy_directory(path, incoming, [path.parent]), incoming.seal()))
        timed("fsync", incoming.sync)
        files = timed("headers", lambda: check_headers(incoming.path, shapes, DEFAULT_LIMITS, incoming.digest))
        timed("numbers, without an engine", lambda: check_numbers(incoming.path, files.manifest))
        adapter = timed("convert, numbers", lambda: convert(incoming.path, files.manifest, runner.weights, 0, sums))
        effect = timed("measure", lambda: measure(adapter, runner.weights, norms, sums))
        packed = timed("pack", lambda: runner.pack(adapter, effect))
        runner.install(packed.packed)
        step = StepPlan((SequenceSlice("canary", (1, 2, 3, 4, 5), 0, (0,), packed.digest, (greedy,)),))
        timed("canary", lambda: runner.execute(step))
        runner.evict(packed.digest)


def many(folder: Path, count: int) -> dict[str, Any]:
    """`count` adapters in the registry, all of the shape of a real one; a server over the fake engine reads them."""
    root = folder / "few"
    path = make_adapter(root / ".pool" / "one", seed=1)
    data = folder / "many"
    with fake_server(root, data) as (url, pid):
        bare = memory(pid)
    with fake_server(root, data) as (url, pid):
        httpx.put(f"{url}/v1/adapters/model", json={"source": ".pool/one"}, timeout=60).raise_for_status()
    registry = Registry.open(data / "livery.db")
    record = registry.get("model")
    assert record.active is not None
    fill(registry, record.active.facts, count)
    statements: list[str] = []
    event.listen(Engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    page = seconds(lambda: registry.page(f"adapter-{count // 2:05d}", 100))
    selects = [text for text in statements if text.lstrip().upper().startswith("SELECT")]
    registry.close()
    opened = seconds(lambda: Registry.open(data / "livery.db").close())
    with fake_server(root, data) as (url, pid):
        started = memory(pid)
        listing = seconds(lambda: list_all(url))
        listed = memory(pid)
    del path
    return {
        "registered": count,
        "queries_per_page": len(selects),
        "page_of_100_ms": 1e3 * page,
        "open_registry_ms": 1e3 * opened,
        "list_all_s": listing,
        "bytes_each_after_start": (started - bare) / count,
        "bytes_each_after_listing_all": (listed - bare) / count,
    }


def fill(registry: Registry, facts: VersionFacts, count: int) -> None:
    for number in range(count):
        digest = hashlib.sha256(str(number).encode()).hexdigest()
        registry.put(f"adapter-{number:05d}", replace(facts, digest=digest, weights=digest), source="api", origin="x")


def list_all(url: str) -> None:
    after: str | None = ""
    while after is not None:
        after = httpx.get(f"{url}/v1/adapters", params={"after": after, "limit": 1000}, timeout=60).json()["next_after"]


@contextmanager
def fake_server(root: Path, data: Path) -> Iterator[tuple[str, int]]:
    from cli.processes import serving, url_in

    assert SERVE_FAKE
    with serving(root, data) as (process, printed):
        yield url_in(printed), process.pid


def memory(pid: int) -> int:
    """Resident bytes of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def while_serving(folder: Path, rounds: int) -> dict[str, Any]:
    """Streams on four adapters of the demo base; every other round new ones are added as fast as they are taken."""
    base = resolve_model(MODEL).path
    root = folder / "served"
    made = write_random_adapters(base, root, 4, rank=16)
    more = list(write_random_adapters(base, root / ".more", 6 * rounds, rank=16, seed=1))
    ratios: list[float] = []
    added = 0
    with livery_serve(MODEL, root, folder) as server, httpx.Client(base_url=server.url, timeout=120) as client:
        stream_all(server.url, list(made))  # warm
        for number in range(rounds):
            quiet = stream_all(server.url, list(made))
            stop = threading.Event()

            def add(stop: threading.Event = stop) -> None:
                nonlocal added
                while not stop.is_set():
                    name = more[added % len(more)]
                    client.put(f"/v1/adapters/new-{added}", json={"source": f".more/{name}"}).raise_for_status()
                    added += 1

            adding = threading.Thread(target=add)
            adding.start()
            busy = stream_all(server.url, list(made))
            stop.set()
            adding.join()
            ratios.append(busy / quiet)
            say(f"round {number}: p99 {quiet * 1e3:.0f} ms alone, {busy * 1e3:.0f} ms while adding")
    return {"adapters_added": added, "p99_between_tokens_while_adding_over_alone": spread(ratios)}


def stream_all(url: str, models: list[str]) -> float:
    """Eight streams of 64 tokens; the 99th percentile of the time between tokens, in seconds."""
    gaps: list[float] = []

    def stream(model: str) -> None:
        body = {"model": model, "prompt": "Once upon a time", "max_tokens": 64, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=120) as answer:
            last = None
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    now = time.perf_counter()
                    if last is not None:
                        gaps.append(now - last)
                    last = now

    threads = [threading.Thread(target=stream, args=(models[number % len(models)],)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statistics.quantiles(gaps, n=100)[98]


def coming_and_going(folder: Path, rounds: int) -> dict[str, Any]:
    """One adapter after the other is added, answers once, and is deleted; after a first hundred rounds to settle."""
    base = resolve_model(MODEL).path
    root = folder / "passing"
    root.mkdir()
    names = list(write_random_adapters(base, root / ".pool", 4, rank=16))
    with livery_serve(MODEL, root, folder) as server, httpx.Client(base_url=server.url, timeout=120) as client:
        pid = server.pid
        engine = children(pid)[0]

        def passing(number: int) -> None:
            client.put("/v1/adapters/guest", json={"source": f".pool/{names[number % 4]}"}).raise_for_status()
            body = {"model": "guest", "prompt": "Hi", "max_tokens": 1}
            client.post("/v1/completions", json=body).raise_for_status()
            client.delete("/v1/adapters/guest").raise_for_status()

        for number in range(100):
            passing(number)
        before = {"server": memory(pid), "engine": memory(engine)}
        for number in range(rounds):
            passing(number)
            if number % 100 == 99:
                say(f"{number + 1} rounds: server {memory(pid) >> 20} MiB, engine {memory(engine) >> 20} MiB")
        after = {"server": memory(pid), "engine": memory(engine)}
    total = sum(after.values()) / sum(before.values())
    return {"rounds": rounds, "bytes_before": before, "bytes_after": after, "memory_after_over_before": total}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--guests", type=int, default=1000)
    parser.add_argument("--only", choices=["taking-in", "many", "while-serving", "coming-and-going"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "taking-in": lambda: asyncio.run(taking_in(folder, options.rounds)),
            "many": lambda: many(folder, 10_000),
            "while-serving": lambda: while_serving(folder, options.rounds),
            "coming-and-going": lambda: coming_and_going(folder, options.guests),
        }
        origin, result = Origin.here(__version__), dict[str, Any]()
        for part, run in parts.items():
            if options.only in (None, part):
                say(f"== {part}")
                result[part] = run()
    report = document("livery-bench-adapters/1", origin, ("torch", "safetensors", "sqlalchemy"), result)
    print(as_json(report).decode(), end="")
    if options.out:
        write_json(report, options.out)


if __name__ == "__main__":
    main()
