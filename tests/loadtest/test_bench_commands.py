"""The commands as a user calls them: a process each, real servers, files and exit statuses."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from starlette.requests import Request
from starlette.responses import Response

from livery_loadtest.commands.capacity import without_a_rate
from livery_loadtest.commands.ending import Exit, status
from livery_loadtest.commands.running import Task, find, parse_targets, run_task
from livery_loadtest.machine import describe_machine
from livery_loadtest.report.result import Result, read_result
from livery_loadtest.session import Manner
from livery_loadtest.spec import read_workload
from loadtest.known_server import FAILING, MISNAMED, KnownServer, serving

pytestmark = pytest.mark.bench

BENCH = [sys.executable, "-m", "livery_loadtest"]
SHORT = ("--trial-s", 0.001)  # as many requests as the workload has
MEASURED = {Exit.FINE, Exit.INVALID}  # on a busy machine the client itself may be late, which isn't what this is about


def workload(folder: Path, **fields: Any) -> Path:
    """A workload's file: eight requests from two streams, unless told otherwise."""
    asked = {"name": "some", "arrivals": {"kind": "closed", "streams": 2}, "requests": 8, "warm_up": 2}
    asked |= {"prompt": {"kind": "fixed", "tokens": 5}, "output": {"kind": "fixed", "tokens": 4}, **fields}
    file = folder / f"{asked['name']}.yaml"
    file.write_text(yaml.safe_dump(asked))
    return file


def bench(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*BENCH, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False)


def test_two_servers_are_measured_in_turn_and_compared(pair: tuple[KnownServer, KnownServer], tmp_path: Path) -> None:
    left, right = pair
    targets = ["--target", f"left={left.url}", "--target", f"right={right.url}/v1"]
    done = bench("run", workload(tmp_path), *targets, "--repeats", 2, "--out", tmp_path / "out", "--verify", 4)
    assert done.returncode in MEASURED, done.stderr
    result = read_result(tmp_path / "out" / "some.json")
    assert [(one.target, one.repeat) for one in result.repeats] == [
        ("left", 0),
        ("right", 0),
        ("left", 1),
        ("right", 1),
    ]
    assert [(one.completed, one.failed) for one in result.summary] == [(16, 0), (16, 0)]
    assert {server.version for server in result.targets} == {"left-1.0", "right-1.0"}
    asked = [[request["model"] for request in server.seen] for server in pair]
    assert asked[0] == asked[1], "both are asked for the same adapters in the same order"
    assert len(left.seen) == 2 * (2 + 8) + 4, "warm-up, requests, and four answers to be compared"
    assert [
        one["finding"]
        for one in json.loads((tmp_path / "out" / "some.json").read_bytes())["verified"]["left"]["compared"]
    ] == ["same"] * 4
    page = (tmp_path / "out" / "some.html").read_text()
    assert "left" in page
    assert "right" in page

    file = tmp_path / "out" / "some.json"
    compared = bench("compare", file, file, "--target-a", "left", "--target-b", "right", "--json", tmp_path / "c.json")
    assert compared.returncode == 0, compared.stderr
    assert json.loads((tmp_path / "c.json").read_bytes())["b"] == "right"
    nowhere = bench("compare", file, file, "--target-a", "left", "--target-b", "right", "--html", file / "c.html")
    assert nowhere.returncode == Exit.FAILED
    assert nowhere.stderr.startswith(f"error: --html {file / 'c.html'} can't be written")


def test_a_suite_is_no_file_and_a_file_no_suite(tmp_path: Path) -> None:
    """Each command names the other; failures look as those of all of livery's commands."""
    run = bench("run", "smoke", "--out", tmp_path)
    assert run.returncode == Exit.FAILED
    assert run.stderr.startswith("error: smoke: No such file")
    assert "`livery bench suite NAME` runs a suite" in run.stderr
    suite = bench("suite", workload(tmp_path), "--out", tmp_path)
    assert suite.returncode == Exit.FAILED
    assert suite.stderr.startswith("error: no suite is called ")
    assert "`livery bench run FILE` runs a workload" in suite.stderr


def test_requests_that_fail_make_the_status_1_unless_they_may(faulty: KnownServer, tmp_path: Path) -> None:
    run = ["run", workload(tmp_path), "--target", f"f={faulty.url}", "--adapters", FAILING, "--repeats", 1]
    failed = bench(*run, "--out", tmp_path / "out", "--processes", 2)
    assert failed.returncode == Exit.FAILED
    assert [one.health.processes for one in read_result(tmp_path / "out" / "some.json").repeats] == [2]
    assert "the engine is gone" in failed.stdout
    assert bench(*run, "--out", tmp_path / "out", "--allow-errors").returncode in MEASURED


