"""Every way of adapting a model to one small task, from its command to what it is worth served: make ways.

    python tests/ways/run.py [WAY]... [--out ways.json] [--folder DIR] [--only-make | --only-measure]

The task is questions about a ferry company that no base has read of (company.py). Each way is an entry of entries.py:
the commands of a user make it (making.py), a real server is given it, and the same questions are asked of all
(measure.py). What was made is kept in the folder, so that a second run goes on where the first one ended; the ways
named are made anew and asked again, and what requests cost is measured anew for all. Each row says when and at which
commit it was made, asked and costed. A way that can't be made or served is told with the command that failed, its
status and last words, the others go on, and the run ends with status 1. `page.py` makes the pages of what is written
here.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from openai import OpenAI
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent.parent))

from conformance.environments import PartMissing
from livery import __version__
from livery.models import cache_dir
from livery_loadtest.origin import Origin, document, write_json
from livery_loadtest.peers import EnvironmentFailed
from server.running import RunningServer
from ways.company import ASKED, PASSAGES, changed_passages, chat, held_out_lines
from ways.entries import BASE, WAYS, Way, by_key, raft_messages, shown
from ways.environment import environment, paths
from ways.making import Folders, WayFailed, add, lacks, make, served, stamp
from ways.measure import Asking, measure_changed, measure_cost, measure_quality

SCHEMA = "livery-ways/3"
RAG = PASSAGES.with_name("ask.py")
RAFT_DOCUMENTS = 3
LIBRARIES = ("torch", "transformers", "peft", "trl", "bitsandbytes")
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
    console, without = Console(), ""
    if find_spec("trl") is None or find_spec("bitsandbytes") is None:
        try:
            return _in_environment(environment(console))
        except (PartMissing, EnvironmentFailed) as missing:
            without = str(missing)
            console.print(f"what trains isn't to be had: {without}", soft_wrap=True)
    named = [*given.ways, *(way.key for way in WAYS if way.follows in given.ways and way.key not in given.ways)]
    folders = Folders(given.folder.expanduser().absolute())
    folders.write_data()
    run = Run(folders, given.out, _before(given.out) if named else {}, without, console)
    run.make(named, only_there=given.only_measure)
    if not given.only_make:
        run.measure(named)
    return run.told()


class Run:
    """One run: what became of each way, written down after each."""

    def __init__(self, folders: Folders, out: Path, before: Json, without: str, console: Console) -> None:
        self.folders, self.out, self.console, self.without = folders, out, console, without
        self.rows: dict[str, Json] = {row["key"]: row for row in before.get("ways", ())}
        self.facts: dict[str, Json | None] = {}
        self.passed: dict[str, str] = {}
        self.failed: dict[str, Json] = {}
        command = shlex.join(["python", "tests/ways/run.py", *sys.argv[1:]])
        self._origin = replace(Origin.here(f"livery {__version__}"), command=command, commit=stamp()["commit"])

    def make(self, named: Collection[str], only_there: bool) -> None:
        """Those named, or those that aren't there."""
        for way in WAYS:
            known = self.facts[way.key] = self.folders.known(way)
            if why := lacks(way):
                self._pass_over(way, why + (f" ({self.without})" if self.without else ""))
                self.failed[way.key] = {"command": None, "status": None, "words": self.passed[way.key]}
            elif way.commands and not only_there and (way.key in named if named else known is None):
                try:
                    self.facts[way.key] = make(way, self.folders, self.console)
                except WayFailed as failed:
                    self._fail(way, failed)
            elif known is None:
                lacking = f"{way.adapter or way.serves}, which it serves, isn't made"
                other = f"ONLY={way.key} makes it" if way.commands else lacking
                self._pass_over(way, f"not made: {other}")

    def measure(self, named: Collection[str]) -> None:
        there = [way for way in WAYS if self.facts[way.key] is not None and not lacks(way)]
        asked = {way.key for way in there if way.key in named or not self._is_asked(way)}
        for way, row in measured(there, asked, self.folders, self._fail, self.console):
            said = {name: getattr(way, name) for name in ("key", "title", "before")}
            said |= {"command": shown(way), "flags": list(way.flags)}
            self.rows[way.key] = {**self.rows.get(way.key, {}), **said, **(self.facts[way.key] or {}), **row}
            self.write()

    def told(self) -> int:
        """Write, show, and give the status."""
        if self.rows or self.failed:
            self.write()
            show(json.loads(self.out.read_text()), self.console)
        return 1 if self.failed else 0

    def write(self) -> None:
        measured = {
            "base": BASE,
            "questions": len(ASKED),
            "ways": [self.rows[way.key] for way in WAYS if way.key in self.rows],
            "passed_over": {key: why for key, why in self.passed.items() if key not in self.rows},
            "failed": self.failed,
        }
        here = [name for name in LIBRARIES if find_spec(name)]
        write_json(document(SCHEMA, self._origin, here, measured), self.out)

    def _is_asked(self, way: Way) -> bool:
        """Whether an earlier run asked what is there now."""
        row = self.rows.get(way.key, {})
        return "asked" in row and row.get("made") == (self.facts[way.key] or {})["made"]

    def _pass_over(self, way: Way, why: str) -> None:
        self.console.print(f"{way.key}: passed over, {why}", soft_wrap=True)
        self.passed[way.key] = why

    def _fail(self, way: Way, failed: WayFailed) -> None:
        self._pass_over(way, f"{failed}: {failed.words}")
        self.failed[way.key] = failed.told()


