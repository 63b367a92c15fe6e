"""Ways are made by their commands, each wholly or not at all, and what was made is kept with how long it took.

    folders = Folders(Path("scratch"))
    facts = make(way, folders, console)      # minutes, peak memory, bytes, passes over the data, when, which commit

A way is made in a folder of its own, which takes the place of what an earlier run made once all its commands are done.
Its commands read a fresh copy of the data, as who types them the first time does.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from openai import OpenAI
from rich.console import Console

from livery_loadtest.origin import own_commit
from server.running import RunningServer, livery_serve
from ways.company import make_data
from ways.entries import BASE, WAYS, Way, by_key
from ways.environment import ROOT, paths

MADE_NAME = "made.json"
_LAST_LINES = 6
Json = dict[str, Any]


class WayFailed(Exception):
    """A command of a way failed; `words` are its last lines, without this machine's folders. No status: a server."""

    def __init__(self, command: str, status: int | None, words: str) -> None:
        super().__init__(f"`{command}` " + (f"ended with status {status}" if status is not None else "didn't serve"))
        self.command, self.status, self.words = command, status, words

    def told(self) -> Json:
        return {"command": self.command, "status": self.status, "words": self.words}


@dataclass(frozen=True, slots=True)
class Folders:
    """Where a run keeps things: what a user's commands read (`data`), what was made (`made`) and is being made (`new`),
    and what the commands that make it read (`desk`)."""

    root: Path

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def made(self) -> Path:
        return self.root / "made"

    @property
    def new(self) -> Path:
        return self.root / "new"

    @property
    def desk(self) -> Path:
        return self.root / "desk"

    def write_data(self) -> None:
        _write_data(self.data)

    def set_desk(self, way: Way) -> None:
        """The data anew, with what the way goes on with beside it, as its own commands leave it there."""
        shutil.rmtree(self.desk, ignore_errors=True)
        _write_data(self.desk)
        if way.follows:
            shutil.copytree(self.made / way.follows, self.desk / way.follows)  # nothing goes on with a link

    def known(self, way: Way) -> Json | None:
        """The facts of a way that is made, by the commands and files that it has today; else None."""
        if not way.commands:
            of = way.adapter or way.serves
            return _given(way, self) if of is None or self.known(by_key()[of]) else None
        facts: Json | None = self._all().get(way.key)
        there = self.made / (way.rewards or way.adapter or way.serves or "")
        whole = facts and facts.get("recipe") == way.recipe and "peak_bytes" in facts  # earlier runs kept less
        return facts if whole and there.exists() else None

    def note(self, way: Way, facts: Json) -> None:
        """What was made takes its place."""
        self.made.mkdir(parents=True, exist_ok=True)
        for path in self.new.iterdir():
            place = self.made / path.name
            shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
            path.replace(place)
        (self.made / MADE_NAME).write_text(json.dumps({**self._all(), way.key: facts}, indent=2) + "\n")

    def _all(self) -> Json:
        file = self.made / MADE_NAME
        found: Json = json.loads(file.read_text()) if file.is_file() else {}
        return found


def _write_data(folder: Path) -> None:
    make_data(folder)
    for way in WAYS:
        for name, content in way.files.items():
            (folder / name).write_text(content, encoding="utf-8")


@cache
def _commit() -> str | None:
    return own_commit()  # once: a clone may move on while this runs


def stamp() -> Json:
    """Now, and the commit that this run began at."""
    return {"date": datetime.now().astimezone().isoformat(timespec="seconds"), "commit": _commit()}


def lacks(way: Way) -> str:
    """What a way needs and isn't installed, with the remedy; empty where all is there."""
    missing = [name for name in way.needs if find_spec(name) is None]
    return f"it needs {', '.join(missing)}: pip install -e '.[train,quantization]'" if missing else ""


def make(way: Way, folders: Folders, console: Console) -> Json:
    """Run a way's commands, and put what they made in its place. Raises WayFailed."""
    with _url(way, folders) as (url, client):
        facts = _run(way, folders, url, console)
        if client:
            told: Json = client.get(f"{url}/v1/adapters/{way.key}", cast_to=dict[str, Any])
            facts["bytes"] = told["bytes"]
    if way.adapter:
        facts["bytes"] = sum(file.stat().st_size for file in (folders.new / way.adapter).glob("adapter_*"))
    if way.serves:
        facts["bytes"] = sum(file.stat().st_size for file in (folders.new / way.serves).glob("*.safetensors"))
    facts |= _training(way, folders.new) | _extraction(way, folders.new)
    folders.note(way, facts)
    return facts


def _run(way: Way, folders: Folders, url: str, console: Console) -> Json:
    """The way's commands, timed; `peak_bytes` is the memory of the one that had most. Raises WayFailed."""
    facts: Json = {"minutes": 0.0, "peak_bytes": 0, "bytes": 0, "made": stamp(), "recipe": way.recipe}
    shutil.rmtree(folders.new, ignore_errors=True)
    folders.new.mkdir(parents=True)
    folders.set_desk(way)
    places = {"data": folders.desk, "made": folders.new, "base": BASE, "url": url, "clone": ROOT}
    try:
        for command in way.commands:
            filled = command.format_map(places)
            console.print(f"{way.key}: {filled}", soft_wrap=True)
            began = time.perf_counter()
            facts["peak_bytes"] = max(facts["peak_bytes"], run_command(filled, folders))
            facts["minutes"] += (time.perf_counter() - began) / 60
    finally:
        shutil.rmtree(folders.desk)
    return facts