def test_another_models_name_is_a_wrong_answer_unless_it_may_be(faulty: KnownServer, tmp_path: Path) -> None:
    run = ["run", workload(tmp_path), "--target", f"f={faulty.url}", "--adapters", MISNAMED, "--repeats", 1]
    wrong = bench(*run, "--out", tmp_path / "out")
    assert wrong.returncode == Exit.FAILED
    assert "wrong model" in wrong.stdout
    assert bench(*run, "--out", tmp_path / "out", "--other-names").returncode in MEASURED


@dataclass
class Stuck(KnownServer):
    """Answers some requests, and keeps all further ones waiting."""

    answered: int = 6
    reached: threading.Event = field(default_factory=threading.Event)

    async def complete(self, request: Request) -> Response:
        if len(self.seen) >= self.answered:
            self.reached.set()
            while (await request.receive())["type"] != "http.disconnect":
                continue
            return Response()
        return await super().complete(request)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_what_was_there_by_then(how: signal.Signals, tmp_path: Path) -> None:
    server = Stuck("stuck", ["base", "pirate"])
    with serving(server):
        file = workload(tmp_path, requests=50, warm_up=0)
        command = [*BENCH, "run", file, "--target", f"s={server.url}", "--out", tmp_path, "--repeats", "2"]
        process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert server.reached.wait(60)
        process.send_signal(how)
        told, _ = process.communicate(timeout=60)
    assert process.returncode == Exit.INTERRUPTED
    assert "interrupted" in told
    result = read_result(tmp_path / "some.json")
    assert result.interrupted
    assert len(result.repeats) == 1
    assert result.summary[0].completed in (5, 6), "the other stream's last answer may have been on its way"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"requests": 0}, "nothing else ends"),
        ({"output": {"kind": "fixed", "tokens": -1}}, "output.tokens"),
        ({"popularity": {"kind": "weights", "weights": {"nobody": 1}}}, "nobody"),
        ({"tenants": [{"name": "acme", "key_env": "NO_SUCH_KEY"}]}, "NO_SUCH_KEY"),
    ],
)
def test_what_cannot_be_run_is_told_in_one_line(
    pair: tuple[KnownServer, KnownServer], tmp_path: Path, fields: dict[str, Any], told: str
) -> None:
    done = bench("run", workload(tmp_path, **fields), "--target", f"l={pair[0].url}", "--out", tmp_path / "out")
    assert done.returncode == Exit.FAILED
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert not pair[0].seen


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_asked(
    pair: tuple[KnownServer, KnownServer], tmp_path: Path
) -> None:
    file = workload(tmp_path)
    done = bench("run", file, "--target", f"l={pair[0].url}", "--out", file / "out")
    assert done.returncode == Exit.FAILED
    assert done.stderr == f"error: --out {file / 'out'} can't be written: Not a directory; name another place\n"
    assert not pair[0].seen


def test_a_server_that_is_not_there_is_told_with_the_remedy(tmp_path: Path) -> None:
    done = bench("run", workload(tmp_path), "--target", "gone=http://127.0.0.1:9", "--out", tmp_path)
    assert done.returncode == Exit.FAILED
    assert "is the server up?" in done.stderr


def test_capacity_finds_a_rate_and_writes_every_trial(pair: tuple[KnownServer, KnownServer], tmp_path: Path) -> None:
    search = ["--first", 50, "--ceiling", 100, "--slo-ttft-ms", 60_000, "--out", tmp_path / "out", "--trial-s", 0.5]
    done = bench("capacity", workload(tmp_path), "--target", f"l={pair[0].url}", *search)
    assert done.returncode in MEASURED, done.stderr
    assert "some:" in done.stdout
    trials = sorted(path.name for path in (tmp_path / "out").glob("*.json"))
    assert "some-50.json" in trials
    assert read_result(tmp_path / "out" / "some-50.json").summary[0].requests == 25
    result = read_result(tmp_path / "out" / "some.json")
    search = result.capacity
    assert search is not None
    assert search.trials[0].rate == 50
    sound, late = (_with_reasons(result, reasons) for reasons in ((), ("the client was late",)))
    assert (without_a_rate([late]), without_a_rate([late, sound])) == (Exit.INVALID, Exit.FAILED)
    assert search.highest in {None, *(trial.rate for trial in search.trials)}
    page = (tmp_path / "out" / "some.html").read_text()
    assert "Capacity search" in page
    assert page.count('class="part"') == len({trial.rate for trial in search.trials}), "each rate is on it once"
    without = bench("capacity", workload(tmp_path), "--target", f"l={pair[0].url}", "--out", tmp_path / "out")
    assert "--slo-ttft-ms" in without.stderr