def _before(file: Path) -> Json:
    """What an earlier run wrote of the same questions; of the ways that are named, the rows are made anew."""
    found: Json = json.loads(file.read_text()) if file.is_file() else {}
    return found if found.get("schema") == SCHEMA and found.get("questions") == len(ASKED) else {}


def _in_environment(python: str) -> int:
    """The same once more, by an interpreter that has what trains."""
    command = [python, str(Path(__file__)), *sys.argv[1:]]
    return subprocess.run(command, env={**os.environ, **paths()}, check=False).returncode


# -- serving and measuring -----------------------------------------------------------------------------------


def measured(
    ways: Sequence[Way],
    asked: Collection[str],
    folders: Folders,
    fail: Callable[[Way, WayFailed], None],
    console: Console,
) -> Iterator[tuple[Way, Json]]:
    """What ways cost, those of one server side by side, and what those that are asked are worth."""
    yield from ((way, _rewards(folders.made / way.rewards)) for way in ways if way.rewards)
    ways = [way for way in ways if not way.rewards]
    for wanted in dict.fromkeys(way.server for way in ways):
        together = [way for way in ways if way.server == wanted]
        try:
            with served(wanted, folders) as (client, server):
                yield from _on_one(client, server, together, asked, folders, fail, console)
        except AssertionError as ended:  # its log's last words
            command = f"livery serve --model {' '.join(wanted)}"
            for way in together:
                fail(way, WayFailed(command, None, "\n".join(str(ended).splitlines()[-6:])))


def _on_one(
    client: OpenAI,
    server: RunningServer,
    ways: Sequence[Way],
    asked: Collection[str],
    folders: Folders,
    fail: Callable[[Way, WayFailed], None],
    console: Console,
) -> Iterator[tuple[Way, Json]]:
    """The ways of one server."""
    together = []
    for way in ways:
        try:
            add(way, server, folders)
            together.append(way)
        except WayFailed as failed:
            fail(way, failed)
    console.print(f"what requests cost, in turn: {', '.join(way.key for way in together)}", soft_wrap=True)
    costs = measure_cost(client, server.pid, {way.key: (way.model, asking_of(way)) for way in together})
    held = _held(client)
    for way in together:
        row: Json = {"held": held, "cost": asdict(costs[way.key]), "costed": stamp()}
        if way.key in asked:
            console.print(f"{way.key}: asking")
            row |= asdict(measure_quality(client, way.model, asking_of(way), _lines(way)))
            if way.asking in ("retrieved", "raft"):
                other = asking_of(way, changed_passages())
                row["changed"] = asdict(measure_changed(client, way.model, other))
            row["asked"] = stamp()
        yield way, row


def _held(client: OpenAI) -> Json:
    """How a server has its base in memory, as it tells."""
    told: Json = client.get("/status", cast_to=dict[str, Any])
    return {"bytes": told["base"]["weight_bytes"], "as": told["engine"]["weights"], "dtype": told["engine"]["dtype"]}


def _rewards(file: Path) -> Json:
    """What reinforcement learning reached on prompts that it didn't train on."""
    found = json.loads(file.read_text())
    origin = found["origin"]
    return {
        "reward": [found["held_out_before"], found["held_out_after"]],
        "iterations": len(found["iterations"]),
        "asked": {"date": origin["date"], "commit": origin["commit"]},
    }


def _lines(way: Way) -> list[str]:
    """Text to be read by models that may know it: words put before a question change nothing there."""
    return held_out_lines().splitlines() if way.asking == "plain" or way.adapter else []


def asking_of(way: Way, texts: Mapping[str, str] | None = None) -> Asking:
    """The messages that a question is asked by; `texts` by title are passages in place of the papers'."""
    if way.asking == "plain":
        return chat
    if way.asking == "bare":
        return lambda question: [{"role": "user", "content": question}]
    rag = _rag()
    passages = rag.read_passages()
    index = rag.Index([replace(one, text=texts[one.title]) for one in passages] if texts else passages)
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


def show(found: Json, console: Console) -> None:
    from ways.page import ROWS, table

    console.print(table(found, ROWS["en"]), markup=False, soft_wrap=True)
    for key, why in found["passed_over"].items():
        console.print(f"passed over: {key}, {why}", soft_wrap=True, markup=False)
    for key, failed in found["failed"].items():
        console.print(f"failed: {key}, {failed['command']}\n{failed['words']}", soft_wrap=True, markup=False)


if __name__ == "__main__":
    sys.exit(main())
