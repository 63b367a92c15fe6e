"""Every way of adapting a model to one small task, from its command to what it is worth served: make ways.

    python tests/ways/run.py [WAY]... [--out ways.json] [--folder DIR] [--only-make | --only-measure]

The task is questions about a ferry company that no base has read of (company.py). Each way is an entry of entries.py:
the commands of a user make it, a real server is given it, and the same questions are asked of all (measure.py). What
was made is kept in the folder, with how long it took, so that a second run goes on where the first one ended; the ways
named are made anew and asked again, and what requests cost is measured anew for all. What a way needs and this machine
lacks is said, and the way is passed over. `page.py` makes the pages of what is written here.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from openai import OpenAI
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent.parent))

from conformance.environments import PartMissing
from livery.models import cache_dir
from livery_loadtest.peers import EnvironmentFailed
from server.running import RunningServer, livery_serve
from ways.company import ASKED, PASSAGES, chat, held_out_lines, make_data
from ways.entries import BASE, WAYS, Way, by_key, raft_messages, shown
from ways.environment import ROOT, environment, paths
from ways.measure import Asking, measure_cost, measure_quality

SCHEMA = "livery-ways/1"
MADE_NAME = "made.json"
RAG = PASSAGES.with_name("ask.py")
RAFT_DOCUMENTS = 3
Json = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ways", nargs="*", help=f"make these anew: {', '.join(by_key())}")
    parser.add_argument("--out", type=Path, default=Path("ways.json"), help="where the JSON goes")
    parser.add_argument("--folder", type=Path, default=cache_dir() / "ways", help="where what is made is kept")
    parser.add_argument("--only-make", action="store_true", help="measure nothing")
    parser.add_argument("--only-measure", action="store_true", help="make nothing that isn't there")
    given = parser.parse_args()
    if unknown := set(given.ways) - set(by_key()):
        parser.error(f"there is no way {min(unknown)!r}; there are {', '.join(by_key())}")
    console = Console()
    if find_spec("trl") is None or find_spec("bitsandbytes") is None:
        try:
            return _in_environment(environment(console))
        except (PartMissing, EnvironmentFailed) as missing:
            console.print(f"what trains isn't to be had: {missing}", soft_wrap=True)
    data, made = given.folder / "data", given.folder / "made"
    _write_data(data)
    facts: Json = {way.key: _known(made, way) for way in WAYS}
    for way in WAYS:  # those without commands are made at once
        wanted = way.key in given.ways if given.ways else facts[way.key] is None
        if (wanted and not given.only_measure) or (
            facts[way.key] is None and not way.commands and _is_there(way, made)
        ):
            facts[way.key] = make(way, data, made, console)
    if given.only_make:
        return 0
    there = [way for way in WAYS if facts[way.key] is not None and _is_there(way, made)]
    before = _before(given.out) if given.ways else {}
    known = {row["key"]: row for row in before.get("ways", ())}
    asked = {way.key for way in there if way.key in given.ways or way.key not in known}
    origin = _origin()
    for way, row in measure(there, asked, data, made, given.folder, console):
        known[way.key] = {**known.get(way.key, {}), **_said(way), **facts[way.key], **row}
        found = {
            "schema": SCHEMA,
            "origin": origin,
            "questions": len(ASKED),
            "ways": [known[way.key] for way in WAYS if way.key in known],
            "passed_over": {way.key: _lacks(way) or "not made" for way in WAYS if way.key not in known},
        }
        given.out.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    show(json.loads(given.out.read_text()), console)
    return 0


def _before(file: Path) -> Json:
    """What an earlier run wrote of the same questions; of the ways that are named, the rows are made anew."""
    found: Json = json.loads(file.read_text()) if file.is_file() else {}
    return found if found.get("schema") == SCHEMA and found.get("questions") == len(ASKED) else {}


def _in_environment(python: str) -> int:
    """The same once more, by an interpreter that has what trains."""
    command = [python, str(Path(__file__)), *sys.argv[1:]]
    return subprocess.run(command, env={**os.environ, **paths()}, check=False).returncode


# -- making --------------------------------------------------------------------------------------------------


def make(way: Way, data: Path, made: Path, console: Console) -> Json | None:
    """Run a way's commands; None where something that it needs isn't here, or a command fails."""
    if why := _lacks(way):
        console.print(f"{way.key}: passed over, {why}", soft_wrap=True)
        return None
    facts: Json | None
    if way.rewards:
        with _served((), made.parent) as (client, server):
            facts = _run(way, {"data": data, "made": made, "base": BASE, "url": server.url}, console)
            if facts is not None:
                told: Json = client.get(f"{server.url}/v1/adapters/{way.key}", cast_to=dict[str, Any])
                facts |= {"bytes": told["bytes"]}
    else:
        facts = _run(way, {"data": data, "made": made, "base": BASE}, console)
    if facts is None:
        return None
    if way.adapter:
        facts["bytes"] = sum(file.stat().st_size for file in (made / way.adapter).glob("adapter_*"))
    elif way.profile:
        facts["bytes"] = (data / way.profile).stat().st_size
    known = _all_known(made)
    (made / MADE_NAME).write_text(json.dumps({**known, way.key: facts}, indent=2) + "\n")
    return facts


def _run(way: Way, places: Mapping[str, object], console: Console) -> Json | None:
    """The way's commands, timed; None where one fails."""
    made = Path(str(places["made"]))
    made.mkdir(parents=True, exist_ok=True)
    facts: Json = {"minutes": 0.0, "bytes": 0, "made": datetime.now(UTC).isoformat(timespec="seconds")}
    if way.adapter == way.key:
        shutil.rmtree(made / way.key, ignore_errors=True)
    for command in way.commands:
        filled = command.format_map(places)
        console.print(f"{way.key}: {filled}", soft_wrap=True)
        began = time.perf_counter()
        done = subprocess.run(_argv(filled), cwd=ROOT, env={**os.environ, **paths()}, check=False)
        if done.returncode:
            console.print(f"{way.key}: passed over, its command ended with status {done.returncode}", soft_wrap=True)
            return None
        facts["minutes"] += (time.perf_counter() - began) / 60
    return facts