def test_an_interrupt_leaves_what_a_search_had_found(tmp_path: Path) -> None:
    server = Stuck("stuck", ["base", "pirate"], answered=2 * (2 + 8) + 5)
    with serving(server):
        search = ["--first", 50, "--ceiling", 100, "--slo-ttft-ms", 60_000, "--out", tmp_path, *SHORT]
        command = [*BENCH, "capacity", workload(tmp_path), "--target", f"s={server.url}", *search]
        process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert server.reached.wait(60)
        process.send_signal(signal.SIGINT)
        told, _ = process.communicate(timeout=60)
    assert process.returncode == Exit.INTERRUPTED
    assert "interrupted" in told
    result = read_result(tmp_path / "some.json")
    found = result.capacity
    assert found is not None
    assert [trial.interrupted for trial in found.trials] == [False, False, True]
    assert found.highest == max((trial.rate for trial in found.trials if trial.holds), default=None)
    assert result.interrupted is (found.highest is None), "what is shown is the run that held"
    assert len(list(tmp_path.glob("some-*.json"))) == 3


def _with_reasons(result: Result, reasons: tuple[str, ...]) -> Result:
    """The same, doubted for these."""
    healths = [replace(one.health, reasons=reasons) for one in result.repeats]
    repeats = [msgspec.structs.replace(one, health=health) for one, health in zip(result.repeats, healths, strict=True)]
    return msgspec.structs.replace(result, repeats=repeats)


def test_a_search_that_finds_no_rate_says_so(faulty: KnownServer, tmp_path: Path) -> None:
    search = ["--adapters", FAILING, "--first", 50, "--ceiling", 50, "--slo-ttft-ms", 60_000, "--out", tmp_path / "out"]
    file = workload(tmp_path, requests=2, warm_up=0)
    done = bench("capacity", file, "--target", f"f={faulty.url}", *search, *SHORT)
    assert done.returncode == Exit.FAILED
    found = read_result(tmp_path / "out" / "some.json").capacity
    assert found is not None
    assert found.highest is None
    assert "no rate held" in (tmp_path / "out" / "some.html").read_text()


def test_a_suite_is_repeated_workload_by_workload_and_one_page_has_all_of_it(
    pair: tuple[KnownServer, KnownServer], tmp_path: Path
) -> None:
    suite = ["suite", "smoke", "--url", f"left={pair[0].url}", "--time", 0.02, "--capacity", 60, "--repeats", 2]
    done = bench(*suite, "--out", tmp_path)
    assert done.returncode in MEASURED, done.stderr
    for name in ("closed", "open", "chats"):
        result = read_result(tmp_path / f"{name}.json")
        assert [one.repeat for one in result.repeats] == [0, 1]
        assert result.summary[0].completed, name
        assert name in (tmp_path / "index.html").read_text()
    wrong = bench(*suite, "--processes", 0, "--out", tmp_path)
    assert wrong.returncode == Exit.FAILED
    assert "--processes 0: give a number from 1 to 1024, or auto" in wrong.stderr


def test_the_status_names_the_worst_that_happened(pair: tuple[KnownServer, KnownServer], tmp_path: Path) -> None:
    assert list(Exit) == [Exit.INTERRUPTED, Exit.FAILED, Exit.INVALID, Exit.FINE]
    bench("run", workload(tmp_path), "--target", f"l={pair[0].url}", "--out", tmp_path, "--repeats", 1)
    assert status(read_result(tmp_path / "some.json"), allow_errors=False) in MEASURED


def test_a_server_of_the_base_alone_is_measured_with_what_asks_for_the_base(
    pair: tuple[KnownServer, KnownServer], tmp_path: Path
) -> None:
    pair[1].models = ["base-r"]
    files = [workload(tmp_path, name="base", base_share=1), workload(tmp_path, name="mixed")]
    subjects = find(parse_targets([f"{server.name}={server.url}" for server in pair]))
    task = Task(
        workloads=[read_workload(file) for file in files],
        subjects=subjects,
        manner=Manner(),
        out=tmp_path / "out",
        machine=describe_machine(),
        together=True,
    )
    targets = {one.workload.name: [server.name for server in one.targets] for one in run_task(task)}
    assert targets == {"base": ["left", "right"], "mixed": ["left"]}
    assert {request["model"] for request in pair[1].seen} == {"base-r"}