def run_command(command: str, folders: Folders, quiet: bool = False) -> int:
    """Bytes of memory that the largest of its processes held at once, or this one as it began it, if these are more.

    Its lines are shown as they come, unless `quiet`. Raises WayFailed.
    """
    last: deque[str] = deque(maxlen=_LAST_LINES)
    environ = {**os.environ, **paths()}
    with subprocess.Popen(
        _argv(command),
        cwd=ROOT,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if not quiet:
                print(line, end="", flush=True)
            if line.strip():
                last.append(line.strip())
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise WayFailed(_bare(command, folders), process.returncode, _bare("\n".join(last), folders))
    return used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _argv(command: str) -> list[str]:
    program, *arguments = shlex.split(command)
    return [sys.executable, *(["-m", "livery"] if program == "livery" else []), *arguments]


def _bare(text: str, folders: Folders) -> str:
    """Without where things lie on this machine."""
    for place, word in {
        f"{folders.data}/": "",
        f"{folders.desk}/": "",
        f"{folders.new}/": "",
        f"{folders.made}/": "",
        str(ROOT): "$CLONE",
    }.items():
        text = text.replace(place, word)
    return text.replace(str(Path.home()), "~")


def _given(way: Way, folders: Folders) -> Json:
    """The facts of a way that no command makes."""
    if of := way.adapter or way.serves:
        return {"minutes": 0.0, **{name: folders._all()[of][name] for name in ("bytes", "made")}}
    return {"minutes": 0.0, "bytes": (folders.data / way.profile).stat().st_size if way.profile else 0, "made": None}


def _training(way: Way, made: Path) -> Json:
    """What a training wrote down of itself: passes over its data, and how it ranks pairs, before and after."""
    found = made / way.key / "training.json"
    if not found.is_file():
        return {}
    told = json.loads(found.read_text())
    if "settings" not in told:
        return {"passes": told["passes"]}
    run = told["settings"]["run"]
    facts: Json = {"passes": passes(told["steps"], told["data"]["examples"], run["batch_size"], run["accumulate"])}
    evaluation = told["evaluation"]
    if evaluation and "preferred" in evaluation["after"]:
        facts["preference"] = {"pairs": evaluation["examples"]} | {
            when: {name: evaluation[when][name] for name in ("preferred", "margin", "loss")}
            for when in ("before", "after")
        }
    return facts


def _extraction(way: Way, made: Path) -> Json:
    """What an extraction wrote down of itself: the share of ‖ΔW‖ that is left out, and on a text the perplexity of all
    three and the KL, in nats a token, from the full model's predictions."""
    found = made / way.key / "extraction.json"
    if not found.is_file():
        return {}
    told = json.loads(found.read_text())
    text = told["text"]
    compared = {name: text[name]["kl"] for name in ("base", "adapter")}
    perplexity = {name: text[name]["perplexity"] for name in ("base", "tuned", "adapter")}
    return {"extraction": {"left_out": told["error"], "kl": compared, "perplexity": perplexity}}


def passes(steps: int, examples: int, batch: int, accumulate: int) -> float:
    """How often that many steps read every example. A pass ends in a batch that may be short, and counts as one."""
    per_pass = math.ceil(math.ceil(examples / batch) / accumulate)
    whole, more = divmod(steps, per_pass)
    return whole + more * batch * accumulate / examples


# -- servers -------------------------------------------------------------------------------------------------


@contextmanager
def _url(way: Way, folders: Folders) -> Iterator[tuple[str, OpenAI | None]]:
    """A server where the way's commands ask one."""
    if not way.rewards:
        yield "", None
        return
    with served(way.server, folders) as (client, server):
        yield server.url, client


@contextmanager
def served(wanted: Sequence[str], folders: Folders) -> Iterator[tuple[OpenAI, RunningServer]]:
    """A server of a model, and with flags, as in Way.server; its data folder is empty. With a client of it."""
    model, *flags = wanted
    folders.root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="served-", dir=folders.root) as name:
        scratch = Path(name)
        (scratch / "adapters").mkdir()
        place = model if model == BASE else folders.made / model
        with livery_serve(place, scratch / "adapters", scratch, *flags, environ=paths()) as server:
            yield OpenAI(base_url=f"{server.url}/v1", api_key="none"), server


def add(way: Way, server: RunningServer, folders: Folders) -> None:
    """Have a server take it in. Raises WayFailed."""
    if command := way.add_command():
        places: Mapping[str, object] = {"data": folders.data, "made": folders.made}
        run_command(f"{command.format_map(places)} --url {server.url}", folders, quiet=True)