def _argv(command: str) -> list[str]:
    program, *arguments = shlex.split(command)
    return [sys.executable, *(["-m", "livery"] if program == "livery" else []), *arguments]


def _write_data(data: Path) -> None:
    make_data(data)
    for way in WAYS:
        for name, content in way.files.items():
            (data / name).write_text(content, encoding="utf-8")


def _lacks(way: Way) -> str:
    missing = [name for name in way.needs if find_spec(name) is None]
    return f"it needs {', '.join(missing)}: pip install 'livery[train,quantization]'" if missing else ""


def _all_known(made: Path) -> Json:
    file = made / MADE_NAME
    found: Json = json.loads(file.read_text()) if file.is_file() else {}
    return found


def _known(made: Path, way: Way) -> Json | None:
    return _all_known(made).get(way.key) if _is_there(way, made) else None


def _is_there(way: Way, made: Path) -> bool:
    if way.rewards:
        return (made / way.rewards).is_file()
    return way.adapter is None or (made / way.adapter).is_dir()


# -- serving and measuring -----------------------------------------------------------------------------------


def measure(
    ways: Sequence[Way], asked: Collection[str], data: Path, made: Path, folder: Path, console: Console
) -> Iterator[tuple[Way, Json]]:
    """What ways cost, those of one server side by side, and what those that are asked are worth."""
    yield from ((way, _rewards(made / way.rewards)) for way in ways if way.rewards)
    ways = [way for way in ways if not way.rewards]
    for flags in dict.fromkeys(way.flags for way in ways):
        together = [way for way in ways if way.flags == flags]
        with _served(flags, folder) as (client, server):
            for way in together:
                if command := way.add_command():
                    filled = command.format(data=data, made=made)
                    _quietly([*_argv(filled), "--url", server.url])
            console.print("what requests cost")
            costs = measure_cost(client, server.pid, {way.key: (way.model, _asking(way)) for way in together})
            for way in together:
                row: Json = {"cost": asdict(costs[way.key])}
                if way.key in asked:
                    console.print(f"{way.key}: asking")
                    row |= asdict(measure_quality(client, way.model, _asking(way), _lines(way)))
                yield way, row


def _rewards(file: Path) -> Json:
    """What reinforcement learning reached on prompts that it didn't train on."""
    found = json.loads(file.read_text())
    return {"reward": [found["held_out_before"], found["held_out_after"]], "iterations": len(found["iterations"])}


def _lines(way: Way) -> list[str]:
    """Text to be read by models that may know it: words put before a question change nothing there."""
    return held_out_lines().splitlines() if way.adapter or way.key == "base" else []


def _quietly(command: Sequence[str]) -> None:
    """Run a command whose output matters only where it fails, which ends everything."""
    environ = {**os.environ, **paths()}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"`{shlex.join(command)}` ended with status {done.returncode}:\n{done.stdout}{done.stderr}")


@contextmanager
def _served(flags: Sequence[str], folder: Path) -> Iterator[tuple[OpenAI, RunningServer]]:
    """A server with an empty data folder, and a client of it."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="served-", dir=folder) as name:
        scratch = Path(name)
        (scratch / "adapters").mkdir()
        with livery_serve(BASE, scratch / "adapters", scratch, *flags, environ=paths()) as server:
            yield OpenAI(base_url=f"{server.url}/v1", api_key="none"), server


def _asking(way: Way) -> Asking:
    """The messages that a question is asked by."""
    if way.asking == "plain":
        return chat
    if way.asking == "bare":
        return lambda question: [{"role": "user", "content": question}]
    rag = _rag()
    index = rag.Index(rag.read_passages())
    if way.asking == "retrieved":
        return lambda question: rag.messages_for(question, index.best(question))
    return lambda question: raft_messages(question, [one.text for one in index.best(question, RAFT_DOCUMENTS)])


def _rag() -> ModuleType:
    """The example of retrieval."""
    spec = spec_from_file_location("rag_ask", RAG)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


# -- telling -------------------------------------------------------------------------------------------------


def _said(way: Way) -> Json:
    return {"key": way.key, "title": way.title, "command": shown(way), "before": way.before, "flags": list(way.flags)}


def _origin() -> Json:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "command": "make ways",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip() or None,
        "base": BASE,
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
    }


def show(found: Json, console: Console) -> None:
    from ways.page import ROWS, table

    console.print(table(found, ROWS["en"]), markup=False, soft_wrap=True)
    for key, why in found["passed_over"].items():
        console.print(f"passed over: {key}, {why}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
