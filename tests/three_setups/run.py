"""The same script of a user against three set-ups, and PEFT beside them: make three-setups.

    python tests/three_setups/run.py [livery | vllm | ray]...

Livery's own engine, `--engine vllm`, and two replicas on Ray Serve, each with the demo base and two demo adapters, are
started one after the other and asked the same things through the official client (client.py). Greedy tokens are
compared with PEFT's. Printed is a table; the exit status is 1 where anything is wrong. A set-up that can't be had here
is said to be skipped, with the remedy; with CI=true that is wrong as well.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import httpx
import openai
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent.parent))

from engine_vllm.run import ServerEnvironment
from livery.models import DEMO_MODEL, ModelNotFound, resolve_model
from livery_loadtest.peers import EnvironmentFailed
from livery_loadtest.peers.vllm import VllmEnvironment, default_environment
from peft_judge import Judge
from ray_serve.run import OWN
from server.running import livery_serve
from three_setups.client import Script, Served
from three_setups.verdict import ABSENT, GOOD, verdict

TESTS = Path(__file__).parent.parent
ROOT = TESTS.parent
DEMO = ROOT / "adapters" / "demo"
ADAPTERS = ("pirate", "sql")
ALIAS = "assistant"
PATHS = {"PYTHONPATH": os.pathsep.join(str(ROOT / name) for name in OWN)}
SetUp = Callable[[Path, Path, Console], AbstractContextManager[Served]]


class NotHere(Exception):
    """A set-up can't be had on this machine; the message has the remedy."""


@contextmanager
def own_engine(model: Path, folder: Path, _: Console) -> Iterator[Served]:
    with livery_serve(model, copied(folder), folder) as running:
        yield with_alias(Served(running.url, "none", model.name, ADAPTERS, ALIAS))


@contextmanager
def over_vllm(model: Path, folder: Path, console: Console) -> Iterator[Served]:
    environment = ServerEnvironment(VllmEnvironment(default_environment()))
    try:
        environment.ensure(console)
    except EnvironmentFailed as failed:
        raise NotHere(str(failed)) from failed
    flags = ("--engine", "vllm", "--kv-memory", "256MiB", "--max-model-len", "512", "--max-running", "8")
    flags += ("--vllm-arg", "enforce_eager=true")  # or it compiles for a minute, for sixty requests
    python = str(environment.python)
    with livery_serve(model, copied(folder), folder, *flags, environ=PATHS, interpreter=python) as running:
        yield with_alias(Served(running.url, "none", model.name, ADAPTERS, ALIAS))


@contextmanager
def two_replicas(model: Path, folder: Path, _: Console) -> Iterator[Served]:
    log = folder / "ray.log"
    script = str(TESTS / "three_setups" / "on_ray.py")
    command = [sys.executable, str(TESTS / "ray_serve" / "run.py"), script, str(model), str(DEMO), *ADAPTERS]
    with log.open("w") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=out, text=True, env={**os.environ, **PATHS}
        )
    assert process.stdout is not None and process.stdin is not None
    try:
        line = next((line for line in process.stdout if line.startswith("http://")), "")
        if not line:
            said = log.read_text()
            if "nothing was tested" in said:  # by foreign_parts.not_run
                raise NotHere(said[-1000:].strip().rpartition("nothing was tested: ")[2])
            raise AssertionError(said[-1000:])
        url, key = line.split()
        yield with_alias(Served(url, key, model.name, ADAPTERS, ALIAS))
    finally:
        process.stdin.close()
        process.wait(timeout=120)


SET_UPS: Mapping[str, SetUp] = {"livery": own_engine, "vllm": over_vllm, "ray": two_replicas}


def copied(folder: Path) -> Path:
    """The adapters in a folder that a server follows."""
    for name in ADAPTERS:
        shutil.copytree(DEMO / name, folder / "adapters" / name)
    return folder / "adapters"


def with_alias(served: Served) -> Served:
    """Once an alias leads to the first adapter, whichever replica answers: so many times in a row."""
    headers = {"authorization": f"Bearer {served.key}"} if served.key != "none" else {}
    with httpx.Client(base_url=served.url, headers=headers, timeout=60, trust_env=False) as http:
        http.put(f"/v1/aliases/{served.alias}", json={"targets": [{"adapter": served.adapters[0]}]}).raise_for_status()
        end, in_a_row = time.monotonic() + 60, 0
        while in_a_row < 10:
            listed = {model["id"] for model in http.get("/v1/models").json()["data"]}
            in_a_row = in_a_row + 1 if served.alias in listed else 0
            assert time.monotonic() < end, f"the alias {served.alias} doesn't show"
            time.sleep(0.2)
    return served


def asked(set_up: str, model: Path, judge: Judge, console: Console) -> tuple[dict[str, str], Served]:
    """What came of each check, in words. Raises NotHere."""
    with tempfile.TemporaryDirectory() as folder, SET_UPS[set_up](model, Path(folder), console) as served:
        script, found = Script(served, judge), {}
        for name, check in script.checks():
            try:
                check()
                found[name] = GOOD
            except (AssertionError, openai.OpenAIError, KeyError) as error:
                found[name] = " ".join(str(error).split())[:200] or type(error).__name__
        script.close()
        return found, served


def main(wanted: list[str]) -> int:
    console = Console()
    unknown = set(wanted) - set(SET_UPS)
    if unknown:
        console.print(f"there is no set-up {', '.join(sorted(unknown))}; there are {', '.join(SET_UPS)}")
        return 2
    try:
        model = resolve_model(DEMO_MODEL).path
    except ModelNotFound as error:
        console.print(f"[red]the demo base is missing:[/] {error}")
        return 1
    judge = Judge(model, DEMO)
    found: dict[str, dict[str, str]] = {}
    answers: dict[str, dict[str, list[int]]] = {}
    for name in wanted or [*SET_UPS]:
        console.print(f"{name} …")
        try:
            found[name], served = asked(name, model, judge, console)
            answers[name] = served.answers
        except NotHere as missing:
            found[name] = {ABSENT: str(missing)}
        except (AssertionError, subprocess.TimeoutExpired) as failed:
            found[name] = {"starts and ends": str(failed)[-500:]}
    console.print(table(found, answers))
    return verdict(found, console)


def table(found: Mapping[str, Mapping[str, str]], answers: Mapping[str, Mapping[str, list[int]]]) -> Table:
    """A row for each check, a column for each set-up; and how far greedy answers are the same tokens everywhere."""
    shown = Table("", *found)
    for check in dict.fromkeys(check for checks in found.values() for check in checks):
        shown.add_row(check, *(checks.get(check, "–") for checks in found.values()))
    asked_everywhere = set.intersection(*(set(given) for given in answers.values())) if answers else set()
    same = sum(len({tuple(given[one]) for given in answers.values()}) == 1 for one in asked_everywhere)
    shown.caption = (
        f"{same} of {len(asked_everywhere)} greedy answers are the same tokens in all of {', '.join(answers)}"
    )
    return shown


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
